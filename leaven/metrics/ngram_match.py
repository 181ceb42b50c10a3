"""The two n-gram terms of CodeBLEU: BLEU, and recall in which keywords count more."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leaven.data.grammars import resolve_language
from leaven.metrics.bleu import ORDER, clipped_matches, ngrams
from leaven.metrics.keywords import KEYWORDS
from leaven.metrics.pairs import References, reference_lists

_EPSILON = 0.1
"""Matches of an order that has none, so that one order without a match does not make the score 0."""
_OTHER_WEIGHT = 0.2
"""Weight of a token that is no keyword."""


def ngram_match(predictions: Sequence[str], references: References) -> float:
    """BLEU-4 over the corpus on tokens between white space, in [0, 100].

    An order without a match counts 0.1 of one; without a single common token the score is 0. The brevity penalty
    compares with the closest reference.

    Raises: DataError for unequal lengths, no predictions, or a prediction without a reference.
    Source: CodeT5 `evaluator/CodeBLEU/bleu.py` (NLTK's BLEU with smoothing method 1).
    """
    lists = reference_lists(predictions, references)
    matches, totals, length, reference_length = [0.0] * ORDER, [0.0] * ORDER, 0, 0
    for prediction, texts in zip(predictions, lists, strict=True):
        tokens, token_lists = prediction.split(), [text.split() for text in texts]
        length += len(tokens)
        reference_length += min(map(len, token_lists), key=lambda size: (abs(size - len(tokens)), size))
        for order in range(1, ORDER + 1):
            matches[order - 1] += clipped_matches(tokens, token_lists, order)
            totals[order - 1] += max(1, len(tokens) - order + 1)
    return 100 * _score(matches, totals, length, reference_length)


def weighted_ngram_match(predictions: Sequence[str], references: References, language: str) -> float:
    """N-gram recall over the corpus, in [0, 100]; of single tokens, keywords weigh 1 and others 0.2.

    The evaluator's brevity penalty takes every reference to have two tokens (it measures the pair of tokens and
    weights), so it hardly ever applies; that is followed here.

    Raises: DataError for unequal lengths, no predictions, or a prediction without a reference; ConfigError for an
    unknown language. Source: CodeT5 `evaluator/CodeBLEU/weighted_ngram_match.py`.
    """
    keywords = KEYWORDS[resolve_language(language)]
    lists = reference_lists(predictions, references)
    matches, totals, length, reference_length = [0.0] * ORDER, [0.0] * ORDER, 0, 0
    for prediction, texts in zip(predictions, lists, strict=True):
        tokens = prediction.split()
        length += len(tokens)
        reference_length += 2
        for order in range(1, ORDER + 1):
            mine = ngrams(tokens, order)
            for text in texts:
                theirs = ngrams(text.split(), order)
                weights = {gram: 1.0 if order > 1 or gram[0] in keywords else _OTHER_WEIGHT for gram in theirs}
                matches[order - 1] += sum(weights[gram] * min(count, mine[gram]) for gram, count in theirs.items())
                totals[order - 1] += max(1.0, sum(weights[gram] * count for gram, count in theirs.items()))
    return 100 * _score(matches, totals, length, reference_length)


def _score(matches: list[float], totals: list[float], length: int, reference_length: int) -> float:
    if not matches[0]:
        return 0.0
    logs = [math.log((m or _EPSILON) / t) for m, t in zip(matches, totals, strict=True)]
    brevity = 1.0 if length > reference_length else math.exp(1 - reference_length / length)
    return brevity * math.exp(math.fsum(logs) / ORDER)
