"""Trees as the grammars of CodeBLEU's official evaluator build them.

The evaluator compares trees of the tree-sitter grammars of 2020 that it ships. Grammars have been refined since, so the
same code has other nodes today and would score otherwise. Trees of Python, Java and C# are put back into the old form
here; the other languages, for which no official figures exist, keep today's form but for the nodes that the data flow
depends on.

Where the old grammar failed to parse, its recovery cannot be reproduced in general, with one exception because most
data holds it: a Java method outside a class. Other known differences: `not a and b` in Python, `x?.y()` and `await f()`
in C# were nested otherwise, and a C# statement outside a method was read as a declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from leaven.metrics.syntax_tree import SyntaxNode

Rewrite = Callable[[SyntaxNode, bytes], "list[SyntaxNode]"]


def as_evaluator_tree(root: SyntaxNode, source: bytes, language: str) -> SyntaxNode:
    """Rewrite a tree, in place, into the evaluator's form; `language` is a canonical name."""
    rewrite = _REWRITES.get(language)
    if rewrite is None:
        return root
    top = SyntaxNode("", root.start, root.end, children=[root])
    # Children before their parents.
    for node in list(top.walk())[::-1]:
        node.children = [new for child in node.children for new in rewrite(child, source)]
    return top.children[0]


def _wrapped(kind: str, children: Iterable[SyntaxNode], role: str | None = None) -> SyntaxNode:
    children = list(children)
    for child in children:
        child.role = None
    return SyntaxNode(kind, children[0].start, children[-1].end, role=role, children=children)


def _leaf(node: SyntaxNode) -> None:
    node.children = []


def _without_roles(node: SyntaxNode, *roles: str) -> None:
    for child in node.children:
        if not roles or child.role in roles:
            child.role = None


_TUPLES = {"pattern_list": "expression_list", "tuple_pattern": "tuple", "list_pattern": "list"}
_SPLATS = {"list_splat_pattern": "list_splat", "dictionary_splat_pattern": "dictionary_splat"}
_NO_LIST = {"expression_list", "variables", "yield", "assignment", "augmented_assignment"}


def _as_list(child: SyntaxNode, kind: str) -> SyntaxNode:
    if child.kind == "expression_list":
        child.kind = kind
        return child
    if child.kind in _NO_LIST:
        return child
    return _wrapped(kind, [child], child.role)


def _python(node: SyntaxNode, _: bytes) -> list[SyntaxNode]:
    kind = node.kind
    node.kind = _SPLATS.get(kind, _TUPLES.get(kind, kind))
    if kind in {"string_start", "string_end"}:
        node.kind, node.named = '"', False
    elif kind == "string_content":
        for child in node.children:
            child.role = None
        return [child for child in node.children if child.named]
    elif kind in {"interpolation", "format_expression"}:
        _without_roles(node)
    elif kind in {"not in", "is not"}:
        first, second = kind.split()
        middle = node.start + len(first)
        return [
            SyntaxNode(first, node.start, middle, named=False),
            SyntaxNode(second, node.end - len(second), node.end, named=False),
        ]
    elif kind in {"return_statement", "yield", "raise_statement", "delete_statement"}:
        _list_operand(node)
    elif kind in {"assignment", "augmented_assignment"}:
        for i, child in enumerate(node.children):
            if child.role in {"left", "right"}:
                node.children[i] = _as_list(child, "expression_list")
    elif kind in {"for_statement", "for_in_clause"}:
        for i, child in enumerate(node.children):
            if child.role == "left":
                node.children[i] = _as_list(child, "variables")
            elif child.role == "right" and kind == "for_statement":
                node.children[i] = _as_list(child, "expression_list")
    elif kind in {"with_clause", "as_pattern_target", "as_pattern"}:
        for child in node.children:
            if kind == "as_pattern":
                child.role = "alias" if child.role == "alias" or child is node.children[-1] else None
        if kind == "as_pattern_target":
            node.children[0].role = node.role
        return node.children
    elif kind == "with_item":
        for child in node.children:
            if child.named and child.role != "alias":
                child.role = "value"
    elif kind == "except_clause":
        _without_roles(node)
    elif kind == "decorator":
        return [_decorator(node)]
    return [node]


