"""Data flow of code: from which variables each variable gets its value, as CodeBLEU counts it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from leaven.metrics.flow_grammars import FLOW_GRAMMARS, FlowGrammar
from leaven.metrics.syntax_tree import SyntaxNode


class Flow(NamedTuple):
    """Token number `place` with text `name` gets its value from tokens `source_places` with texts `sources`."""

    name: str
    place: int
    relation: Literal["comesFrom", "computedFrom"]
    sources: tuple[str, ...]
    source_places: tuple[int, ...]


def data_flow(root: SyntaxNode, source: bytes, language: str) -> list[Flow]:
    """Flows of a tree in the evaluator's form, one per token that takes part in any, in the order of the tokens.

    Where a statement lacks a part that the walk needs, or nesting is too deep, there is no flow at all, as in the
    evaluator.

    Source: CodeT5 `evaluator/CodeBLEU/parser/DFG.py`, `get_data_flow` in `dataflow_match.py`.
    """
    walk = _Walk(FLOW_GRAMMARS[language], root, source)
    try:
        flows = walk.visit(root, {})[0]
    except (LookupError, RecursionError):
        return []
    flows.sort(key=lambda flow: flow.place)
    connected = {place for flow in flows if flow.source_places for place in (flow.place, *flow.source_places)}
    merged: dict[int, Flow] = {}
    for flow in flows:
        if flow.place in connected:
            known = merged.get(flow.place)
            merged[flow.place] = flow if known is None else _joined(known, flow)
    return list(merged.values())


def _unique(*parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for part in parts for item in part))


def _joined(one: Flow, other: Flow) -> Flow:
    # The evaluator takes a set here, whose order changes from run to run; first come, first named.
    places = tuple(dict.fromkeys((*one.source_places, *other.source_places)))
    return one._replace(sources=_unique(one.sources, other.sources), source_places=places)


def _is_token(node: SyntaxNode) -> bool:
    whole = not node.children or node.kind in {"string_literal", "string", "character_literal"}
    return whole and node.kind != "comment"


def _tokens(node: SyntaxNode) -> list[SyntaxNode]:
    found, stack = [], [node]
    while stack:
        node = stack.pop()
        if _is_token(node):
            found.append(node)
        else:
            stack.extend(reversed(node.children))
    return found


States = dict[str, list[int]]
"""Tokens that last gave each name its value."""
Visited = tuple[list[Flow], States]


class _Walk:
    def __init__(self, grammar: FlowGrammar, root: SyntaxNode, source: bytes) -> None:
        self.grammar = grammar
        self.tokens = {
            (node.start, node.end): (place, source[node.start : node.end].decode("utf-8", errors="replace"))
            for place, node in enumerate(_tokens(root))
        }

    def visit(self, node: SyntaxNode, states: States) -> Visited:
        g, kind = self.grammar, node.kind
        if not g.shares_state or _is_token(node):
            states = states.copy()
        if _is_token(node):
            return self._token(node, states)
        if kind in g.definitions:
            return self._definition(node, states)
        if kind in g.assignments:
            return self._parallel_assignment(node, states) if g.parallel else self._assignment(node, states)
        if kind in g.increments:
            names = self._names(node)
            return self._pairs(names, names, "computedFrom", states), states
        if kind in g.branches:
            return self._branch(node, states)
        if kind in g.loops:
            return self._loop(node, states)
        if kind in g.each_loops:
            return self._each_loop(node, states)
        if kind in g.repeats:
            flows, states = self._children([*node.children, *node.children], states)
            return _distinct(flows), states
        ordered = sorted(node.children, key=lambda child: child.kind not in g.first)
        return self._children(ordered, states)

    def _children(self, nodes: Iterable[SyntaxNode], states: States) -> Visited:
        flows: list[Flow] = []
        for node in nodes:
            new, states = self.visit(node, states)
            flows += new
        return flows, states

    def _names(self, node: SyntaxNode | None) -> list[tuple[int, str]]:
        """Tokens that are no keyword or punctuation."""
        if node is None:
            raise LookupError("a part of a statement is missing")
        found = [(token.kind, self.tokens[token.start, token.end]) for token in _tokens(node)]
        return [token for kind, token in found if kind != token[1]]

    def _token(self, node: SyntaxNode, states: States) -> Visited:
        place, text = self.tokens[node.start, node.end]
        if node.kind == text:
            return [], states
        if text in states:
            return [Flow(text, place, "comesFrom", (text,), tuple(states[text]))], states
        if node.kind == "identifier":
            states[text] = [place]
        return [Flow(text, place, "comesFrom", (), ())], states

    def _pairs(
        self,
        targets: list[tuple[int, str]],
        sources: list[tuple[int, str]],
        relation: Literal["comesFrom", "computedFrom"],
        states: States,
    ) -> list[Flow]:
        flows = []
        for place, text in targets:
            flows += [Flow(text, place, relation, (name,), (at,)) for at, name in sources]
            states[text] = [place]
        return flows

    def _definition(self, node: SyntaxNode, states: States) -> Visited:
        roles = self.grammar.definitions[node.kind]
        if roles is None:
            name, value = node.children[0], node.children[1] if len(node.children) == 2 else None
        else:
            name, value = _need(node, roles[0]), node.child(roles[1])
        targets = self._names(name)
        if value is None:
            for place, text in targets:
                states[text] = [place]
            return [Flow(text, place, "comesFrom", (), ()) for place, text in targets], states
        flows, states = self.visit(value, states)
        return flows + self._pairs(targets, self._names(value), "comesFrom", states), states

    def _assignment(self, node: SyntaxNode, states: States) -> Visited:
        right = _need(node, "right")
        flows, states = self.visit(right, states)
        pairs = self._pairs(self._names(node.child("left")), self._names(right), "computedFrom", states)
        return flows + pairs, states

    def _parallel_assignment(self, node: SyntaxNode, states: States) -> Visited:
        if node.kind == "for_in_clause":
            return self._parallel([_need(node, "left")], [node.children[-1]], states)
        if node.kind == "operator_assignment":
            return self._parallel([node.children[0]], [node.children[-1]], states)
        if node.child("right") is None and not self.grammar.shares_state:
            return [], states
        return self._parallel(*_sides(node, "left", "right"), states)

    def _parallel(self, left: list[SyntaxNode], right: list[SyntaxNode], states: States) -> Visited:
        flows, states = self._children(right, states)
        for target, value in zip(left, right, strict=False):
            sources = self._names(value)
            names, places = tuple(name for _, name in sources), tuple(place for place, _ in sources)
            for place, text in self._names(target):
                flows.append(Flow(text, place, "computedFrom", names, places))
                states[text] = [place]
        return flows, states

    def _branch(self, node: SyntaxNode, states: States) -> Visited:
        g = self.grammar
        flows: list[Flow] = []
        current, ends = states.copy(), []
        passed = False
        for child in node.children:
            if child.kind in g.alternatives or (g.sticky and passed):
                passed = True
                new, end = self.visit(child, states)
                ends.append(end)
            else:
                new, current = self.visit(child, current)
            flows += new
        ends.append(current)
        complete = "else" in node.kind or any("else" in child.kind for child in node.children)
        if g.keeps_before or not complete:
            ends.append(states)
        joined: dict[str, set[int]] = {}
        for end in ends:
            for name, places in end.items():
                joined.setdefault(name, set()).update(places)
        return flows, {name: sorted(places) for name, places in joined.items()}

    def _loop(self, node: SyntaxNode, states: States) -> Visited:
        flows, states = self._children(node.children, states)
        after = self.grammar.loops[node.kind]
        position = next((i for i, child in enumerate(node.children) if child.kind == after), None)
        if position is not None:
            update = node.children[position].child("update") if after == "for_clause" else None
            again = [*([update] if update is not None else []), *node.children[position + 1 :]]
            new, states = self._children(again, states)
            flows += new
        return _distinct(flows), states

    def _each_loop(self, node: SyntaxNode, states: States) -> Visited:
        flows: list[Flow] = []
        for _ in range(2):
            new, states = self._each_target(node, states)
            flows += new
            body = node.children[-1] if node.kind == "for_statement" else _need(node, "body")
            # In Python the last child is an else when the loop has one, and the evaluator then skips the body.
            if node.kind != "for_statement" or body.kind == "block":
                new, states = self.visit(body, states)
                flows += new
        return _distinct(flows), states

    def _each_target(self, node: SyntaxNode, states: States) -> Visited:
        roles = self.grammar.each_loops[node.kind]
        if roles is None:
            variables = [child for child in node.children if child.kind == "variable_name"]
            if len(variables) < 2:
                raise LookupError("a loop over something else than a variable")
            value, target = variables[:2]
        else:
            target, value = _need(node, roles[0]), _need(node, roles[1])
        if node.kind == "for_statement":
            return self._parallel(*_sides(node, "left", "right"), states)
        if self.grammar.parallel:
            return self._parallel([target], [value], states)
        flows, states = self.visit(value, states)
        return flows + self._pairs(self._names(target), self._names(value), "computedFrom", states), states


def _need(node: SyntaxNode, role: str) -> SyntaxNode:
    child = node.child(role)
    if child is None:
        raise LookupError(f"{node.kind} without {role}")
    return child


def _sides(node: SyntaxNode, left: str, right: str) -> tuple[list[SyntaxNode], list[SyntaxNode]]:
    """The parts of both sides when there are as many on either, else the sides as wholes."""
    sides = [_need(node, left), _need(node, right)]
    parts = [[child for child in side.children if child.kind != ","] for side in sides]
    if len(parts[0]) != len(parts[1]) or not parts[0]:
        return [sides[0]], [sides[1]]
    return parts[0], parts[1]


def _distinct(flows: list[Flow]) -> list[Flow]:
    """Flows of a body that ran twice: one for each token and relation, from all its sources."""
    joined: dict[tuple[str, int, str], Flow] = {}
    for flow in flows:
        key = (flow.name, flow.place, flow.relation)
        known = joined.get(key)
        if known is None:
            joined[key] = flow
        else:
            both = _joined(known, flow)
            joined[key] = both._replace(source_places=tuple(sorted(both.source_places)))
    return list(joined.values())
