import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference_metrics

from leaven.errors import DataError
from leaven.metrics.classification import (
    accuracy,
    balanced_accuracy,
    binary_f1,
    binary_precision,
    binary_recall,
    exact_match,
    macro_f1,
    subtoken_f1,
    subtoken_precision,
    subtoken_recall,
    subtokens,
)

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20)
NAME = st.sampled_from(["getX", "get_x_x", "", "isOpen2", "open"])
NAMES = st.lists(st.tuples(NAME, NAME), min_size=1, max_size=6)


@given(LABELS)
def test_labels_equal_their_definitions(pairs: list[tuple[int, int]]) -> None:
    predictions, references = map(list, zip(*pairs, strict=True))
    hits = sum(p == r == 1 for p, r in pairs)
    precision = 100 * hits / max(predictions.count(1), 1)
    recall = 100 * hits / max(references.count(1), 1)
    assert accuracy(predictions, references) == pytest.approx(100 * sum(p == r for p, r in pairs) / len(pairs))
    assert binary_precision(predictions, references) == pytest.approx(precision)
    assert binary_recall(predictions, references) == pytest.approx(recall)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0
    assert binary_f1(predictions, references) == pytest.approx(f1)
    expected = reference_metrics.f1_score(references, predictions, average="macro", zero_division=0)
    assert macro_f1(predictions, references) == pytest.approx(100 * expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of labels that are only predicted, which count in neither.
        balanced = reference_metrics.balanced_accuracy_score(references, predictions)
    assert balanced_accuracy(predictions, references) == pytest.approx(100 * balanced)
    words = [str(p) for p in predictions], [str(r) for r in references]
    assert binary_f1(*words, positive="1") == pytest.approx(f1)
    assert macro_f1(*words) == pytest.approx(100 * expected)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("getUserId", ["get", "user", "id"]),
        ("parseHTTPResponse_v2", ["parse", "http", "response", "v", "2"]),
        ("__init__", ["init"]),
        ("MAX_VALUE", ["max", "value"]),
        ("XMLHttpRequest", ["xml", "http", "request"]),
        ("kebab-case name", ["kebab", "case", "name"]),
        ("A", ["a"]),
        ("toÄther", ["toäther"]),
        ("x1y22", ["x", "1", "y", "22"]),
        ("", []),
        ("_", []),
    ],
)
def test_subtokens(name: str, parts: list[str]) -> None:
    assert subtokens(name) == parts


def test_subtoken_scores_worked_by_hand() -> None:
    predictions, references = ["get_name_name", "size", "", "toString"], ["getName", "getSize", "run", "string_to"]
    # Common: get name | size | - | to string = 5, of 6 predicted and 7 true.
    assert subtoken_precision(predictions, references) == pytest.approx(100 * 5 / 6)
    assert subtoken_recall(predictions, references) == pytest.approx(100 * 5 / 7)
    assert subtoken_f1(predictions, references) == pytest.approx(100 * 10 / 13)


@given(NAMES)
def test_subtoken_f1_is_symmetric_and_bounded(pairs: list[tuple[str, str]]) -> None:
    predictions, references = map(list, zip(*pairs, strict=True))
    score = subtoken_f1(predictions, references)
    assert 0 <= score <= 100
    assert subtoken_f1(references, predictions) == pytest.approx(score)
    assert subtoken_precision(references, predictions) == pytest.approx(subtoken_recall(predictions, references))
    if any(references):
        assert subtoken_f1(references, references) == 100
    assert subtoken_f1([name.upper() if "_" in name else name for name in predictions], references) == score


def test_exact_match_ignores_white_space_at_the_ends_alone() -> None:
    assert exact_match([" a b\n", "a  b", "c"], ["a b", "a b", ["d", "c "]]) == pytest.approx(200 / 3)


def test_no_positive_is_zero() -> None:
    assert binary_f1([0, 0], [0, 0]) == 0
    assert subtoken_f1([""], [""]) == 0


@pytest.mark.parametrize(
    "metric",
    [
        accuracy,
        balanced_accuracy,
        binary_f1,
        binary_precision,
        binary_recall,
        exact_match,
        macro_f1,
        subtoken_f1,
        subtoken_recall,
    ],
)
def test_bad_inputs_are_named(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(DataError, match="1 predictions for 2 references"):
        metric(["a"], ["a", "b"])
    with pytest.raises(DataError, match="no predictions"):
        metric([], [])
