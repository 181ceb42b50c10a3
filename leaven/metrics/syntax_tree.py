"""Syntax trees that can be rewritten, read from tree-sitter's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leaven.data.grammars import parse, resolve_language

if TYPE_CHECKING:
    import tree_sitter

# What a C# member outside a class is read as.
_LOOSE = frozenset({"local_function_statement", "local_declaration_statement", "ERROR"})


@dataclass(slots=True, eq=False)
class SyntaxNode:
    """A node of a concrete syntax tree.

    kind: the grammar's name of it. named: False for punctuation and keywords. role: its field in the parent.
    start, end: byte offsets in the parsed source. missing: the parser invented it to go on.
    """

    kind: str
    start: int
    end: int
    named: bool = True
    role: str | None = None
    children: list[SyntaxNode] = field(default_factory=list)
    missing: bool = False

    def child(self, role: str) -> SyntaxNode | None:
        """The first child in a role."""
        return next((child for child in self.children if child.role == role), None)

    def expression(self) -> str:
        """As an S-expression of the named nodes, as tree-sitter prints it."""
        return self._expressions()[-1]

    def subtree_expressions(self) -> list[str]:
        """S-expressions of this node and of all below it that have children."""
        nodes = list(self.walk())[::-1]
        return [text for node, text in zip(nodes, self._expressions(), strict=True) if node.children or node is self]

    def _expressions(self) -> list[str]:
        """Of all nodes in the reversed order of `walk`, so that children come before their parents."""
        texts: dict[int, str] = {}
        for node in list(self.walk())[::-1]:
            parts = [node.kind]
            if node.missing:
                parts = [f"MISSING {node.kind}" if node.named else f'MISSING "{node.kind}"']
            for child in node.children:
                if child.named or child.missing:
                    below = texts[id(child)]
                    parts.append(below if child.role is None else f"{child.role}: {below}")
            texts[id(node)] = f"({' '.join(parts)})"
        return list(texts.values())

    def walk(self) -> Iterator[SyntaxNode]:
        """This node and all below it, in the order of the source."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))


def read_tree(root: tree_sitter.Node) -> SyntaxNode:
    """Copy a tree of tree-sitter's."""
    cursor = root.walk()

    def copy() -> SyntaxNode:
        node = cursor.node or root
        return SyntaxNode(
            node.type, node.start_byte, node.end_byte, node.is_named, cursor.field_name, missing=node.is_missing
        )

    copied = copy()
    path = [copied]
    while True:
        if cursor.goto_first_child():
            path.append(copy())
        else:
            while not cursor.goto_next_sibling():
                if not cursor.goto_parent():
                    return copied
                path.pop()
            path[-1] = copy()
        path[-2].children.append(path[-1])


def syntax_tree(code: str, language: str) -> tuple[SyntaxNode, bytes]:
    """The tree of a file or fragment, and the source that its offsets refer to.

    A C# member is legal inside a class alone; it is parsed in one, and its tree is that of a file of members.

    Raises: ConfigError for an unknown language.
    """
    language = resolve_language(language)
    source = code.encode("utf-8", errors="replace")
    root = parse(source, language).root_node
    if language == "c_sharp" and any(
        node.type in _LOOSE for child in root.children for node in (child, *child.children)
    ):
        # A constructor is legal in the class of its own name alone.
        name = re.search(rb"(\w+)\s*\(", source)
        whole = b"class %b {\n%b\n}" % (name[1] if name else b"Fragment", source)
        wrapped = parse(whole, language).root_node
        if not wrapped.has_error:
            body = next(node for node in read_tree(wrapped).walk() if node.kind == "declaration_list")
            return SyntaxNode("compilation_unit", 0, len(whole), children=body.children[1:-1]), whole
    return read_tree(root), source
