"""Which class: cross-entropy of a model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from leaven.contracts import Batch, Loss
from leaven.errors import ConfigError


class Classification:
    """Mean cross-entropy per example.

    Args:
        fields: names of the batch's fields that the model is called with, as keywords.
        smoothing: share of the probability that is spread over all classes, in [0, 1).

    Shapes: the model's output (batch, classes); `label` (batch,) int64.
    Raises: ConfigError for a share out of range.
    """

    name = "classification"

    def __init__(self, fields: Sequence[str] = ("pixel_values",), *, smoothing: float = 0.0) -> None:
        if not 0 <= smoothing < 1:
            raise ConfigError(f"smoothing={smoothing}: expected a share in [0, 1)")
        self.fields, self.smoothing = tuple(fields), smoothing

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing to corrupt."""
        del generator
        return batch

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """The loss; `parts` has the accuracy in [0, 1] too."""
        logits = model(**{name: batch[name] for name in self.fields}).float()
        total = F.cross_entropy(logits, batch["label"], label_smoothing=self.smoothing)
        accuracy = (logits.argmax(-1) == batch["label"]).float().mean()
        return Loss(total, torch.tensor(len(logits)), {self.name: total.detach(), "accuracy": accuracy.detach()})
