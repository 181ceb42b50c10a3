"""Where examples come from: one name for embedded, standard and the user's own data."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar, cast

from leaven.data.downloads import offline
from leaven.data.examples import KINDS, CodeExample, Example, ExampleKind, Labelled, LabelledImage, Text
from leaven.data.grammars import language_of
from leaven.data.ledger import Ledger
from leaven.data.readers.code_folder import code_files, read_code
from leaven.data.readers.csv_file import read_csv
from leaven.data.readers.hub import hub_rows, hub_split, load_hub
from leaven.data.readers.image_folder import read_image_folder
from leaven.data.readers.jsonl_file import read_jsonl
from leaven.data.readers.labels import labels_of_one_kind
from leaven.data.readers.parquet_file import read_parquet
from leaven.data.readers.paths import existing_file, existing_path
from leaven.data.readers.rows import Row
from leaven.data.readers.text_folder import TEXT_SUFFIXES, read_paragraphs, text_files
from leaven.data.registry import STANDARD_SETS
from leaven.data.schema import FIELDS, Fields, RowError, example_from, infer_kind, split_key
from leaven.data.splits import Split, SplitName, assign_splits, check_split
from leaven.data.stdlib_code import installed_code, stdlib_code
from leaven.errors import ConfigError, DataError

E = TypeVar("E", bound=Example)
Keyed = Iterator[tuple[str, Example]]

EMBEDDED: dict[str, str] = {
    "stdlib-code": "functions of the running interpreter's standard library",
    "installed-code": "the same, and for training those of the Python packages installed beside it",
}
SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}
_OF_ROWS = tuple(kind for kind in KINDS.values() if kind is not LabelledImage)
SCHEMES: dict[str, tuple[str, tuple[ExampleKind, ...]]] = {
    "code": ("code:DIR, functions of source files in eight languages", (CodeExample, Text)),
    "text": ("text:DIR or text:FILE, paragraphs of text files", (Text,)),
    "imagefolder": ("imagefolder:DIR, one folder of images per class", (LabelledImage,)),
    "jsonl": ("jsonl:FILE, one JSON object a line", _OF_ROWS),
    "csv": ("csv:FILE, comma- or tab-separated with a header line", _OF_ROWS),
    "parquet": ("parquet:FILE, a parquet table (extra: parquet)", _OF_ROWS),
    "hf": ("hf:NAME or hf:NAME:CONFIGURATION, a data set of the Hugging Face hub (extra: hub)", _OF_ROWS),
}
_OF_FOLDERS = ("code", "text", "imagefolder")


@dataclass(frozen=True, slots=True)
class Source(Generic[E]):
    """Examples of one split of one source, in a reproducible order, and the account of what was read."""

    name: str
    split: Split
    examples: list[E]
    ledger: Ledger

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[E]:
        return iter(self.examples)


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """One line of `leaven data list`; `where` says why when the source is not available."""

    name: str
    tier: str
    kinds: tuple[str, ...]
    what: str
    available: bool
    where: str


def _kind_names(kinds: tuple[ExampleKind, ...]) -> tuple[str, ...]:
    return tuple(name for name, kind in KINDS.items() if kind in kinds)


def list_sources() -> list[SourceInfo]:
    """Every source that a name or scheme can open, embedded first, then standard, then the user's own."""
    found = [
        SourceInfo(
            name=name,
            tier="embedded",
            kinds=("code", "text"),
            what=what,
            available=True,
            where="the running interpreter",
        )
        for name, what in EMBEDDED.items()
    ]
    for dataset in STANDARD_SETS.values():
        missing = dataset.missing()
        beyond = offline() or any(file.selection for file in missing)
        where = "at hand" if not missing else f"downloaded from {dataset.origin} when first used"
        if missing and any(file.selection for file in missing):
            where = f"missing {missing[0].path}, a selection of {dataset.origin}; see LEAVEN_DATA"
        elif missing and offline():
            where = f"missing {missing[0].path} ({len(missing)} files in all) and the network is off; see LEAVEN_DATA"
        found.append(
            SourceInfo(
                name=dataset.name,
                tier="standard",
                kinds=_kind_names(dataset.kinds),
                what=f"{dataset.what}; licence {dataset.licence}",
                available=not (missing and beyond),
                where=where,
            )
        )
    needs = {"parquet": "pyarrow", "hf": "datasets"}
    for scheme, (what, kinds) in SCHEMES.items():
        library = needs.get(scheme)
        available = library is None or importlib.util.find_spec(library) is not None
        where = "your own files" if available else f"needs {library}, which is not installed"
        found.append(SourceInfo(f"{scheme}:", "yours", _kind_names(kinds), what, available, where))
    return found


