import ast

import pytest

from leaven.data.code_tasks.desugaring import LONGEST, desugaring
from leaven.data.examples import CodeExample, Pair
from leaven.data.stdlib_code import stdlib_code


def pair_of(statement: str) -> Pair:
    body = "\n    ".join(statement.splitlines())
    (pair, *_) = desugaring([CodeExample(f"def f():\n    {body}", "python")])
    return pair


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x += y * 2", "x = x + y * 2"),
        ("o.n |= 4", "o.n = o.n | 4"),
        ("z = a if c else b", "if c:\n    z = a\nelse:\n    z = b"),
        ("return a if c else b", "if c:\n    return a\nelse:\n    return b"),
        ("z = 0 <= x < y", "z = 0 <= x and x < y"),
        ("z = x in (1, 3)", "z = x == 1 or x == 3"),
        ("z = '%s is %r, 100%% {%d}' % (a, b, x)", "z = '{} is {!r}, 100% {{{:d}}}'.format(a, b, x)"),
        ("z = f'{a}-{b!r:>5}'", "z = '{}-{!r:>5}'.format(a, b)"),
        ("z = [i + 1 for i in s if i]", "z = []\nfor i in s:\n    if i:\n        z.append(i + 1)"),
        ("assert x, 'bad'", "if not x:\n    raise AssertionError('bad')"),
    ],
)
def test_statements_are_written_out_and_do_the_same(before: str, after: str) -> None:
    pair = pair_of(before)
    assert (pair.source, pair.target) == (ast.unparse(ast.parse(before)), after)
    if "return" in before:
        return
    for c in (True, False):
        values = []
        for text in (pair.source, pair.target):
            space = {"x": 3, "y": 5, "a": "p", "b": "q", "c": c, "s": [0, 1, 2], "o": type("O", (), {"n": 1})()}
            exec(text, space)
            values.append({name: space.get(name) for name in ("x", "z")} | {"n": space["o"].n})
        assert values[0] == values[1]


@pytest.mark.parametrize(
    "statement",
    [
        "x[f()] += 1",
        "z = 0 <= f() < y",
        "z = f() in (1, 3)",
        "z = 'x%s' % value",
        "z = '%5.2f' % (x,)",
        "z = '%s %s' % (x,)",
        "z = x in table",
        "z = x + 1",
    ],
)
def test_what_would_be_evaluated_twice_or_means_something_else_stays(statement: str) -> None:
    assert desugaring([CodeExample(f"def f():\n    {statement}", "python")]) == []


def test_statements_of_the_standard_library() -> None:
    pairs = desugaring(stdlib_code("valid"))
    assert len(pairs) > 200
    assert len({pair.source for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert max(len(pair.source), len(pair.target)) <= LONGEST
        assert pair.source != pair.target
        if "return" not in pair.target and "yield" not in pair.target and "await" not in pair.target:
            ast.parse(pair.target)
        # Nothing is left to write out.
        again = desugaring(
            [CodeExample("def f():\n" + "\n".join(f"    {r}" for r in pair.target.splitlines()), "python")]
        )
        assert pair.target not in {one.source for one in again}
