"""How the published files of the standard sets are read and, where a part is missing, divided."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from leaven.data.examples import ClonePair, CodeExample, Example, ExampleKind, Pair, TaggedTokens, Text
from leaven.data.splits import SplitName, hash_share, hash_split
from leaven.errors import DataError

Paths = tuple[Path, ...]


def _lines(path: Path) -> list[str]:
    # Only \n ends a row: the sources hold form feeds and other characters at which str.splitlines breaks too.
    text = path.read_bytes().decode("utf-8")
    return text.removesuffix("\n").split("\n")


def _ninety_ten(key: str) -> SplitName:
    return "train" if hash_share(key) < 0.9 else "valid"


def java2cs(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`Pair` of a Java function and its C# translation, or every function of either language as `CodeExample`."""
    if kind is not CodeExample:
        return aligned_lines(paths, part, split, kind)
    return [
        CodeExample(line.strip(), language)
        for path, language in zip(paths, ("java", "c_sharp"), strict=True)
        for line in _lines(path)
        if line.strip()
    ]


def aligned_lines(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`Pair` of the i-th lines of two files."""
    sources, targets = _lines(paths[0]), _lines(paths[1])
    if len(sources) != len(targets):
        raise DataError(
            f"{paths[0]} has {len(sources)} lines, {paths[1]} has {len(targets)}; expected line for line translations"
        )
    return [
        Pair(source.strip(), target.strip())
        for source, target in zip(sources, targets, strict=True)
        if source.strip() and target.strip()
    ]


def refine(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`Pair` of buggy and fixed function; the valid part is divided 90/10 by the buggy one."""
    pairs = aligned_lines(paths, part, split, kind)
    if part == "test":
        return pairs
    return [pair for pair in pairs if isinstance(pair, Pair) and _ninety_ten(pair.source) == split]


def concode(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`Pair` of description with class context and method; methods of one class stay in one split.

    The published test file has no targets, so the dev file is divided.
    """
    rows = [json.loads(line) for line in _lines(paths[0])]
    return [
        Pair(row["nl"].strip(), row["code"].strip())
        for row in rows
        if hash_split(row["nl"].partition("concode_field_sep")[2] or row["nl"]) == split
    ]


def cosqa(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`ClonePair` (query, function, does it answer), or `Pair` of those that do; a function stays in one split."""
    rows = json.loads(paths[0].read_bytes().decode("utf-8"))
    mine: Iterable[dict[str, str]] = (row for row in rows if hash_split(row["code"]) == split)
    if kind is Pair:
        return [Pair(row["doc"], row["code"]) for row in mine if int(row["label"]) == 1]
    return [ClonePair(row["doc"], row["code"], int(row["label"])) for row in mine]


_POST_FIELDS = frozenset({"Question_ID", "Question_URL", "Answer_to_Question_ID"})


def conll(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`TaggedTokens` of sentences (token TAB tag TAB ...); the lines that identify a post are left out."""
    result: list[Example] = []
    tokens: list[str] = []
    tags: list[str] = []
    for line in [*_lines(paths[0]), ""]:
        columns = line.split("\t")
        if columns[0].strip():
            tokens.append(columns[0])
            tags.append(columns[1])
            continue
        if tokens and tokens[0] not in _POST_FIELDS:
            result.append(TaggedTokens(tuple(tokens), tuple(tags)))
        tokens, tags = [], []
    return result


_ARTICLE = re.compile(r"= [^=].* =")


def wikitext(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`Text` of paragraphs and headings; the first 90% of the valid part's articles train, the others validate."""
    lines = [line.strip() for line in _lines(paths[0]) if line.strip()]
    if part != "test":
        # A heading of the first level: no further sign of equality beside the outer ones.
        starts = [at for at, line in enumerate(lines) if _ARTICLE.fullmatch(line) and not line.startswith("= =")]
        cut = starts[round(0.9 * len(starts))]
        lines = lines[:cut] if split == "train" else lines[cut:]
    return [Text(line) for line in lines]