def _unknown(spec: str) -> ConfigError:
    names = [*EMBEDDED, *STANDARD_SETS, *(f"{scheme}:" for scheme in SCHEMES)]
    head = spec.partition(":")[0] + (":" if ":" in spec else "")
    near = difflib.get_close_matches(head, names, n=1, cutoff=0.5)
    hint = ""
    path = Path(spec).expanduser()
    if path.is_dir():
        readers = f"code:{spec} reads its sources, text:{spec} its text files, imagefolder:{spec} its images"
        hint = f" {spec!r} is a folder: {readers}."
    elif path.is_file():
        by_suffix = {suffix: scheme for scheme, suffixes in SUFFIXES.items() for suffix in suffixes}
        by_suffix.update(dict.fromkeys(TEXT_SUFFIXES, "text"))
        scheme = "code" if language_of(path) else by_suffix.get(path.suffix.lower(), "text")
        hint = f" {spec!r} is a file: did you mean {scheme}:{spec}?"
    elif near:
        hint = f" Did you mean {near[0] + spec.partition(':')[2]!r}?"
    return ConfigError(f"unknown data source {spec!r}: there are {', '.join(names)}.{hint}")


def _refuse(spec: str, kind: ExampleKind, kinds: tuple[ExampleKind, ...]) -> None:
    if kind not in kinds:
        offered = ", ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{spec} has no {kind.__name__} examples: it offers {offered}")


def _columns(spec: str, argument: str) -> tuple[str, dict[str, str]]:
    """`FILE?field=column&...` -> the file and the renaming."""
    path, _, query = argument.partition("?")
    renamed: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, equals, column = item.partition("=")
        if not (name and equals and column):
            raise ConfigError(f"{spec}: {item!r} after the question mark is not of the form field=column")
        renamed[name] = column
    return path, renamed


def _rename(row: Row, renamed: dict[str, str]) -> Row:
    if not renamed:
        return row
    values = dict(row.fields.values)
    values.update({name: row.fields.values.get(column) for name, column in renamed.items()})
    return row._replace(fields=Fields(values, row.fields.typed))


def _file_rows(scheme: str, path: Path, ledger: Ledger) -> Iterator[Row]:
    return {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}[scheme](path, ledger)


def _typed(rows: Iterator[Row], kind: ExampleKind, ledger: Ledger, classes: int | None) -> Keyed:
    for row in rows:
        try:
            example = example_from(row.fields, kind, classes)
        except RowError as error:
            ledger.bad(row.file, row.line, str(error))
        else:
            if isinstance(example, Labelled):
                example = replace(example, where=f"{row.file}:{row.line}")
            yield split_key(example), example


def _folder(scheme: str, spec: str, argument: str, kind: ExampleKind, ledger: Ledger) -> Keyed:
    path = existing_path(spec, argument)
    root = path if path.is_dir() else path.parent
    files = code_files(spec, path) if scheme == "code" else text_files(spec, path)
    for file in files:
        unit = file.relative_to(root).as_posix()
        if scheme == "code":
            for example in read_code(file, ledger, root):
                # A lone file has nothing but its functions to be split by.
                key = unit if len(files) > 1 else example.code
                yield key, (Text(example.code) if kind is Text else example)
        else:
            for text, _ in read_paragraphs(file, ledger):
                yield (unit if len(files) > 1 else text.text), text


def _own_rows(
    scheme: str, spec: str, argument: str, split: Split, ledger: Ledger
) -> tuple[Iterator[Row], dict[str, str], bool]:
    """Rows of a file or hub data set, the columns to rename, and whether they still have to be split."""
    name, renamed = _columns(spec, argument)
    if scheme == "hf":
        rows, whole = hub_split(spec, load_hub(name), split)
        return hub_rows(spec, rows), renamed, whole
    path = existing_file(spec, existing_path(spec, name), SUFFIXES[scheme])
    return _file_rows(scheme, path, ledger), renamed, True


def _assigned(keyed: list[tuple[str, Example]]) -> dict[str, SplitName]:
    """Split of each key; of a label with three keys or more every split has some, however few they are."""
    splits = assign_splits(key for key, _ in keyed)
    first: dict[str, int | str] = {}
    for key, example in keyed:
        if isinstance(example, Labelled | LabelledImage):
            first.setdefault(key, example.label)
    of_label: dict[int | str, list[str]] = {}
    for key, label in first.items():
        of_label.setdefault(label, []).append(key)
    for keys in of_label.values():
        if len(keys) >= 3:
            splits |= assign_splits(keys)
    return splits


def _choose(spec: str, keyed: list[tuple[str, Example]], split: Split) -> list[Example]:
    if split == "all":
        return [example for _, example in keyed]
    splits = _assigned(keyed)
    chosen = [example for key, example in keyed if splits[key] == split]
    if not chosen:
        raise DataError(
            f"{spec}: nothing is left for the split {split!r}: the data divide into {len(splits)} distinct units "
            "(files of a folder, else distinct inputs) and at least 3 are needed"
        )
    return chosen


