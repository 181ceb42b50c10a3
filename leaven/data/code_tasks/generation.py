"""Tasks of generation: write a body, write it in another style, repair it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from leaven.data.code_tasks.scopes import choices_of, parsed
from leaven.data.code_tasks.understanding import swapped_identifier
from leaven.data.examples import CodeExample, Pair


def body_generation(examples: Sequence[CodeExample]) -> list[Pair]:
    """Documentation and signature to the body, for documented functions of one statement other than `pass`."""
    pairs = []
    for example, function in parsed(examples):
        if example.docstring is None or len(function.body) != 1:
            continue
        statement = function.body[0]
        if isinstance(statement, ast.Pass) or not isinstance(
            statement, ast.Return | ast.Expr | ast.Raise | ast.Assign | ast.AugAssign
        ):
            continue
        body = ast.unparse(statement)
        function.body = [ast.Pass()]
        signature = ast.unparse(function).removesuffix("    pass").rstrip()
        pairs.append(Pair(f"{example.docstring}\n{signature}", body))
    return pairs


class LoopsForComprehensions(ast.NodeTransformer):
    """`x = [e for i in s if c]` and `return [e for ...]` as a loop that appends."""

    changed = False

    def _loop(self, comprehension: ast.ListComp, name: str) -> list[ast.stmt]:
        self.changed = True
        append = ast.parse(f"{name}.append(0)").body[0]
        call = append.value  # type: ignore[attr-defined]
        call.args = [comprehension.elt]
        body: list[ast.stmt] = [append]
        for clause in reversed(comprehension.generators):
            for test in reversed(clause.ifs):
                body = [ast.If(test, body, [])]
            body = [ast.For(clause.target, clause.iter, body, [])]
        return [*ast.parse(f"{name} = []").body, *body]

    def visit_Assign(self, node: ast.Assign) -> ast.stmt | list[ast.stmt]:
        """A list that gets a name."""
        plain = len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
        if plain and isinstance(node.value, ast.ListComp) and not _awaits(node.value):
            name = node.targets[0].id  # type: ignore[attr-defined]
            # Inside the comprehension the name still means what it meant before.
            if not any(isinstance(inner, ast.Name) and inner.id == name for inner in ast.walk(node.value)):
                return self._loop(node.value, name)
        return node

    def visit_Return(self, node: ast.Return) -> ast.stmt | list[ast.stmt]:
        """A list that is returned, by way of the name `result`."""
        if isinstance(node.value, ast.ListComp) and not _awaits(node.value):
            names = {inner.id for inner in ast.walk(node.value) if isinstance(inner, ast.Name)}
            if "result" not in names:
                return [*self._loop(node.value, "result"), *ast.parse("return result", mode="exec").body]
        return node


def _awaits(node: ast.ListComp) -> bool:
    asynchronous = any(clause.is_async for clause in node.generators)
    return asynchronous or any(isinstance(inner, ast.Await | ast.NamedExpr | ast.Yield) for inner in ast.walk(node))


class FormatForFStrings(ast.NodeTransformer):
    """`f"{x!r:>5} y"` as `"{!r:>5} y".format(x)`, where no format holds another value."""

    changed = False

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        """One f-string."""
        text, values = "", []
        for part in node.values:
            if isinstance(part, ast.Constant):
                text += str(part.value).replace("{", "{{").replace("}", "}}")
            elif isinstance(part, ast.FormattedValue):
                spec = part.format_spec
                if spec is not None and not (
                    isinstance(spec, ast.JoinedStr) and all(isinstance(v, ast.Constant) for v in spec.values)
                ):
                    return node
                conversion = "" if part.conversion == -1 else f"!{chr(part.conversion)}"
                written = "".join(str(v.value) for v in spec.values) if isinstance(spec, ast.JoinedStr) else ""  # type: ignore[attr-defined]
                text += "{" + conversion + (f":{written}" if written else "") + "}"
                values.append(part.value)
        if not values:
            return node
        self.changed = True
        return ast.Call(ast.Attribute(ast.Constant(text), "format", ast.Load()), values, [])


def style_translation(examples: Sequence[CodeExample]) -> list[Pair]:
    """A function with comprehensions or f-strings to the same function with loops and `format`.

    Both sides are written by `ast.unparse`, so that the style is all that differs.
    """
    pairs = []
    for _, function in parsed(examples):
        before = ast.unparse(function)
        loops, formats = LoopsForComprehensions(), FormatForFStrings()
        tree = formats.visit(loops.visit(function))
        if loops.changed or formats.changed:
            pairs.append(Pair(before, ast.unparse(ast.fix_missing_locations(tree))))
    return pairs


_FLIPPED_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


def _broken_by_operator(example: CodeExample) -> str | None:
    """One operator turned into its opposite: comparison, and/or, plus/minus, not."""
    tree = ast.parse(example.code)
    breaks: list[Callable[[], None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _FLIPPED_COMPARISONS:
            breaks.append(lambda n=node: n.ops.__setitem__(0, _FLIPPED_COMPARISONS[type(n.ops[0])]()))  # type: ignore[misc]
        elif isinstance(node, ast.BoolOp):
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            breaks.append(lambda n=node, o=other: setattr(n, "op", o))  # type: ignore[misc]
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
            turned = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            breaks.append(lambda n=node, o=turned: setattr(n, "op", o))  # type: ignore[misc]
    if not breaks:
        return None
    choices_of(example, "operator").choice(breaks)()
    return ast.unparse(tree)


def refinement(examples: Sequence[CodeExample]) -> list[Pair]:
    """A function with one wrong operator or one wrong local name to the function as it was.

    Both sides are written by `ast.unparse`.
    """
    pairs = []
    for example, function in parsed(examples):
        by_name = choices_of(example, "refine").random() < 0.5
        broken = swapped_identifier(example, function) if by_name else _broken_by_operator(example)
        if broken is None:
            continue
        source, target = ast.unparse(ast.parse(broken)), ast.unparse(function)
        if source != target:
            pairs.append(Pair(source, target))
    return pairs