def _list_operand(node: SyntaxNode) -> None:
    for i, child in enumerate(node.children):
        if child.named and child.role is None and child.kind != "comment":
            node.children[i] = _as_list(child, "expression_list")
            break


def _decorator(node: SyntaxNode) -> SyntaxNode:
    """`@a.b(1)` was a dotted name with arguments."""
    position = next((i for i, child in enumerate(node.children) if child.named), None)
    if position is None:
        return node
    target, arguments = node.children[position], []
    if target.kind == "call" and target.children:
        arguments = target.children[1:]
        target = target.children[0]
    names = [leaf for leaf in target.walk() if not leaf.children]
    if all(leaf.kind in {"identifier", "."} for leaf in names):
        node.children[position : position + 1] = [_wrapped("dotted_name", names), *arguments]
    return node


def _java(node: SyntaxNode, _: bytes) -> list[SyntaxNode]:
    kind = node.kind
    if kind in {"string_literal", "character_literal"}:
        _leaf(node)
    elif kind in {"line_comment", "block_comment"}:
        node.kind = "comment"
    elif kind == "switch_expression":
        node.kind = "switch_statement"
    elif kind == "switch_block_statement_group":
        label, colon, *statements = node.children
        if label.kind == "switch_label" and colon.kind == ":":
            label.children.append(colon)
            return [label, *statements]
    elif kind == "type_parameter":
        for child in node.children:
            if child.kind == "type_identifier":
                child.kind = "identifier"
                break
    elif kind == "program":
        node.children = [new for child in node.children for new in _loose_java_method(child)]
    return [node]


def _loose_java_method(node: SyntaxNode) -> list[SyntaxNode]:
    """A method outside a class, as the old grammar recovered from it: a declaration, an error and a block."""
    parts = {child.role or child.kind: child for child in node.children}
    if node.kind == "constructor_declaration" and "type_parameters" not in parts and "body" in parts:
        *head, body = node.children
        body.role, body.kind = None, "block"
        return [_wrapped("ERROR", head), body]
    if node.kind != "method_declaration" or "type_parameters" in parts or "body" not in parts:
        return [node]
    if parts["name"].missing:
        # Today's recovery from a constructor outside its class.
        parts["type"].kind = "identifier"
        head = [child for child in node.children if child is not parts["name"] and child is not parts["body"]]
        parts["body"].role = None
        return [_wrapped("ERROR", head), parts["body"]]
    name, formal, body = parts["name"], parts["parameters"], parts["body"]
    declarator = SyntaxNode("variable_declarator", name.start, name.end, role="declarator", children=[name])
    end = SyntaxNode(";", name.end, name.end, named=False, missing=True)
    declared = [child for child in node.children if child.kind == "modifiers" or child.role == "type"]
    declaration = SyntaxNode("local_variable_declaration", node.start, name.end, children=[*declared, declarator, end])
    after: list[SyntaxNode] = [_wrapped("ERROR", [formal])]
    if "throws" in parts:
        keyword, *thrown = parts["throws"].children
        after[0].children.append(keyword)
        thrown[0].kind = "identifier" if thrown[0].kind == "type_identifier" else thrown[0].kind
        stop = SyntaxNode(";", thrown[0].end, thrown[0].end, named=False, missing=True)
        after.append(SyntaxNode("expression_statement", thrown[0].start, stop.end, children=[thrown[0], stop]))
    body.role = None
    return [declaration, *after, body]


_C_SHARP_KINDS = {
    "foreach_statement": "for_each_statement",
    "typeof_expression": "type_of_expression",
    "sizeof_expression": "size_of_expression",
    "implicit_parameter": "identifier",
}
_C_SHARP_NO_ROLES = {
    "while_statement",
    "do_statement",
    "array_creation_expression",
    "type_of_expression",
    "size_of_expression",
    "type_parameter",
    "nullable_type",
    "from_clause",
}


