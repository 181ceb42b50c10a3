"""Functions and methods of Python source through `ast`, with exact spans."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator

from leaven.data.examples import CodeExample

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def python_functions(source: str, module: str = "", path: str = "") -> list[CodeExample]:
    """Functions and methods in file order, without decorators; those nested in another function belong to it.

    `docstring` is the first paragraph, cleaned; `code` has no docstring (`pass` where nothing else was in the body).
    Raises: SyntaxError, ValueError as `ast.parse` does.
    """
    with warnings.catch_warnings():
        # Doubtful escapes in other people's code are not the reader's business.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    # ast counts lines by \n, \r and \r\n alone; str.splitlines also breaks at form feeds.
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [_example(node, lines, module, path) for node in _function_nodes(tree)]


def _function_nodes(node: ast.AST) -> Iterator[FunctionNode]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode):
            yield child
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _function_nodes(child)


def first_paragraph(docstring: str) -> str:
    """Cleaned text up to the first blank line."""
    return inspect.cleandoc(docstring).strip().split("\n\n", 1)[0].strip()


def _cut(line: str, start: int | None, end: int | None) -> str:
    # ast's columns are UTF-8 bytes.
    return line[start:end] if line.isascii() else line.encode()[start:end].decode()


def _example(node: FunctionNode, lines: list[str], module: str, path: str) -> CodeExample:
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
    body = lines[first : last + 1]
    body[-1] = _cut(body[-1], None, node.end_col_offset)
    body[0] = indent + _cut(lines[first], node.col_offset, node.end_col_offset if first == last else None)
    text, statement = ast.get_docstring(node, clean=False), node.body[0]
    if text is not None:
        top, bottom = statement.lineno - 1 - first, (statement.end_lineno or statement.lineno) - 1 - first
        before = _cut(lines[first + top], None, statement.col_offset)
        stop = node.end_col_offset if first + bottom == last else None
        after = _cut(lines[first + bottom], statement.end_col_offset, stop)
        if first == last:
            before, after = indent + _cut(before, node.col_offset, None), after.lstrip(" ;")
        if len(node.body) == 1:
            body[top : bottom + 1] = [before + "pass"]
        elif before.strip() or after.lstrip(" \t;"):
            rest = after.strip().removeprefix(";").lstrip()
            body[top : bottom + 1] = [before + rest] if rest and not rest.startswith("#") else []
        else:
            body[top : bottom + 1] = []
    code = "\n".join(line.removeprefix(indent).rstrip() for line in body).strip("\n")
    return CodeExample(
        code=code,
        language="python",
        name=node.name,
        docstring=(first_paragraph(text) if text else None) or None,
        module=module,
        path=path,
        line=node.lineno,
    )
