"""Figures of continual learning, from a matrix of accuracies.

In a matrix (tasks, tasks), row i and column j is the accuracy on task j after task i was learnt, in any unit, which the
figures keep. Above the diagonal stand tasks not yet learnt; only `forward_transfer` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leaven.errors import DataError

Matrix = NDArray[np.float64]


def seen_accuracy(matrix: ArrayLike, sizes: Sequence[int] | None = None) -> list[float]:
    """Accuracy on the test examples of all tasks seen so far, after each task.

    Args:
        matrix: (tasks, tasks).
        sizes: test examples of each task; None counts the tasks alike.

    Raises: DataError for a matrix that is not square or has gaps on or below the diagonal, or sizes that do not fit.
    """
    values = _checked(matrix)
    weights = np.ones(len(values)) if sizes is None else np.asarray(sizes, dtype=np.float64)
    if weights.shape != (len(values),) or not (weights > 0).all():
        raise DataError(
            f"sizes {list(np.atleast_1d(weights))}; expected {len(values)} positive numbers, one for each task"
        )
    return [float(np.average(values[at, : at + 1], weights=weights[: at + 1])) for at in range(len(values))]


def last_accuracy(matrix: ArrayLike, sizes: Sequence[int] | None = None) -> float:
    """Accuracy on all tasks after the last: what most papers call final accuracy. Raises: as `seen_accuracy`."""
    return seen_accuracy(matrix, sizes)[-1]


def average_incremental_accuracy(matrix: ArrayLike, sizes: Sequence[int] | None = None) -> float:
    """Mean of `seen_accuracy` over the tasks, by nature above the last accuracy. Raises: as `seen_accuracy`.

    Source: arXiv 1611.07725 section 4.
    """
    return float(np.mean(seen_accuracy(matrix, sizes)))


def forgetting(matrix: ArrayLike) -> float:
    """Mean loss of accuracy since a task's best moment before the last task; 0 for a single task.

    Raises: as `seen_accuracy`. Source: arXiv 1801.10112 section 3.
    """
    values = _checked(matrix)
    last = len(values) - 1
    losses = [values[task:last, task].max() - values[last, task] for task in range(last)]
    return float(np.mean(losses)) if losses else 0.0


def backward_transfer(matrix: ArrayLike) -> float:
    """Mean change of a task's accuracy since it was learnt; 0 for a single task.

    Raises: as `seen_accuracy`. Source: arXiv 1706.08840 section 2.
    """
    values = _checked(matrix)
    last = len(values) - 1
    return float(np.mean(values[last, :last] - np.diag(values)[:last])) if last else 0.0


def forward_transfer(matrix: ArrayLike, untrained: Sequence[float]) -> float:
    """Mean accuracy on a task just before it is learnt, above that of an untrained model; 0 for a single task.

    Args:
        matrix: (tasks, tasks), with the entries above the diagonal.
        untrained: accuracy of an untrained model on each task.

    Raises: as `seen_accuracy`; DataError for gaps just above the diagonal. Source: arXiv 1706.08840 section 2.
    """
    values = _checked(matrix)
    base = np.asarray(untrained, dtype=np.float64)
    before = np.diag(values, 1)
    if base.shape != (len(values),) or not np.isfinite(before).all():
        raise DataError(
            f"forward transfer needs every task's accuracy before it is learnt, and untrained: got {before.tolist()} "
            f"and {base.tolist()} for {len(values)} tasks"
        )
    return float(np.mean(before - base[1:])) if len(before) else 0.0


def average_compatibility(matrix: ArrayLike) -> float:
    """Share in [0, 1] of model pairs in which a newer model finds more in an older gallery than the older one itself.

    Row t and column s of the matrix is the search accuracy of queries by model t in the gallery of model s. Equal is
    not more. 1 for a single model.

    Raises: as `seen_accuracy`. Source: arXiv 2405.02581; `compatibility_metrics.py` of the official code.
    """
    values = _checked(matrix)
    pairs = [(new, old) for new in range(len(values)) for old in range(new)]
    return float(np.mean([values[new, old] > values[old, old] for new, old in pairs])) if pairs else 1.0


def average_multi_model_accuracy(matrix: ArrayLike) -> float:
    """Mean of the lower triangle with its diagonal: how good the searches are that compatibility compares.

    Raises: as `seen_accuracy`. Source: arXiv 2405.02581; `compatibility_metrics.py` of the official code.
    """
    values = _checked(matrix)
    return float(values[np.tril_indices(len(values))].mean())


def _checked(matrix: Any) -> Matrix:
    values: Matrix = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not len(values):
        raise DataError(f"the matrix has shape {values.shape}; expected one row and one column per task")
    wrong = np.argwhere(np.tril(~np.isfinite(values)))
    if len(wrong):
        raise DataError(f"the matrix has no number in row {wrong[0][0]}, column {wrong[0][1]}: test every task learnt")
    return values
