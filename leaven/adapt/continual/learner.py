"""What every continual learner can do, and the labels it is given."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from leaven.adapt.continual.features import Inputs
from leaven.errors import DataError, ModelError

Label = Hashable
Labels = Sequence[Label] | Tensor | np.ndarray[Any, Any]
"""One label per input: any hashable values of one type, a tensor or an array (rows,)."""


class Learner(Protocol):
    """Learns classes as they come and tells them all apart, without being told which task an input is from.

    `learn` takes all the data of one task; a streaming learner (`NearestMean`, `SimpleCIL`) takes any batch. When it
    raises, the learner is as it was before. No learner changes the encoder it was given: it trains a copy.
    """

    @property
    def classes(self) -> Sequence[Label]:
        """The labels learnt so far, in the order of the columns of `scores`."""
        ...

    def learn(self, inputs: Inputs, labels: Labels) -> None:
        """Take in the labelled inputs of one task, or of one batch of a stream."""
        ...

    def scores(self, inputs: Inputs) -> Tensor:
        """One score per input and class (rows, classes), the higher the likelier."""
        ...

    def predict(self, inputs: Inputs) -> list[Label]:
        """The label with the highest score, for each input."""
        classes = self.classes
        return [classes[at] for at in self.scores(inputs).argmax(1).tolist()]


def checked_labels(labels: Labels, rows: int, known: Collection[Label] = ()) -> list[Label]:
    """The labels as a list of plain values.

    Args:
        labels: one per row.
        rows: how many inputs there are.
        known: labels seen before; the new ones must be of their type, as 1, True and "1" are not the same class.

    Raises: DataError for another number of labels, a missing label (None, NaN), one that cannot be hashed, or a type
    that changes.
    """
    values: list[Any]
    if isinstance(labels, Tensor | np.ndarray):
        if labels.ndim != 1:
            raise DataError(f"labels have shape {tuple(labels.shape)}; expected one dimension, one label per input")
        values = labels.tolist()
    elif isinstance(labels, str):
        raise DataError(f"labels is the single string {labels!r}; expected one label per input")
    else:
        values = [label.item() if isinstance(label, np.generic | Tensor) else label for label in labels]
    if len(values) != rows:
        raise DataError(f"{len(values)} labels for {rows} inputs; expected one for each")
    kind = type(next(iter(known))) if known else type(values[0]) if values else None
    if kind is None or (set(map(type, values)) == {kind} and kind in (int, str)):
        return values
    for row, label in enumerate(values):
        if label is None or (isinstance(label, float) and math.isnan(label)):
            raise DataError(f"row {row}: the label is {label}; leave unlabelled rows out")
        if type(label) is not kind:
            before = "before" if known else "in row 0"
            raise DataError(
                f"row {row}: the label {label!r} is of type {type(label).__name__}, {before} labels were "
                f"{kind.__name__}; give all labels one type, so that no class is counted twice"
            )
        if not isinstance(label, Hashable):
            raise DataError(f"row {row}: a {type(label).__name__} cannot be a label; expected a hashable value")
    return values


def distinct(labels: Sequence[Label]) -> list[Label]:
    """Each label once, in the order of first appearance."""
    return list(dict.fromkeys(labels))


def require_classes(classes: Collection[Label]) -> None:
    """Raises: ModelError when nothing has been learnt yet."""
    if not classes:
        raise ModelError("no class has been learnt yet: call learn with labelled inputs before asking for predictions")
