import ast
import builtins

import pytest

from leaven.data.code_tasks.generation import body_generation, refinement, style_translation
from leaven.data.code_tasks.understanding import (
    clone_detection,
    defect_detection,
    disguised,
    name_prediction,
    summarization,
    swapped_identifier,
    variable_naming,
)
from leaven.data.examples import CodeExample
from leaven.data.stdlib_code import stdlib_code


@pytest.fixture(scope="module")
def library() -> list[CodeExample]:
    return stdlib_code("valid")


def example(code: str, name: str = "f", **rest: str) -> CodeExample:
    return CodeExample(code, "python", name=name, **rest)


def call(code: str, name: str, *arguments: object) -> object:
    scope: dict = {"__builtins__": builtins}
    exec(code, scope)
    return scope[name](*arguments)


def test_names_are_hidden_wherever_they_stand(library: list[CodeExample]) -> None:
    code = "def walk(tree):\n    '''walk'''\n    return [walk(t) for t in tree.walk]  # walk\n"
    (pair,) = name_prediction([example(code, "walk")])
    assert pair.source.count("<extra_id_0>") == 3 and pair.target == "walk"
    assert "'''walk'''" in pair.source and "# walk" in pair.source
    assert name_prediction([example("def __init__(self): pass", "__init__"), example("def f(): pass", "f")]) == []
    for pair in name_prediction(library):
        assert "<extra_id_0>" in pair.source.split("\n")[0] or "def" in pair.source


def test_defects_are_one_other_local_name_and_balanced(library: list[CodeExample]) -> None:
    code = "def f(a, b):\n    é = a + b\n    return é\n"
    broken = swapped_identifier(example(code), ast.parse(code).body[0])
    differing = [(x, y) for x, y in zip(code.split(), broken.split(), strict=True) if x != y]
    assert len(differing) == 1 and {*differing[0]} <= {"a", "b", "é"}
    pairs = defect_detection(library)
    share = sum(pair.target == "true" for pair in pairs) / len(pairs)
    assert abs(share - 0.5) < 0.05 and len(pairs) > 300
    by_code = {e.code for e in library}
    assert all((pair.source in by_code) == (pair.target == "false") for pair in pairs)
    assert pairs == defect_detection(library)
    some = library[:50]
    assert defect_detection(some) == [p for p in pairs if p in defect_detection(some)][: len(defect_detection(some))]


def test_clones_do_the_same_and_others_do_not_share_text(library: list[CodeExample]) -> None:
    code = "def f(a, b=2):\n    if a > b:\n        c = a - b\n    else:\n        c = b - a\n    return c * 10 + b\n"
    variant = disguised(example(code), ast.parse(code).body[0])
    assert variant != code and [call(variant, "f", n) for n in range(5)] == [call(code, "f", n) for n in range(5)]
    pairs = clone_detection(library)
    share = sum(pair.label for pair in pairs) / len(pairs)
    assert 0.4 < share < 0.6
    assert all(ast.parse(pair.second).body[0].name == "f" for pair in pairs)


def test_translation_keeps_the_meaning(library: list[CodeExample]) -> None:
    code = (
        "def f(rows):\n    kept = [r * 2 for r in rows if r % 2 for _ in range(r)]\n"
        "    return f'{len(kept)!r:>4} {{}} {kept}'\n"
    )
    (pair,) = style_translation([example(code)])
    assert "for r in rows:" in pair.target and ".format(" in pair.target and "f'" not in pair.target
    assert call(pair.target, "f", [1, 2, 3]) == call(code, "f", [1, 2, 3]) == "   4 {} [2, 6, 6, 6]"
    code = "def f(kept):\n    kept = [k for k in kept]\n    return [result for result in kept]\n"
    assert style_translation([example(code)]) == []
    for pair in style_translation(library):
        ast.parse(pair.target)


def test_refinement_restores_the_function(library: list[CodeExample]) -> None:
    pairs = refinement(library)
    assert len(pairs) > 300
    originals = {ast.unparse(ast.parse(e.code)) for e in library}
    for pair in pairs:
        assert pair.target in originals and pair.source != pair.target
        ast.parse(pair.source)


def test_bodies_and_summaries() -> None:
    made = example("def f(a, *, b: int = 2):\n    return a + b\n", docstring="Add.\nMore.")
    assert body_generation([made, example("def f(): return 1"), example("def f(): pass", docstring="x")]) == [
        body_generation([made])[0]
    ]
    (pair,) = body_generation([made])
    assert (pair.source, pair.target) == ("Add.\nMore.\ndef f(a, *, b: int=2):", "return a + b")
    long = example("def f(): pass", docstring="one two three four")
    assert [p.target for p in summarization([long, example("def f(): pass", docstring="Two words"), made])] == [
        "one two three four"
    ]


def test_a_variable_is_hidden_in_all_its_places_and_nowhere_else(library: list[CodeExample]) -> None:
    code = "def f(é: int, *, key=1):\n    é = é + o.é\n    return g(é, key=o.key)  # é\n"
    (pair,) = variable_naming([example(code)])
    assert pair.target == "é"
    hidden = "<extra_id_0>"
    assert pair.source == (
        f"def f({hidden}: int, *, key=1):\n    {hidden} = {hidden} + o.é\n    return g({hidden}, key=o.key)  # é\n"
    )
    pairs = variable_naming(library)
    assert len(pairs) > 500 and all(pair.source.count(hidden) > 1 for pair in pairs)
    originals = {e.code for e in library}
    assert all(pair.source.replace(hidden, pair.target) in originals for pair in pairs)
