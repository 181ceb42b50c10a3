"""Contrastive learning of two towers: each image finds its text among the batch's, and each text its image."""

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
