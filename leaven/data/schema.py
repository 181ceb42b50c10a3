"""From a row of named fields to a typed example."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from leaven.data.examples import (
    KINDS,
    ClonePair,
    CodeExample,
    Example,
    ExampleKind,
    Labelled,
    LabelledImage,
    Pair,
    ScoredPair,
    TaggedTokens,
    Text,
)
from leaven.data.languages import functions, has_syntax_error, resolve_language
from leaven.data.python_functions import first_paragraph
from leaven.errors import ConfigError, DataError


class RowError(DataError):
    """A row that does not fit its schema; the message is the reason for the ledger."""


FIELDS: dict[ExampleKind, str] = {
    CodeExample: "{code, docstring?, lang}",
    Pair: "{source, target}",
    ClonePair: "{code1, code2, label}",
    Labelled: "{code or text, label}",
    ScoredPair: "{text1, text2, score}",
    Text: "{text}",
    TaggedTokens: "{tokens, tags}",
}


@dataclass(frozen=True, slots=True)
class Fields:
    """One row. `typed` is False where the format knows only text (csv), so that "1" may be a label."""

    values: Mapping[str, object]
    typed: bool = True

    def text(self, *names: str) -> str:
        """The first of the named fields that exists, a non-empty string. Raises: RowError."""
        name = next((name for name in names if self.values.get(name) is not None), None)
        if name is None:
            raise RowError(f"field {' or '.join(map(repr, names))} is missing (fields: {self._names()})")
        value = self.values[name]
        if not isinstance(value, str):
            raise RowError(f"field {name!r} is {_described(value)}, expected text")
        if not value.strip():
            raise RowError(f"field {name!r} is empty")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string or None when the field is absent, null or blank. Raises: RowError for another type."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise RowError(f"field {name!r} is {_described(value)}, expected text")
        return value if value.strip() else None

    def label(self, classes: int | None) -> int | str:
        """Class from the field `label`: an index below `classes` when that is given, else an index or a name.

        Raises: RowError.
        """
        value = self.values.get("label")
        if classes is None and isinstance(value, str) and (self.typed or not _is_whole(value)):
            return self.text("label").strip()
        return self.index(classes)

    def index(self, classes: int | None) -> int:
        """Class index from the field `label`, below `classes` when that is given. Raises: RowError."""
        value = self.values.get("label")
        if value is None:
            raise RowError(f"field 'label' is missing (fields: {self._names()})")
        if isinstance(value, str) and not self.typed:
            try:
                value = int(value)
            except ValueError:
                value = str(value)
        expected = "a whole number or a name" if classes is None else f"a whole number from 0 to {classes - 1}"
        expected = "0 or 1" if classes == 2 else expected
        if isinstance(value, bool) or not isinstance(value, int):
            raise RowError(f"field 'label' is {_described(value)}, expected {expected}")
        if value < 0 or (classes is not None and value >= classes):
            raise RowError(f"field 'label' is {value}, expected {expected if classes else '0 or more'}")
        return value

    def number(self, name: str) -> float:
        """A finite number. Raises: RowError."""
        value = self.values.get(name)
        if value is None:
            raise RowError(f"field {name!r} is missing (fields: {self._names()})")
        if isinstance(value, str) and not self.typed:
            try:
                value = float(value)
            except ValueError:
                value = str(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RowError(f"field {name!r} is {_described(value)}, expected a finite number")
        return float(value)

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings. Raises: RowError."""
        value = self.values.get(name)
        if value is None:
            raise RowError(f"field {name!r} is missing (fields: {self._names()})")
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise RowError(f"field {name!r} is {_described(value)}, expected a list of texts")
        return tuple(value)

    def _names(self) -> str:
        return ", ".join(map(str, self.values)) or "none"


