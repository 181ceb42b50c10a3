"""Tasks of understanding: what is this function called, what does it do, is it broken, are these two the same."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Sequence

from leaven.data.code_tasks.scopes import (
    FunctionNode,
    choices_of,
    local_names,
    occurrences,
    parsed,
    replaced,
    uses,
)
from leaven.data.examples import ClonePair, CodeExample, Pair
from leaven.data.languages import identifier_spans

HIDDEN = "<extra_id_0>"
TRUE, FALSE = "true", "false"


def name_prediction(examples: Sequence[CodeExample]) -> list[Pair]:
    """A function whose name, at its head and wherever it is repeated, is replaced by a sentinel, to that name.

    Dunder methods are left out (their bodies give them away), as are names of one letter.
    """
    pairs = []
    for example in examples:
        if len(example.name) < 2 or (example.name.startswith("__") and example.name.endswith("__")):
            continue
        spans = [s for s in identifier_spans(example.code, example.language) if example.code[slice(*s)] == example.name]
        code = example.code
        for start, end in reversed(spans):
            code = code[:start] + HIDDEN + code[end:]
        if spans:
            pairs.append(Pair(code, example.name))
    return pairs


def variable_naming(examples: Sequence[CodeExample]) -> list[Pair]:
    """A function in which one local variable is replaced by a sentinel wherever it stands, to the variable's name.

    Which variable depends on the function alone; it occurs at least twice. Attributes and keywords that are spelt alike
    stay. Source: the de-obfuscation of arXiv 2102.07492, for one name.
    """
    pairs = []
    for example, function in parsed(examples):
        places = {name: occurrences(function, name) for name in local_names(function)}
        often = [name for name, found in places.items() if len(found) > 1]
        if not often:
            continue
        name = choices_of(example, "variable").choice(often)
        code = example.code
        for node in reversed(places[name]):
            code = replaced(code, node, HIDDEN)
        pairs.append(Pair(code, name))
    return pairs


def summarization(examples: Sequence[CodeExample], words: tuple[int, int] = (3, 24)) -> list[Pair]:
    """A function to the first line of its documentation, where that has a usual number of words."""
    pairs = []
    for example in examples:
        summary = example.summary
        if summary is not None and words[0] <= len(summary.split()) <= words[1]:
            pairs.append(Pair(example.code, summary))
    return pairs


def swapped_identifier(example: CodeExample, function: FunctionNode) -> str | None:
    """The function with one use of a local name replaced by another local name; None where it has no two."""
    names = local_names(function)
    places = uses(function, names)
    if len(names) < 2 or not places:
        return None
    choose = choices_of(example, "swap")
    place = choose.choice(places)
    other = choose.choice([name for name in names if name != place.id])
    broken = replaced(example.code, place, other)
    try:
        ast.parse(broken)
    except SyntaxError:
        return None
    return broken


def defect_detection(examples: Sequence[CodeExample]) -> list[Pair]:
    """A function to "true" if one use of a local name was replaced by another local name, else "false".

    Half of the functions are broken; which half, and how, depends on each function alone.
    Source: the VarMisuse task (arXiv 1711.00740 section 3) as classification.
    """
    pairs = []
    for example, function in parsed(examples):
        broken = swapped_identifier(example, function)
        if broken is None:
            continue
        defective = choices_of(example, "defect").random() < 0.5
        pairs.append(Pair(broken if defective else example.code, TRUE if defective else FALSE))
    return pairs


class _Disguise(ast.NodeTransformer):
    """Other local names, and two-way branches the other way round."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = self.names.get(node.arg, node.arg)
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        if node.name:
            node.name = self.names.get(node.name, node.name)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if node.orelse and not (len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If)):
            test = node.test
            negated = _negated(test)
            node.test, node.body, node.orelse = negated, node.orelse, node.body
        return node


def _negated(test: ast.expr) -> ast.expr:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return test.operand
    return ast.UnaryOp(ast.Not(), test)


def disguised(example: CodeExample, function: FunctionNode) -> str | None:
    """The same function with its local names exchanged for others and its branches turned; None without local names."""
    names = local_names(function)
    if not names:
        return None
    choose = choices_of(example, "clone")
    fresh = [f"v{index}" for index in range(len(names))]
    choose.shuffle(fresh)
    # The name of the function itself would give the pair away.
    tree = _Disguise(dict(zip(names, fresh, strict=True))).visit(ast.parse(ast.unparse(function)).body[0])
    tree.name = "f"
    return ast.unparse(ast.fix_missing_locations(tree))


def clone_detection(examples: Sequence[CodeExample]) -> list[ClonePair]:
    """Pairs of a function and either its disguised self (label 1) or another function of its module (label 0).

    The other function is the one of most similar length, disguised too, so that neither style nor length tells.
    """
    by_module: dict[str, list[tuple[CodeExample, str]]] = defaultdict(list)
    for example, function in parsed(examples):
        variant = disguised(example, function)
        if variant is not None:
            by_module[example.module].append((example, variant))
    pairs = []
    for group in by_module.values():
        for at, (example, variant) in enumerate(group):
            first = re.sub(rf"\b{re.escape(example.name)}\b", "f", example.code)
            if choices_of(example, "pair").random() < 0.5:
                pairs.append(ClonePair(first, variant, 1))
                continue
            others = [other for index, (_, other) in enumerate(group) if index != at and other != variant]
            if others:
                pairs.append(ClonePair(first, min(others, key=lambda o: abs(len(o) - len(variant))), 0))
    return pairs
