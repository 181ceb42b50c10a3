"""Choosing from a grid."""

import pytest

from leaven.errors import ConfigError
from leaven.evidence.selection import best_of_grid
from leaven.training.guard import TrainingDivergedError


def attempt(value: float) -> tuple[float, str]:
    if value > 1:
        raise TrainingDivergedError(f"{value} is too large")
    return -((value - 0.5) ** 2), f"trained at {value}"


def test_the_highest_score_is_kept_and_of_equal_ones_the_first() -> None:
    best = best_of_grid([0.1, 0.5, 0.9], attempt)
    assert (best.value, best.score, best.result, best.trials) == (0.5, 0.0, "trained at 0.5", 3)
    assert best_of_grid([0.75, 0.25], attempt).value == 0.75


def test_a_value_that_diverges_is_out_and_counts_as_tried() -> None:
    best = best_of_grid([2.0, 0.25, 3.0, 0.5, 4.0], attempt)
    assert best.value == 0.5 and best.scores == {0.25: -0.0625, 0.5: 0.0}
    assert best.diverged == [2.0, 3.0, 4.0] and best.trials == 5
    with pytest.raises(TrainingDivergedError, match=r"3.0 is too large"):
        best_of_grid([2.0, 3.0], attempt)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="the grid is empty"):
        best_of_grid([], attempt)