def _is_whole(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _described(value: object) -> str:
    shown = repr(value)
    kind = {"str": "text", "bool": "true/false", "float": "a number with a fraction", "int": "a number"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )
    return f"{kind} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


def _code(fields: Fields, classes: int | None) -> CodeExample:
    code, docstring = fields.text("code"), fields.optional_text("docstring")
    named = fields.text("lang", "language")
    try:
        language = resolve_language(named)
    except ConfigError as error:
        raise RowError(f"field 'lang': {error}") from error
    if has_syntax_error(code, language):
        raise RowError(f"field 'code' does not parse as {language}")
    example = CodeExample(
        code=code.strip("\n"),
        language=language,
        name=fields.optional_text("name") or "",
        docstring=first_paragraph(docstring) if docstring else None,
        module=fields.optional_text("module") or "",
        path=fields.optional_text("path") or "",
    )
    found = functions(code, language)
    if len(found) != 1:
        return example
    # The documentation inside the function would give the summary away.
    inside = first_paragraph(found[0].docstring) if found[0].docstring else None
    return replace(
        example, code=found[0].code, name=example.name or found[0].name, docstring=example.docstring or inside or None
    )


def _tagged(fields: Fields, classes: int | None) -> TaggedTokens:
    tokens, tags = fields.strings("tokens"), fields.strings("tags")
    if not tokens:
        raise RowError("field 'tokens' is empty")
    if len(tokens) != len(tags):
        raise RowError(f"{len(tokens)} tokens but {len(tags)} tags, expected one tag per token")
    return TaggedTokens(tokens, tags)


_READERS: dict[ExampleKind, Callable[[Fields, int | None], Example]] = {
    CodeExample: _code,
    Pair: lambda fields, classes: Pair(fields.text("source"), fields.text("target")),
    ClonePair: lambda fields, classes: ClonePair(fields.text("code1"), fields.text("code2"), fields.index(2)),
    Labelled: lambda fields, classes: Labelled(fields.text("code", "text"), fields.label(classes)),
    ScoredPair: lambda fields, classes: ScoredPair(fields.text("text1"), fields.text("text2"), fields.number("score")),
    Text: lambda fields, classes: Text(fields.text("text")),
    TaggedTokens: _tagged,
}


def example_from(fields: Fields, kind: ExampleKind, classes: int | None = None) -> Example:
    """The example of a kind that a row holds; fields that the kind does not know are ignored.

    Args:
        classes: how many classes a `Labelled` may have; 2 asks for labels 0 and 1. None leaves it open.

    Raises: RowError naming the field, its value and what was expected.
    """
    return _READERS[kind](fields, classes)


def split_key(example: Example) -> str:
    """What decides the split of an example: its input, so that equal inputs never stand on both sides."""
    match example:
        case CodeExample(code=text) | Pair(source=text) | Labelled(text=text) | Text(text=text):
            return text
        case ClonePair() | ScoredPair():
            return f"{example.first}\0{example.second}"
        case TaggedTokens(tokens=tokens):
            return "\0".join(tokens)
        case LabelledImage(path=path):
            return path


_INFERRED: tuple[tuple[frozenset[str], ExampleKind], ...] = (
    (frozenset({"code1", "code2", "label"}), ClonePair),
    (frozenset({"text1", "text2", "score"}), ScoredPair),
    (frozenset({"source", "target"}), Pair),
    (frozenset({"tokens", "tags"}), TaggedTokens),
    (frozenset({"code", "label"}), Labelled),
    (frozenset({"text", "label"}), Labelled),
    (frozenset({"code", "lang"}), CodeExample),
    (frozenset({"code", "language"}), CodeExample),
    (frozenset({"text"}), Text),
)


def infer_kind(names: Iterable[str], where: str) -> ExampleKind:
    """The kind whose fields a row has. Raises: DataError naming the fields found and the schemas known."""
    present = set(names)
    for needed, kind in _INFERRED:
        if needed <= present:
            return kind
    known = ", ".join(f"{FIELDS[kind]} for {name}" for name, kind in KINDS.items() if kind in FIELDS)
    raise DataError(
        f"{where}: no kind of example has the fields {', '.join(sorted(present)) or '(none)'}; known are {known}. "
        "Rename columns with ?field=column, for example jsonl:FILE?source=nl&target=code"
    )
