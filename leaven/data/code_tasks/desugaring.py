"""Rewriting a statement without Python's shorthand: labels exact by construction."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from leaven.data.code_tasks.generation import FormatForFStrings, LoopsForComprehensions
from leaven.data.code_tasks.scopes import parsed
from leaven.data.examples import CodeExample, Pair

LONGEST = 120
_CONVERSION = re.compile(r"%(?:[sdr]|%)")


class Desugared(ast.NodeTransformer):
    """Augmented assignments, conditional expressions, chained comparisons, memberships of literals, `%` formats and
    assertions, written out. What cannot be written out without evaluating something twice stays.
    """

    changed = False

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        """`x += e` as `x = x + e`, for names and attributes of names."""
        self.generic_visit(node)
        if not _cheap(node.target):
            return node
        self.changed = True
        read = ast.parse(ast.unparse(node.target), mode="eval").body
        return ast.Assign([node.target], ast.BinOp(read, node.op, node.value))

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        """`x = a if c else b` as a statement."""
        self.generic_visit(node)
        if not isinstance(node.value, ast.IfExp):
            return node
        self.changed = True
        choice = node.value
        return ast.If(choice.test, [ast.Assign(node.targets, choice.body)], [ast.Assign(node.targets, choice.orelse)])

    def visit_Return(self, node: ast.Return) -> ast.stmt:
        """`return a if c else b` as a statement."""
        self.generic_visit(node)
        if not isinstance(node.value, ast.IfExp):
            return node
        self.changed = True
        choice = node.value
        return ast.If(choice.test, [ast.Return(choice.body)], [ast.Return(choice.orelse)])

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """`a < b < c` as `a < b and b < c`; `x in (a, b)` as `x == a or x == b`."""
        self.generic_visit(node)
        if len(node.ops) > 1 and all(_cheap(middle) for middle in node.comparators[:-1]):
            self.changed = True
            sides = [node.left, *node.comparators]
            each = [ast.Compare(sides[at], [op], [sides[at + 1]]) for at, op in enumerate(node.ops)]
            return ast.BoolOp(ast.And(), list(each))
        literal = node.comparators[0]
        if (
            len(node.ops) == 1
            and isinstance(node.ops[0], ast.In)
            and isinstance(literal, ast.Tuple | ast.List)
            and 2 <= len(literal.elts) <= 3
            and all(isinstance(element, ast.Constant) for element in literal.elts)
            and _cheap(node.left)
        ):
            self.changed = True
            return ast.BoolOp(ast.Or(), [ast.Compare(node.left, [ast.Eq()], [element]) for element in literal.elts])
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """`"%s" % x` as `"{}".format(x)`, for %s, %d and %r alone."""
        self.generic_visit(node)
        text = node.left.value if isinstance(node.left, ast.Constant) else None
        if not (isinstance(node.op, ast.Mod) and isinstance(text, str)):
            return node
        values = node.right.elts if isinstance(node.right, ast.Tuple) else [node.right]
        # A single name might hold a tuple or a mapping.
        if not isinstance(node.right, ast.Tuple | ast.Constant | ast.JoinedStr):
            return node
        wanted = [found for found in _CONVERSION.findall(text) if found != "%%"]
        if "%" in _CONVERSION.sub("", text) or len(wanted) != len(values):
            return node
        self.changed = True
        written = {"%s": "{}", "%d": "{:d}", "%r": "{!r}", "%%": "%"}
        escaped = text.replace("{", "{{").replace("}", "}}")
        form = _CONVERSION.sub(lambda found: written[found.group()], escaped)
        return ast.Call(ast.Attribute(ast.Constant(form), "format", ast.Load()), list(values), [])

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        """`assert t, m` as `if not t: raise AssertionError(m)`."""
        self.generic_visit(node)
        self.changed = True
        error: ast.expr = ast.Name("AssertionError", ast.Load())
        if node.msg is not None:
            error = ast.Call(error, [node.msg], [])
        return ast.If(ast.UnaryOp(ast.Not(), node.test), [ast.Raise(error, None)], [])


def _cheap(node: ast.expr) -> bool:
    """A name, a constant, or an attribute of one: reading it twice changes nothing that matters."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name | ast.Constant)


def desugaring(examples: Sequence[CodeExample]) -> list[Pair]:
    """A statement that uses shorthand to the same statement written out; statements of up to 120 characters.

    Both sides are written by `ast.unparse`. Statements that occur twice are taken once.
    """
    pairs = {}
    for _, function in parsed(examples):
        for statement in _statements(function.body):
            before = ast.unparse(statement)
            if len(before) > LONGEST or before in pairs:
                continue
            tree: ast.AST = ast.parse(before)
            changed = False
            for rewrite in (LoopsForComprehensions(), FormatForFStrings(), Desugared()):
                tree = rewrite.visit(tree)
                changed |= rewrite.changed
            after = ast.unparse(ast.fix_missing_locations(tree))
            if changed and len(after) <= LONGEST:
                pairs[before] = after
    return [Pair(before, after) for before, after in pairs.items()]


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Every statement of a function, outer ones first, without nested functions and classes."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        yield statement
        for name in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(statement, name, []))
        for handler in getattr(statement, "handlers", []):
            yield from _statements(handler.body)
