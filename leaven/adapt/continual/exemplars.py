"""A few training inputs of each class, kept for rehearsal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leaven.adapt.continual.features import Inputs, joined, take
from leaven.adapt.continual.task_training import as_batch
from leaven.contracts import Batch


@dataclass(frozen=True)
class Exemplars:
    """At most so many training inputs of each class, kept for rehearsal.

    Args:
        per_class: most inputs of a class.
        inputs: those kept, None before the first.
        labels: their labels.
    """

    per_class: int
    inputs: Inputs | None = None
    labels: tuple[Any, ...] = ()

    def with_task(self, inputs: Inputs, labels: Sequence[Any], generator: torch.Generator) -> Exemplars:
        """These and some of a task's, drawn at random; a class that has its share already gets no more."""
        room = {label: self.per_class - self.labels.count(label) for label in dict.fromkeys(labels)}
        chosen: list[int] = []
        for at in torch.randperm(len(labels), generator=generator).tolist():
            if room[labels[at]] > 0:
                room[labels[at]] -= 1
                chosen.append(at)
        if not chosen:
            return self
        kept = take(inputs, chosen)
        everything = kept if self.inputs is None else joined([self.inputs, kept])
        return Exemplars(self.per_class, everything, (*self.labels, *(labels[at] for at in chosen)))

    def batch(self, target: Mapping[Any, int]) -> Batch | None:
        """Inputs and targets as one batch, None where nothing is kept."""
        if self.inputs is None:
            return None
        return as_batch(self.inputs, torch.tensor([target[label] for label in self.labels]))
