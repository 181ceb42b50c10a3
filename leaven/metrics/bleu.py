"""BLEU in the two forms that CodeT5 and CodeXGLUE report."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence

from leaven.errors import DataError
from leaven.metrics.pairs import References, reference_lists

ORDER = 4
"""Longest n-gram."""

_PUNCTUATION = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram of exactly this order occurs."""
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def clipped_matches(tokens: Sequence[str], references: Sequence[Sequence[str]], order: int) -> int:
    """N-grams of the tokens that the references hold, each at most as often as in one reference."""
    allowed: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        allowed |= ngrams(reference, order)
    return (ngrams(tokens, order) & allowed).total()


def smoothed_bleu4(predictions: Sequence[str], references: References) -> float:
    """Smoothed sentence BLEU-4 of natural language, its mean over sentences, in [0, 100].

    Text is lower-cased and every punctuation mark becomes a token. Orders 2 to 4 count one match and one n-gram more
    than there are; a sentence without a common word scores about 0. The brevity penalty compares the lengths + 1,
    with the shortest reference.

    Raises: DataError for unequal lengths, no predictions, or a prediction without a reference.
    Source: CodeT5 `evaluator/smooth_bleu.py`.
    """
    lists = reference_lists(predictions, references)
    scores = [
        _sentence_bleu(_words(prediction), [_words(text) for text in texts])
        for prediction, texts in zip(predictions, lists, strict=True)
    ]
    return 100 * math.fsum(scores) / len(scores)


def _words(text: str) -> list[str]:
    """Tokens of the evaluator: its own splitting, and on top that of mteval-v11a.

    The rules of the latter for tags and entities never apply, as the former has split them.
    """
    text = " ".join(re.findall(r"\w+|[^\s\w]", text.strip().lower()))
    text = f" {text} "
    for pattern, spaced in _PUNCTUATION:
        text = pattern.sub(spaced, text)
    return text.split()


def _sentence_bleu(words: list[str], references: list[list[str]]) -> float:
    tiny = sys.float_info.min
    log_precision = 0.0
    for order in range(1, ORDER + 1):
        extra = int(order > 1)
        matches, total = clipped_matches(words, references, order), max(len(words) - order + 1, 0)
        log_precision += math.log(matches + extra + tiny) - math.log(total + extra + tiny)
    shortest = min(map(len, references))
    return math.exp(log_precision / ORDER + min(0.0, 1 - (shortest + 1) / (len(words) + 1)))


def corpus_bleu(predictions: Sequence[str], references: References) -> float:
    """BLEU-4 of code over a whole corpus, in [0, 100], on tokens between white space.

    Matches and n-grams are summed over the corpus, with one more of both at every order, the first included. The
    brevity penalty compares with the shortest reference of each prediction. The evaluator rounds to two decimals; here
    nothing is rounded.

    Raises: DataError for unequal lengths, no predictions, a prediction without a reference, or references that are all
    empty. Source: CodeT5 `evaluator/bleu.py`.
    """
    lists = reference_lists(predictions, references)
    matches, totals, length, reference_length = [0] * ORDER, [0] * ORDER, 0, 0
    for prediction, texts in zip(predictions, lists, strict=True):
        tokens, token_lists = prediction.split(), [text.split() for text in texts]
        length += len(tokens)
        reference_length += min(map(len, token_lists))
        for order in range(1, ORDER + 1):
            matches[order - 1] += clipped_matches(tokens, token_lists, order)
            totals[order - 1] += max(len(tokens) - order + 1, 0)
    if not reference_length:
        raise DataError("all references are empty: BLEU needs at least one token in them")
    if not length:
        return 0.0
    precision = math.exp(math.fsum(math.log((m + 1) / (t + 1)) for m, t in zip(matches, totals, strict=True)) / ORDER)
    return 100 * precision * math.exp(min(0.0, 1 - reference_length / length))
