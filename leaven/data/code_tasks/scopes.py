"""Names that are local to a function, and source positions of syntax nodes."""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Iterator, Sequence

from leaven.data.examples import CodeExample
from leaven.data.splits import hash_share

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(examples: Sequence[CodeExample]) -> Iterator[tuple[CodeExample, FunctionNode]]:
    """Python functions with their syntax trees; what is not one parsable Python function is passed over."""
    for example in examples:
        if example.language != "python":
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                body = ast.parse(example.code).body
        except (SyntaxError, ValueError):
            continue
        if len(body) == 1 and isinstance(body[0], FunctionNode):
            yield example, body[0]


def choices_of(example: CodeExample, task: str) -> random.Random:
    """The generator of an example's choices: the same on every machine, independent of the other examples."""
    return random.Random(int(hash_share(f"{task}\0{example.code}") * 2**53))


def local_names(function: FunctionNode) -> list[str]:
    """Parameters and names that the function binds, in order of first binding, without `self`, `cls` and `_`."""
    arguments = function.args
    bound = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    bound += [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
    outer: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Global | ast.Nonlocal):
            outer.update(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.append(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.append(node.name)
    return [name for name in dict.fromkeys(bound) if name not in outer | {"self", "cls", "_"}]


def uses(function: FunctionNode, names: Sequence[str]) -> list[ast.Name]:
    """Places that read one of the names, in source order."""
    wanted = set(names)
    found = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in wanted
    ]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def occurrences(function: FunctionNode, name: str) -> list[ast.Name | ast.arg]:
    """Places that bind or read a name, in source order; none for a name that an `except` binds, which has no node."""
    found: list[ast.Name | ast.arg] = []
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler) and node.name == name:
            return []
        if (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.arg) and node.arg == name):
            found.append(node)
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def replaced(code: str, node: ast.Name | ast.arg, text: str) -> str:
    """The code with other text in the place of a name."""
    lines = code.split("\n")
    line = lines[node.lineno - 1].encode()
    # Not the end of the node: a parameter ends after its annotation.
    end = node.col_offset + len((node.id if isinstance(node, ast.Name) else node.arg).encode())
    lines[node.lineno - 1] = (line[: node.col_offset] + text.encode() + line[end:]).decode()
    return "\n".join(lines)
