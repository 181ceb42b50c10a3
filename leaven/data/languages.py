"""The eight programming languages: files, parsers, developer-chosen names and functions."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from leaven.data.function_spans import FunctionSpan, functions
from leaven.data.grammars import (
    LANGUAGES,
    Language,
    character_offsets,
    grammar,
    has_syntax_error,
    language_info,
    language_of,
    parse,
    parse_fragment,
    resolve_language,
    utf8,
    wrapped_fragment,
)

if TYPE_CHECKING:
    import tree_sitter

__all__ = [
    "LANGUAGES",
    "FunctionSpan",
    "Language",
    "Span",
    "functions",
    "has_syntax_error",
    "identifier_spans",
    "language_info",
    "language_of",
    "parse",
    "parse_fragment",
    "resolve_language",
]

Span = tuple[int, int]


@cache
def _name_query(language: str, entry_point: str) -> tree_sitter.Query:
    import tree_sitter

    table = grammar(language, entry_point)
    extra = language_info(language).name_kinds
    kinds = set()
    for index in range(table.node_kind_count):
        kind = table.node_kind_for_id(index)
        if kind is None or not (table.node_kind_is_named(index) and table.node_kind_is_visible(index)):
            continue
        if kind.endswith("identifier") or kind in extra:
            kinds.add(kind)
    return tree_sitter.Query(table, "[" + " ".join(f"({kind})" for kind in sorted(kinds)) + "] @name")


def identifier_spans(code: str, language: str) -> list[Span]:
    """Character spans `(start, end)` of developer-chosen names, ascending and disjoint.

    They are the leaves of the syntax tree whose kind ends in `identifier`; beside them Go's `label_name`, JavaScript's
    `shorthand_property_identifier_pattern`, Ruby's `constant` and instance, class and global variables (with their
    `@`, `@@`, `$`), and PHP's `name` (a variable without its `$`; `$this` is left out, being the language's word).
    Keywords, literals, comments and text inside strings are never among them; expressions interpolated into
    a string are code, and their names are.

    Raises: ConfigError for an unknown language. Source: arXiv 2109.00859 section 3.2 (identifier tagging).
    """
    import tree_sitter

    language = resolve_language(language)
    source = utf8(code)
    tree, entry_point, shift = wrapped_fragment(source, language)
    captures = tree_sitter.QueryCursor(_name_query(language, entry_point)).captures(tree.root_node)
    spans = set()
    for node in captures.get("name", ()):
        start, end = node.start_byte - shift, node.end_byte - shift
        if node.child_count or start < 0 or end > len(source) or start == end:
            continue
        if language == "php" and source[max(start - 1, 0) : end] == b"$this":
            continue
        spans.add((start, end))
    ordered = sorted(spans)
    flat = character_offsets(source, [offset for span in ordered for offset in span])
    return list(zip(flat[::2], flat[1::2], strict=True))
