"""Contrastive learning: of two towers, where images and texts find each other, and of one, where texts find texts."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from leaven.contracts import Batch, Loss


class ImageTextContrast:
    """Mean of both directions' cross-entropy over the cosines of a batch, times the model's learned scale.

    The negatives are those of the batch that one process sees. Texts that occur twice in a batch count as each other's
    negatives, as in the original.

    Shapes: `pixel_values` (batch, channels, size, size), `input_ids` (batch, tokens) int64, `attention_mask` (batch,
    tokens) bool; the model is a `leaven.models.vision.DualEncoder` or anything called like it that gives scaled cosines
    (images, texts).
    Source: arXiv 2103.00020 section 2.3, figure 3.
    """

    name = "contrast"

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing to corrupt."""
        del generator
        return batch

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """The loss; `parts` has the share of images whose own text is the nearest, in [0, 1]."""
        scores = model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"]).float()
        own = torch.arange(len(scores), device=scores.device)
        total = (F.cross_entropy(scores, own) + F.cross_entropy(scores.t(), own)) / 2
        found = (scores.argmax(1) == own).float().mean()
        return Loss(total, torch.tensor(len(scores)), {self.name: total.detach(), "found": found.detach()})


class TextContrast:
    """InfoNCE: each query finds its text among the positives and the hard negatives of the batch.

    A batch is of one task, so that negatives are. Rows of one `group` are not each other's negatives.

    Args:
        temperature: that cosines are divided by, > 0.

    Shapes: `query`, `positive` (batch, tokens, ...), `negatives` (batch * hard, tokens, ...), each with a mask
    `NAME_attention_mask`; `group` (batch,) int64.
    Source: arXiv 2410.15035 section 5.1; temperature 0.02 in an independent reimplementation.
    """

    name = "contrast"

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing to corrupt."""
        del generator
        return batch

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """Mean per query."""
        query, positive, negatives = (
            model(batch[name], batch[f"{name}_attention_mask"]) for name in ("query", "positive", "negatives")
        )
        scores = query @ torch.cat([positive, negatives]).T / self.temperature
        rows = len(query)
        same = batch["group"][:, None] == batch["group"][None]
        same.fill_diagonal_(False)
        # The hard negatives of another row of the group are negatives all the same.
        hidden = F.pad(same, (0, scores.shape[1] - rows), value=False)
        total = F.cross_entropy(scores.masked_fill(hidden, -torch.inf), torch.arange(rows, device=scores.device))
        return Loss(total, torch.tensor(rows), {self.name: total.detach()})