def _c_sharp(node: SyntaxNode, source: bytes) -> list[SyntaxNode]:
    kind = node.kind = _C_SHARP_KINDS.get(node.kind, node.kind)
    if kind in _C_SHARP_NO_ROLES:
        _without_roles(node)
    elif kind == "predefined_type" and source[node.start : node.end] == b"void":
        node.kind = "void_keyword"
    elif kind == "this" and not node.named:
        # Named where it is an expression, by itself or before a member; a constructor's `this(...)` stays a keyword.
        return [SyntaxNode("this_expression", node.start, node.end, role=node.role, children=[node])]
    elif kind in {"constructor_initializer", "indexer_declaration", "parameter"}:
        node.children = [child.children[0] if child.kind == "this_expression" else child for child in node.children]
        for child in node.children:
            if kind == "parameter" and child.kind == "modifier":
                child.kind = "parameter_modifier"
                child.children = [SyntaxNode(source[child.start : child.end].decode(), child.start, child.end, False)]
    elif kind == "parameter_list":
        _parameter_array(node)
    elif kind == "lambda_expression":
        _without_roles(node, "parameters")
    elif kind == "goto_statement":
        for child in node.children:
            child.kind = "label_name" if child.kind == "identifier" else child.kind
    elif kind == "switch_section":
        _switch_labels(node)
    elif kind == "variable_declarator":
        _without_roles(node)
        position = next((i for i, child in enumerate(node.children) if child.kind == "="), None)
        if position is not None:
            node.children[position:] = [_wrapped("equals_value_clause", node.children[position:])]
    elif kind == "assignment_expression":
        operator = next((i for i, child in enumerate(node.children) if not child.named), None)
        if operator is not None:
            node.children[operator] = _wrapped("assignment_operator", [node.children[operator]])
    elif kind in {"string_literal", "character_literal"}:
        node.children = [child for child in node.children if not child.kind.endswith("_content")]
    elif kind in {"method_declaration", "delegate_declaration"}:
        for child in node.children:
            child.role = "type" if child.role == "returns" else child.role
    elif kind == "interpolation_brace":
        node.kind, node.named = source[node.start : node.end].decode(), False
    elif kind == "interpolated_string_expression":
        _interpolated_string(node)
    return [node]


def _parameter_array(node: SyntaxNode) -> None:
    position = next((i for i, child in enumerate(node.children) if child.kind == "params"), None)
    if position is not None:
        stop = len(node.children) - (node.children[-1].kind == ")")
        node.children[position:stop] = [_wrapped("parameter_array", node.children[position:stop])]


def _switch_labels(node: SyntaxNode) -> None:
    """`case 1:` was a label of its own around the constant."""
    colon = next((i for i, child in enumerate(node.children) if child.kind == ":"), None)
    if colon is None:
        return
    label = node.children[: colon + 1]
    constants = [
        constant for child in label for constant in (child.children if child.kind == "constant_pattern" else [child])
    ]
    kind = {"default": "default_switch_label", "case": "case_switch_label"}.get(label[0].kind)
    plain = all(child.kind == "constant_pattern" or not child.named for child in label)
    if kind is not None and plain:
        node.children[: colon + 1] = [_wrapped(kind, constants)]


def _interpolated_string(node: SyntaxNode) -> None:
    for child in node.children:
        child.kind = "interpolated_string_text" if child.kind == "string_content" else child.kind
    if len(node.children) > 1 and node.children[0].kind == "interpolation_start":
        dollar, quote = node.children[:2]
        node.children[:2] = [SyntaxNode('$"', dollar.start, quote.end, named=False)]


_INLINED = {
    "go": {"statement_list", "literal_element"},
    "javascript": {"else_clause"},
    "php": {"argument"},
    "ruby": {"body_statement", "block_body"},
}
_LEAVES = {
    "go": {"interpreted_string_literal", "raw_string_literal"},
    "javascript": set[str](),
    "php": {"encapsed_string", "string"},
    "ruby": set[str](),
}


def _other(language: str) -> Rewrite:
    inlined, leaves = _INLINED[language], _LEAVES[language]

    def rewrite(node: SyntaxNode, _: bytes) -> list[SyntaxNode]:
        if node.kind in inlined:
            return node.children
        if node.kind in leaves:
            node.children = []
            node.kind = "string" if node.kind == "encapsed_string" else node.kind
        elif node.kind == "template_string":
            node.children = [child for child in node.children if child.kind != "string_fragment"]
        return [node]

    return rewrite


_REWRITES: dict[str, Rewrite] = {
    "python": _python,
    "java": _java,
    "c_sharp": _c_sharp,
    **{language: _other(language) for language in _INLINED},
}
