"""The inputs that all metrics share: predictions and the references they are compared with."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from leaven.errors import DataError

References = Sequence[str | Sequence[str]]
"""For every prediction its reference, or several."""


def check_pairs(predictions: Sized, references: Sized) -> None:
    """Raises: DataError when there are no predictions, or not as many references."""
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions for {len(references)} references: expected one for each")
    if not len(predictions):
        raise DataError("no predictions: a metric needs at least one")


def reference_lists(predictions: Sequence[str], references: References) -> list[list[str]]:
    """The references of each prediction as a list.

    Raises: DataError for unequal lengths, no predictions, or a prediction without a reference.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise DataError("a metric takes a list of predictions and a list of references, not a single string")
    check_pairs(predictions, references)
    lists = [[given] if isinstance(given, str) else list(given) for given in references]
    empty = next((row for row, given in enumerate(lists) if not given), None)
    if empty is not None:
        raise DataError(f"prediction {empty} has an empty list of references: expected at least one")
    return lists
