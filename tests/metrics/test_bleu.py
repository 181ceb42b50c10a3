import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.errors import DataError
from leaven.metrics.bleu import clipped_matches, corpus_bleu, ngrams, smoothed_bleu4

FIGURES = json.loads(Path(__file__).with_name("official_figures.json").read_text(encoding="utf-8"))
SUMMARIES, CODE = FIGURES["summaries"], FIGURES["code"]
TOKENS = ["the", "a", "cat", "sat", "on", "mat", ".", ",", "(", "x_1", "3.5", "don't"]
WORDS = st.lists(st.sampled_from(TOKENS), min_size=1, max_size=12)


@pytest.mark.parametrize("number", range(len(SUMMARIES)))
def test_sentence_equals_the_official_figures(number: int) -> None:
    pair = SUMMARIES[number]
    predictions, references = [pair["prediction"]], [pair["references"]]
    assert smoothed_bleu4(predictions, references) == pytest.approx(pair["smoothed"], rel=1e-8, abs=1e-8)
    # The evaluator divides by zero for an empty prediction.
    assert corpus_bleu(predictions, references) == pytest.approx(pair["bleu"] or 0.0, abs=1e-7)


def test_corpus_equals_the_official_figures() -> None:
    predictions, references = [pair["prediction"] for pair in SUMMARIES], [pair["references"] for pair in SUMMARIES]
    assert smoothed_bleu4(predictions, references) == pytest.approx(FIGURES["summaries_smoothed"], abs=1e-7)
    assert corpus_bleu(predictions, references) == pytest.approx(FIGURES["summaries_bleu"], abs=1e-7)


@pytest.mark.parametrize("language", CODE)
def test_code_equals_the_official_figures(language: str) -> None:
    pairs = CODE[language]["pairs"]
    for pair in pairs:
        assert corpus_bleu([pair["prediction"]], [pair["reference"]]) == pytest.approx(pair["bleu"], abs=1e-7)
    predictions, references = [pair["prediction"] for pair in pairs], [pair["reference"] for pair in pairs]
    assert corpus_bleu(predictions, references) == pytest.approx(CODE[language]["corpus_bleu"], abs=1e-7)


@given(st.lists(WORDS.map(" ".join), min_size=1, max_size=4))
def test_perfect_is_100(texts: list[str]) -> None:
    assert smoothed_bleu4(texts, texts) == pytest.approx(100)
    assert corpus_bleu(texts, texts) == pytest.approx(100)


@given(st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=5), st.randoms())
def test_range_order_and_letter_case(pairs: list[tuple[str, str]], random: object) -> None:
    predictions, references = map(list, zip(*pairs, strict=True))
    smoothed, corpus = smoothed_bleu4(predictions, references), corpus_bleu(predictions, references)
    assert 0 <= smoothed <= 100 + 1e-9
    assert 0 <= corpus <= 100 + 1e-9
    assert smoothed_bleu4([p.upper() for p in predictions], references) == pytest.approx(smoothed)
    assert smoothed_bleu4(predictions[::-1], references[::-1]) == pytest.approx(smoothed)
    assert corpus_bleu(predictions[::-1], references[::-1]) == pytest.approx(corpus)
    one_by_one = [smoothed_bleu4([p], [r]) for p, r in pairs]
    assert smoothed == pytest.approx(math.fsum(one_by_one) / len(one_by_one))


@given(WORDS, WORDS, WORDS)
def test_a_longer_reference_never_lowers_the_score(
    prediction: list[str], reference: list[str], more: list[str]
) -> None:
    longer = reference + more
    if len(prediction) >= len(longer):
        alone = smoothed_bleu4([" ".join(prediction)], [" ".join(reference)])
        both = smoothed_bleu4([" ".join(prediction)], [[" ".join(reference), " ".join(longer)]])
        assert both >= alone - 1e-9


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3), st.integers(1, 4))
def test_matches_equal_their_definition(tokens: list[str], references: list[list[str]], order: int) -> None:
    def count(words: list[str], gram: tuple[str, ...]) -> int:
        return sum(tuple(words[i : i + order]) == gram for i in range(len(words) - order + 1))

    grams = {tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)}
    assert ngrams(tokens, order) == {gram: count(tokens, gram) for gram in grams}
    expected = sum(min(count(tokens, gram), max(count(words, gram) for words in references)) for gram in grams)
    assert clipped_matches(tokens, references, order) == expected


def test_unsmoothed_orders_agree_with_sacrebleu() -> None:
    """Where every order matches often, add-one smoothing vanishes and BLEU is the common one."""
    sacrebleu = pytest.importorskip("sacrebleu")
    reference = [f"w{i % 97} v{i % 89} u{i % 83}" for i in range(4000)]
    prediction = [text if i % 7 else f"w{i % 97} x y" for i, text in enumerate(reference)]
    joined = [" ".join(prediction)], [" ".join(reference)]
    common = sacrebleu.corpus_bleu(joined[0], [joined[1]], tokenize="none", force=True).score
    assert corpus_bleu(*joined) == pytest.approx(common, abs=0.01)


@pytest.mark.parametrize("metric", [smoothed_bleu4, corpus_bleu])
def test_bad_inputs_are_named(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(DataError, match="2 predictions for 1 references"):
        metric(["a", "b"], ["a"])
    with pytest.raises(DataError, match="no predictions"):
        metric([], [])
    with pytest.raises(DataError, match="prediction 1 has an empty list"):
        metric(["a", "b"], [["a"], []])
    with pytest.raises(DataError, match="not a single string"):
        metric("ab", "ab")


def test_empty_references_are_named() -> None:
    with pytest.raises(DataError, match="all references are empty"):
        corpus_bleu(["a"], [" "])
