import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leaven.errors import DataError
from leaven.metrics.continual import (
    average_compatibility,
    average_incremental_accuracy,
    average_multi_model_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    last_accuracy,
    seen_accuracy,
)

NAN = float("nan")
BY_HAND = [[90.0, 20.0, 10.0], [60.0, 80.0, 30.0], [70.0, 50.0, 100.0]]


def test_figures_by_hand() -> None:
    assert seen_accuracy(BY_HAND) == pytest.approx([90, 70, 220 / 3])
    assert seen_accuracy(BY_HAND, [10, 30, 60]) == pytest.approx([90, 75, 82])
    assert last_accuracy(BY_HAND, [10, 30, 60]) == pytest.approx(82)
    assert average_incremental_accuracy(BY_HAND) == pytest.approx((90 + 70 + 220 / 3) / 3)
    assert forgetting(BY_HAND) == pytest.approx(((90 - 70) + (80 - 50)) / 2)
    assert backward_transfer(BY_HAND) == pytest.approx(((70 - 90) + (50 - 80)) / 2)
    assert forward_transfer(BY_HAND, [5.0, 12.0, 10.0]) == pytest.approx(((20 - 12) + (30 - 10)) / 2)


def test_forgetting_counts_from_the_best_moment_and_can_be_gain() -> None:
    assert forgetting([[50, 0, 0], [80, 60, 0], [70, 70, 90]]) == pytest.approx(((80 - 70) + (60 - 70)) / 2)
    # What the last task adds is no best moment of the past.
    assert forgetting([[50, 0], [60, 90]]) == pytest.approx(-10)


@given(arrays(np.float64, (4, 4), elements=st.floats(0, 100)))
def test_relations(matrix: np.ndarray) -> None:
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-9
    assert last_accuracy(matrix, [3, 3, 3, 3]) == pytest.approx(matrix[-1].mean())
    assert 0 <= average_compatibility(matrix) <= 1
    lower = [matrix[t, s] for t in range(4) for s in range(t + 1)]
    assert average_multi_model_accuracy(matrix) == pytest.approx(np.mean(lower))
    better = sum(matrix[t, s] > matrix[s, s] for t in range(4) for s in range(t))
    assert average_compatibility(matrix) == pytest.approx(better / 6)


def test_gaps_above_the_diagonal_matter_to_forward_transfer_alone() -> None:
    gaps = [[90.0, NAN], [60.0, 80.0]]
    assert last_accuracy(gaps) == 70 and forgetting(gaps) == 30
    with pytest.raises(DataError, match="before it is learnt"):
        forward_transfer(gaps, [0.0, 0.0])


def test_one_task_and_equal_models() -> None:
    assert forgetting([[50]]) == backward_transfer([[50]]) == forward_transfer([[50]], [1.0]) == 0
    assert average_compatibility([[50]]) == 1 and average_compatibility([[50, NAN], [50, 50]]) == 0


@pytest.mark.parametrize(
    ("matrix", "sizes", "message"),
    [
        ([[1, 2, 3], [1, 2, 3]], None, r"shape \(2, 3\)"),
        ([], None, "one row and one column"),
        ([[1, 0], [NAN, 1]], None, "row 1, column 0"),
        ([[1, 0], [1, 1]], [1], "sizes"),
        ([[1, 0], [1, 1]], [1, 0], "positive"),
    ],
)
def test_bad_input(matrix: list, sizes: list | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        seen_accuracy(matrix, sizes)