def open_source(
    spec: str,
    kind: type[E],
    *,
    split: Split = "train",
    max_bad_share: float = 0.05,
    classes: int | None = None,
) -> Source[E]:
    """Examples of one kind from an embedded or standard name, or from the user's data as `scheme:argument`.

    Args:
        spec: `stdlib-code`, a standard name such as `java2cs`, or `code:DIR`, `text:DIR`, `imagefolder:DIR`,
            `jsonl:FILE`, `csv:FILE`, `parquet:FILE`, `hf:NAME`; row formats take `?field=column&...` to rename columns.
        kind: a class of `leaven.data.examples`.
        split: `train`, `valid`, `test` or `all`. The user's data without splits are divided 80/10/10 by a hash of the
            input (folders: of the file), the same on every machine.
        max_bad_share: share of bad rows, in [0, 1], over which reading fails.
        classes: number of classes of a `Labelled`; 2 asks for labels 0 and 1. None takes whole numbers, or names.

    Raises: ConfigError for an unknown source, split or a kind that the source does not have; DataError for missing or
    empty data, or too many bad rows.
    """
    check_split(split, spec)
    ledger = Ledger(spec, max_bad_share)
    wanted = cast(ExampleKind, kind)
    examples = _named(spec, wanted, split)
    if examples is not None:
        ledger.good(len(examples))
        ledger.check()
    else:
        scheme, colon, argument = spec.partition(":")
        if not colon or scheme not in SCHEMES:
            raise _unknown(spec)
        _refuse(spec, wanted, SCHEMES[scheme][1])
        whole = True
        if scheme in ("code", "text"):
            keyed = list(_folder(scheme, spec, argument, wanted, ledger))
        elif scheme == "imagefolder":
            images, whole = read_image_folder(spec, existing_path(spec, argument), split, ledger)
            keyed = list[tuple[str, Example]](images)
        else:
            rows, renamed, whole = _own_rows(scheme, spec, argument, split, ledger)
            typed = list(_typed((_rename(row, renamed) for row in rows), wanted, ledger, classes))
            keyed = labels_of_one_kind(typed, ledger)
        ledger.good(len(keyed))
        ledger.check()
        examples = _choose(spec, keyed, split if whole else "all")
    return Source(spec, split, cast("list[E]", examples), ledger)


def _named(spec: str, kind: ExampleKind, split: Split) -> list[Example] | None:
    if spec in EMBEDDED:
        _refuse(spec, kind, (CodeExample, Text))
        found = stdlib_code(split)
        if spec == "installed-code" and split in ("train", "all"):
            found = [*found, *installed_code()]
        return [Text(example.code) for example in found] if kind is Text else list[Example](found)
    if spec in STANDARD_SETS:
        _refuse(spec, kind, STANDARD_SETS[spec].kinds)
        return STANDARD_SETS[spec].load(split, kind)
    return None


def kind_of(spec: str) -> ExampleKind:
    """The kind of examples that a source offers first; of row formats, the kind that the first row's fields make.

    Raises: ConfigError for an unknown source; DataError for missing data, no rows, or fields that make no kind.
    """
    if spec in EMBEDDED:
        return CodeExample
    if spec in STANDARD_SETS:
        return STANDARD_SETS[spec].kinds[0]
    scheme, colon, argument = spec.partition(":")
    if not colon or scheme not in SCHEMES:
        raise _unknown(spec)
    if scheme in _OF_FOLDERS:
        return SCHEMES[scheme][1][0]
    rows, renamed, _ = _own_rows(scheme, spec, argument, "all", Ledger(spec))
    first = next(rows, None)
    if first is None:
        raise DataError(f"{spec}: there are no usable rows in it")
    return infer_kind(_rename(first, renamed).fields.values, f"{first.file}:{first.line} (needs one of {_schemas()})")


def check_source(
    spec: str, kind: ExampleKind | None = None, *, max_bad_share: float = 0.05, classes: int | None = None
) -> Ledger:
    """Read a source from end to end and give the account, without failing on bad rows (see `Ledger.ok`).

    Args:
        kind: what the rows are to be; None takes it from the fields of the first row.

    Raises: ConfigError and DataError as `open_source` does, except for the share of bad rows.
    """
    scheme, colon, argument = spec.partition(":")
    ledger = Ledger(spec, max_bad_share)
    standard = STANDARD_SETS.get(spec)
    if spec in EMBEDDED or standard is not None:
        named = kind or (standard.kinds[0] if standard is not None else CodeExample)
        ledger.good(len(_named(spec, named, "all") or ()))
        return ledger
    if not colon or scheme not in SCHEMES:
        raise _unknown(spec)
    if scheme in _OF_FOLDERS:
        found = kind or SCHEMES[scheme][1][0]
        _refuse(spec, found, SCHEMES[scheme][1])
        if scheme == "imagefolder":
            images, _ = read_image_folder(spec, existing_path(spec, argument), "all", ledger)
            ledger.good(len(images))
        else:
            ledger.good(sum(1 for _ in _folder(scheme, spec, argument, found, ledger)))
        return ledger
    rows, renamed, _ = _own_rows(scheme, spec, argument, "all", ledger)
    rows = (_rename(row, renamed) for row in rows)
    first = next(rows, None)
    if first is None:
        return ledger
    found = kind or infer_kind(first.fields.values, f"{first.file}:{first.line} (needs one of {_schemas()})")
    ledger.good(len(labels_of_one_kind(list(_typed(chain([first], rows), found, ledger, classes)), ledger)))
    return ledger


def _schemas() -> str:
    return ", ".join(FIELDS.values())
