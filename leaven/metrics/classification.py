"""Exact match, accuracy, precision, recall and F1, all in [0, 100]."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence

from leaven.metrics.pairs import References, check_pairs, reference_lists

# A run of capitals that no small letter follows, a word with or without its capital, a number.
_SUBTOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+")


def exact_match(predictions: Sequence[str], references: References) -> float:
    """Share of predictions equal to their reference, or to one of them, but for white space at either end.

    Raises: DataError for unequal lengths, no predictions, or a prediction without a reference.
    Source: CodeT5 `run_gen.py`.
    """
    lists = reference_lists(predictions, references)
    hits = sum(
        prediction.strip() in {text.strip() for text in texts}
        for prediction, texts in zip(predictions, lists, strict=True)
    )
    return 100 * hits / len(lists)


def accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Share of predicted labels equal to the true ones. Raises: DataError for unequal lengths or no predictions."""
    check_pairs(predictions, references)
    return 100 * sum(p == r for p, r in zip(predictions, references, strict=True)) / len(predictions)


def balanced_accuracy(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Mean over the true labels of the share of theirs that is predicted so: that of a fixed answer is 100 / labels.

    Raises: DataError for unequal lengths or no predictions.
    """
    check_pairs(predictions, references)
    of_label = Counter(references)
    hits = Counter(r for p, r in zip(predictions, references, strict=True) if p == r)
    return 100 * sum(hits[label] / count for label, count in of_label.items()) / len(of_label)


def binary_precision(predictions: Sequence[Hashable], references: Sequence[Hashable], positive: Hashable = 1) -> float:
    """Share of predicted positives that are positive; 0 when none is predicted.

    Raises: DataError for unequal lengths or no predictions.
    """
    return _binary(predictions, references, positive)[0]


def binary_recall(predictions: Sequence[Hashable], references: Sequence[Hashable], positive: Hashable = 1) -> float:
    """Share of positives that are predicted so; 0 when there is none.

    Raises: DataError for unequal lengths or no predictions.
    """
    return _binary(predictions, references, positive)[1]


def binary_f1(predictions: Sequence[Hashable], references: Sequence[Hashable], positive: Hashable = 1) -> float:
    """Harmonic mean of precision and recall of the positive label; 0 when no prediction is rightly positive.

    Raises: DataError for unequal lengths or no predictions.
    """
    return _binary(predictions, references, positive)[2]


def _binary(
    predictions: Sequence[Hashable], references: Sequence[Hashable], positive: Hashable
) -> tuple[float, float, float]:
    from sklearn.metrics import precision_recall_fscore_support

    check_pairs(predictions, references)
    truth, guess = [int(label == positive) for label in references], [int(label == positive) for label in predictions]
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, guess, labels=[1], average="micro", zero_division=0
    )
    return 100 * float(precision), 100 * float(recall), 100 * float(f1)


def macro_f1(predictions: Sequence[Hashable], references: Sequence[Hashable]) -> float:
    """Mean of the labels' F1, over all labels that are predicted or true.

    Raises: DataError for unequal lengths or no predictions.
    """
    from sklearn.metrics import f1_score

    check_pairs(predictions, references)
    number: dict[Hashable, int] = {}
    truth, guess = ([number.setdefault(label, len(number)) for label in labels] for labels in (references, predictions))
    return 100 * float(f1_score(truth, guess, average="macro", zero_division=0))


def subtokens(name: str) -> list[str]:
    """Lower-case words of an identifier: `parseHTTPResponse_v2` -> parse, http, response, v, 2."""
    return [part.lower() for part in _SUBTOKEN.findall(name)]


def subtoken_precision(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predicted sub-tokens that the true names hold; 0 when none is predicted. See `subtoken_f1`."""
    return _subtoken_scores(predictions, references)[0]


def subtoken_recall(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of the true names' sub-tokens that are predicted. See `subtoken_f1`."""
    return _subtoken_scores(predictions, references)[1]


def subtoken_f1(predictions: Sequence[str], references: Sequence[str]) -> float:
    """F1 of predicted names on their sub-tokens, in any order and letter case.

    Sub-tokens are counted over all names together (micro average). One that a name holds twice counts twice and has to
    be predicted twice; code2vec and code2seq let one true sub-token excuse all its repetitions. They also drop digits,
    which are sub-tokens here.

    Raises: DataError for unequal lengths or no predictions. Source: arXiv 1803.09473 section 6; arXiv 1808.01400.
    """
    precision, recall = _subtoken_scores(predictions, references)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _subtoken_scores(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    check_pairs(predictions, references)
    common = predicted = true = 0
    for prediction, reference in zip(predictions, references, strict=True):
        guess, truth = Counter(subtokens(prediction)), Counter(subtokens(reference))
        common += (guess & truth).total()
        predicted += guess.total()
        true += truth.total()
    return (100 * common / predicted if predicted else 0.0), (100 * common / true if true else 0.0)
