"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from leaven.contracts import Batch, Loss


class NextTokenPrediction:
    """Mean cross-entropy per predicted token; padding is neither read nor predicted.

    Shapes: `input_ids` (batch, tokens), `attention_mask` (batch, tokens), False at padding, which stands at the end.
    """

    name = "next_token"

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing to corrupt."""
        del generator
        return batch

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """The loss of a model with `states` and `logits`; scores are computed at real tokens alone."""
        mask = batch["attention_mask"].bool()
        wanted = mask[:, 1:]
        states = model.states(batch["input_ids"], mask)[:, :-1]
        count = wanted.sum()
        targets = batch["input_ids"][:, 1:][wanted]
        total = F.cross_entropy(model.logits(states[wanted]).float(), targets, reduction="sum") / count.clamp(min=1)
        return Loss(total, count, {self.name: total.detach()})
