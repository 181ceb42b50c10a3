"""Picking by the validation split, and reading the test split once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from leaven.errors import ConfigError, LeavenError
from leaven.training.guard import TrainingDivergedError

T = TypeVar("T")


class ReadTwiceError(LeavenError):
    """A test split was asked for a second time."""


class Sealed(Generic[T]):
    """A test split that gives its contents once.

    Raises: ReadTwiceError on the second reading: a figure that was chosen on the test split is no evidence.
    """

    def __init__(self, contents: T, name: str) -> None:
        self._contents, self._name, self._read = contents, name, False

    def read(self) -> T:
        """The contents, once."""
        if self._read:
            raise ReadTwiceError(f"the test split of {self._name} was already read: choose on the validation split")
        self._read = True
        return self._contents


@dataclass(frozen=True)
class Choice(Generic[T]):
    """The best of a grid: its value, its validation score, all scores by value, and what its training gave.

    diverged: values whose training came to nothing, and which have no score.
    """

    value: float
    score: float
    scores: dict[float, float]
    result: T
    diverged: list[float] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """Values that were tried."""
        return len(self.scores) + len(self.diverged)


def best_of_grid(values: Sequence[float], attempt: Callable[[float], tuple[float, T]]) -> Choice[T]:
    """Try each value; keep the one of highest validation score, the first of them at a tie.

    attempt: trains with the value and returns (validation score, result).
    Raises: ConfigError for an empty grid; TrainingDivergedError when each training diverges.
    """
    if not values:
        raise ConfigError("the grid is empty: give at least one learning rate")
    best: Choice[T] | None = None
    scores: dict[float, float] = {}
    diverged: list[float] = []
    failure: TrainingDivergedError | None = None
    for value in values:
        try:
            score, result = attempt(value)
        except TrainingDivergedError as error:
            # A rate that is too large is what a grid is there to find out.
            diverged.append(value)
            failure = error
            continue
        scores[value] = score
        if best is None or score > best.score:
            best = Choice(value, score, scores, result, diverged)
    if best is None:
        assert failure is not None
        raise failure
    return best
