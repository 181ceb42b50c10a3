"""Contrastive learning: of two towers, where images and texts find each other, and of one, where texts find texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.contracts import Batch, Loss
from leaven.errors import ConfigError


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


class CroppedTextContrast:
    """Two random spans of a text find each other among those of the other texts of the batch, in both directions.

    Args:
        temperature: that cosines are divided by, > 0.
        shortest, longest: length of a span as a share of the text's, 0 < shortest <= longest <= 1.

    Shapes: `input_ids` (batch, tokens) int64, `attention_mask` (batch, tokens) bool, texts at the front; the model has
    `encode(ids, mask)`, whose states are averaged over a span.
    Source: arXiv 2112.09118 section 3.1 (independent cropping), with the other texts of the batch as negatives.
    """

    name = "crops"

    def __init__(self, temperature: float = 0.05, shortest: float = 0.1, longest: float = 0.5) -> None:
        if not (temperature > 0 and 0 < shortest <= longest <= 1):
            raise ConfigError(
                f"temperature={temperature}, shortest={shortest}, longest={longest}: expected a positive temperature "
                "and shares of the text with 0 < shortest <= longest <= 1"
            )
        self.temperature, self.shortest, self.longest = temperature, shortest, longest

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draw two spans of every text."""
        prepared: Batch = {}
        for view in ("query", "positive"):
            ids, mask = self._spans(batch["input_ids"], batch["attention_mask"], generator)
            prepared |= {view: ids, f"{view}_attention_mask": mask}
        return prepared

    def _spans(self, ids: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        lengths = mask.sum(1)
        share = torch.empty(len(ids)).uniform_(self.shortest, self.longest, generator=generator)
        sizes = (share * lengths).long().clamp(min=1)
        starts = (torch.rand(len(ids), generator=generator) * (lengths - sizes + 1)).long()
        places = torch.arange(int(sizes.max()))
        return ids.gather(1, (starts[:, None] + places).clamp(max=ids.shape[1] - 1)), places < sizes[:, None]

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """Mean per text; `parts` has the share of spans whose own text is the nearest, in [0, 1]."""
        one, other = (
            self._vectors(model, batch[name], batch[f"{name}_attention_mask"]) for name in ("query", "positive")
        )
        scores = one @ other.T / self.temperature
        own = torch.arange(len(scores), device=scores.device)
        total = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
        found = (scores.argmax(1) == own).float().mean()
        return Loss(total, torch.tensor(len(scores)), {self.name: total.detach(), "found": found.detach()})

    @staticmethod
    def _vectors(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        states = model.encode(ids, mask).x.float()
        return F.normalize((states * mask[..., None]).sum(1), dim=-1)
