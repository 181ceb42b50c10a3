import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaven.data.grammars import LANGUAGES
from leaven.errors import ConfigError, DataError
from leaven.metrics.ast_match import ast_match
from leaven.metrics.codebleu import codebleu, codebleu_terms
from leaven.metrics.data_flow_match import data_flow_match
from leaven.metrics.ngram_match import ngram_match, weighted_ngram_match

CODE = json.loads(Path(__file__).with_name("official_figures.json").read_text(encoding="utf-8"))["code"]
EXAMPLES = {
    "python": ("def f(a):\n    b = a + 1\n    return b", "def f(a):\n    pass"),
    "java": ("class A { int f ( int a ) { int b = a + 1 ; return b ; } }", "class A { void f ( ) { g ( ) ; } }"),
    "c": ("int f(int a) { int b = a + 1; return b; }", "void f(void) { g(); }"),
    "c_sharp": ("int F(int a) { int b = a + 1; return b; }", "void F() { G(); }"),
    "javascript": ("function f(a) { let b = a + 1; return b; }", "function f() { g(); }"),
    "go": ("func f(a int) int { var b = a + 1; return b }", "func f() { g() }"),
    "ruby": ("def f(a)\n  b = a + 1\n  b\nend", "def f\n  g()\nend"),
    "php": ("function f($a) { $b = $a + 1; return $b; }", "function f() { g(); }"),
}


@pytest.mark.parametrize(
    ("language", "number"), [(name, i) for name, figures in CODE.items() for i in range(len(figures["pairs"]))]
)
def test_pair_equals_the_official_figures(language: str, number: int) -> None:
    pair = CODE[language]["pairs"][number]
    predictions, references, terms = [pair["prediction"]], [pair["reference"]], pair["terms"]
    assert codebleu_terms(predictions, references, language) == pytest.approx(terms, abs=1e-7)
    assert codebleu(predictions, references, language) == pytest.approx(math.fsum(terms) / 4, abs=1e-7)


@pytest.mark.parametrize("language", CODE)
def test_corpus_equals_the_official_figures(language: str) -> None:
    figures = CODE[language]
    predictions = [pair["prediction"] for pair in figures["pairs"]]
    references = [pair["reference"] for pair in figures["pairs"]]
    expected = pytest.approx(figures["corpus_terms"], abs=1e-7)
    assert codebleu_terms(predictions, references, language) == expected
    following = [*predictions[2:], predictions[1]]
    two = list(zip(references[1:], following, strict=True))
    expected = pytest.approx(figures["two_references_terms"], abs=1e-7)
    assert codebleu_terms(predictions[1:], two, language) == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_perfect_is_100_and_75_without_data_flow(language: str) -> None:
    flowing, still = EXAMPLES[language]
    # Four tokens between white space at least, for an n-gram of every order.
    assert codebleu([flowing], [flowing], language) == pytest.approx(100)
    if len(still.split()) >= 4:
        assert codebleu([still], [still], language) == pytest.approx(75)
    assert data_flow_match([still], [still], language) == 0
    assert ast_match([still], [still], language) == 100


@pytest.mark.parametrize("language", LANGUAGES)
def test_renaming_changes_neither_syntax_nor_data_flow(language: str) -> None:
    code = EXAMPLES[language][0]
    renamed = code.replace("a +", "count +").replace("a)", "count)").replace(" a ", " count ").replace("(a ", "(count ")
    assert renamed != code
    assert ast_match([renamed], [code], language) == 100
    assert data_flow_match([renamed], [code], language) == 100
    assert ngram_match([renamed], [code]) < 100


@pytest.mark.parametrize("language", LANGUAGES)
def test_another_source_of_a_value_is_another_data_flow(language: str) -> None:
    code = EXAMPLES[language][0]
    other = code.replace("return b", "return a").replace("return $b", "return $a").replace("  b\nend", "  a\nend")
    assert other != code
    assert data_flow_match([other], [code], language) < 100


def test_keywords_weigh_five_times_as_much() -> None:
    reference = "return total of it"
    with_keyword = weighted_ngram_match(["return"], [reference], "python")
    with_name = weighted_ngram_match(["total"], [reference], "python")
    # One token of four: only the first order differs, and the score is a fourth root.
    assert (with_keyword / with_name) ** 4 == pytest.approx(5)


def test_aliases_name_the_same_language() -> None:
    code = EXAMPLES["c_sharp"]
    assert codebleu(code[:1], code[1:], "C#") == codebleu(code[:1], code[1:], "c_sharp")


def test_weights_choose_the_terms() -> None:
    pair = CODE["java"]["pairs"][3]
    for position, term in enumerate(pair["terms"]):
        weights = tuple(float(i == position) for i in range(4))
        got = codebleu([pair["prediction"]], [pair["reference"]], "java", weights)  # type: ignore[arg-type]
        assert got == pytest.approx(term, abs=1e-7)


@given(st.sampled_from(LANGUAGES), st.text(max_size=40), st.text(alphabet="abx ()=;:+\n{}'\"$#/*", max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_has_a_score(language: str, prediction: str, reference: str) -> None:
    for term in codebleu_terms([prediction], [reference], language):
        assert 0 <= term <= 100 + 1e-9


def test_deep_nesting_has_a_score() -> None:
    deep = "x = " + "(" * 3000 + "1" + ")" * 3000
    assert ast_match([deep], [deep], "python") == 100
    assert data_flow_match(["y = x"], [deep], "python") == 0


@pytest.mark.parametrize("metric", [codebleu, ast_match, data_flow_match, weighted_ngram_match])
def test_bad_inputs_are_named(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(DataError, match="1 predictions for 2 references"):
        metric(["a"], ["a", "b"], "java")
    with pytest.raises(DataError, match="no predictions"):
        metric([], [], "java")
    with pytest.raises(ConfigError, match="unknown programming language 'cobol'"):
        metric(["a"], ["a"], "cobol")


@pytest.mark.parametrize("weights", [(0.5, 0.5, 0.5, 0.5), (1.5, -0.5, 0.0, 0.0), (1.0,)])
def test_bad_weights_are_named(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="whose sum is 1"):
        codebleu(["a"], ["a"], "java", weights)  # type: ignore[arg-type]
