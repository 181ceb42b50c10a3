"""Functions and methods of a source file, with their documentation, in the eight languages."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leaven.data.grammars import Language, character_offsets, language_info, utf8, wrapped_fragment

if TYPE_CHECKING:
    import tree_sitter


@dataclass(frozen=True, slots=True)
class FunctionSpan:
    """A named function or method with a body.

    start, end: character offsets of the function in the file (decorators and leading comment outside).
    start_line, end_line: 1-based, inclusive.
    docstring: cleaned text of the Python docstring or of the comment that directly precedes; None when there is none.
    code: dedented source without that docstring.
    """

    name: str
    start: int
    end: int
    start_line: int
    end_line: int
    docstring: str | None
    code: str


def functions(code: str, language: str) -> list[FunctionSpan]:
    """Named functions and methods with a body, in file order; those nested inside another one belong to it.

    Raises: ConfigError for an unknown language.
    """
    info = language_info(language)
    source = utf8(code)
    tree, _, shift = wrapped_fragment(source, info.name)
    found = list(_function_nodes(tree.root_node, info))
    edges = sorted({offset - shift for node in found for offset in (node.start_byte, node.end_byte)})
    character = dict(zip(edges, character_offsets(source, edges), strict=True))
    line_shift = 1 if shift else 0
    result = []
    for node in found:
        docstring, text = _docstring_and_code(node, source, shift, info)
        name = _function_name(node)
        result.append(
            FunctionSpan(
                name=name,
                start=character[node.start_byte - shift],
                end=character[node.end_byte - shift],
                start_line=node.start_point[0] + 1 - line_shift,
                end_line=node.end_point[0] + 1 - line_shift,
                docstring=docstring,
                code=text,
            )
        )
    return result


def _function_nodes(root: tree_sitter.Node, info: Language) -> Iterator[tree_sitter.Node]:
    stack = [root]
    while stack:
        node = stack.pop()
        if node.type in info.function_kinds and _body(node) is not None and _function_name(node):
            yield node
        else:
            stack.extend(reversed(node.named_children))


def _body(node: tree_sitter.Node) -> tree_sitter.Node | None:
    if node.type in {"variable_declarator", "assignment_expression"}:
        value = node.child_by_field_name("value") or node.child_by_field_name("right")
        if value is None or value.type not in {"arrow_function", "function_expression", "generator_function"}:
            return None
        return value.child_by_field_name("body")
    return node.child_by_field_name("body") or (node if node.type in {"method", "singleton_method"} else None)


def _function_name(node: tree_sitter.Node) -> str:
    name = node.child_by_field_name("name")
    if name is None and node.type == "assignment_expression":
        name = node.child_by_field_name("left")
        name = (name and name.child_by_field_name("property")) or name
    declarator = node.child_by_field_name("declarator")
    while name is None and declarator is not None:
        inner = declarator.child_by_field_name("declarator")
        if inner is None:
            inner = next((child for child in declarator.named_children if child.type.endswith("declarator")), None)
        if inner is None:
            name = declarator
        declarator = inner
    return (name.text or b"").decode("utf-8", errors="replace") if name is not None else ""


def _docstring_and_code(node: tree_sitter.Node, source: bytes, shift: int, info: Language) -> tuple[str | None, str]:
    start, end = node.start_byte - shift, node.end_byte - shift
    if info.name == "python":
        return _python_docstring_and_code(node, source, start, end)
    if node.type == "variable_declarator" and node.parent is not None and node.parent.named_child_count == 1:
        start = node.parent.start_byte - shift
    return _leading_comment(node, info), _dedent(source, start, end)


def _dedent(source: bytes, start: int, end: int, middle: tuple[bytes, int, int] | None = None) -> str:
    """Source between two offsets, dedented, with `middle` (new bytes, start, end) in place of a part of it."""
    line = source[source.rfind(b"\n", 0, start) + 1 : start]
    indent = line[: len(line) - len(line.lstrip())]
    body = source[start:end] if middle is None else source[start : middle[1]] + middle[0] + source[middle[2] : end]
    # Not textwrap.dedent: one line of a long string at column 0 would leave everything else indented.
    return body.replace(b"\n" + indent, b"\n").decode("utf-8", errors="replace").strip("\n")


def _python_docstring_and_code(node: tree_sitter.Node, source: bytes, start: int, end: int) -> tuple[str | None, str]:
    body = node.child_by_field_name("body")
    first = next((child for child in body.named_children if child.type != "comment"), None) if body else None
    if body is None or first is None or first.type != "expression_statement" or first.named_child_count != 1:
        return None, _dedent(source, start, end)
    literal = first.named_children[0]
    if literal.type not in {"string", "concatenated_string"} or literal.text is None:
        return None, _dedent(source, start, end)
    try:
        value = ast.literal_eval(literal.text.decode("utf-8", errors="replace"))
    except (ValueError, SyntaxError):
        return None, _dedent(source, start, end)
    if not isinstance(value, str):
        return None, _dedent(source, start, end)
    offset = start - node.start_byte
    cut, stop = first.start_byte + offset, first.end_byte + offset
    statements = [child for child in body.named_children if child.type != "comment"]
    if len(statements) == 1:
        return inspect.cleandoc(value) or None, _dedent(source, start, end, (b"pass", cut, stop))
    # The docstring goes with its whole lines when it has them to itself.
    line = source.rfind(b"\n", 0, cut) + 1
    newline = source.find(b"\n", stop)
    if newline >= 0 and not source[line:cut].strip() and not source[stop:newline].strip():
        cut, stop = line, newline + 1
    else:
        stop += len(source[stop:]) - len(source[stop:].lstrip(b" \t;"))
    return inspect.cleandoc(value) or None, _dedent(source, start, end, (b"", cut, stop))


# Ruby's `body_statement`: the comment above the first method of a class stands before it in the tree.
_WRAPPING = frozenset(
    {
        "export_statement",
        "lexical_declaration",
        "variable_declaration",
        "expression_statement",
        "global_statement",
        "body_statement",
    }
)


def _leading_comment(node: tree_sitter.Node, info: Language) -> str | None:
    """Text of the comments that stand directly above the node, without a blank line between."""
    while node.prev_sibling is None or not node.prev_sibling.is_named:
        if node.parent is None or node.parent.type not in _WRAPPING:
            break
        node = node.parent
    lines: list[str] = []
    row, previous = node.start_point[0], node.prev_sibling
    while previous is not None and previous.type in info.comment_kinds:
        # Some grammars count the line break into a line comment.
        text = (previous.text or b"").decode("utf-8", errors="replace").rstrip()
        last_row = previous.start_point[0] + text.count("\n")
        before = previous.prev_sibling
        trailing = before is not None and before.end_point[0] == previous.start_point[0] and before.end_point[1] > 0
        if last_row < row - 1 or (trailing and before is not None and before.type not in info.comment_kinds):
            break
        lines = _comment_text(text) + lines
        row, previous = previous.start_point[0], before
    text = "\n".join(lines)
    if info.name == "c_sharp":
        text = re.sub(r"</?\w+[^<>\n]*>", "", text)
    return text.strip() or None


def _comment_text(comment: str) -> list[str]:
    if comment.startswith("=begin"):
        return comment.splitlines()[1:-1]
    block = comment.startswith("/*")
    if block:
        comment = comment.removesuffix("*/")[2:].lstrip("*!")
    pattern = re.compile(r"^\s*\*+ ?" if block else r"^\s*(?://+!?|#+|--+) ?")
    lines = [pattern.sub("", line).rstrip() for line in comment.splitlines()]
    return [line if index else line.strip() for index, line in enumerate(lines)]
