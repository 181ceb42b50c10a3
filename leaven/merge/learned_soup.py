"""Learned soups: averages whose weights are learned on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leaven.contracts import Batch, Loss
from leaven.errors import ConfigError
from leaven.merge.mixed_model import MixedModel, RepeatedBatches
from leaven.merge.soups import checked_ingredients
from leaven.merge.weights import MemoryWeights, Source
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit

Predict = Callable[[nn.Module, Batch], Tensor]
"""Logits of a model on a batch, rows first."""


class LearnedSoup(MixedModel):
    """A model whose weights are a convex combination of several models', and whose logits have a learned scale.

    raw: (models, blocks), or (models, 1) with one share per model; the shares are its softmax over models, equal at the
    start. scale: what logits are multiplied by, 1 at the start.

    Args:
        model: any module of the sources' architecture that returns logits.
        sources: two or more checkpoints of one initialisation.
        per: whether each parameter tensor or each model has shares of its own.

    Source: arXiv 2203.05482 appendix on learned soups.
    """

    def __init__(
        self, model: nn.Module, sources: Sequence[Source], *, per: Literal["tensor", "model"] = "tensor"
    ) -> None:
        if per not in ("tensor", "model"):
            raise ConfigError(f"per is {per!r}: expected 'tensor' or 'model'")
        ingredients = checked_ingredients(sources)
        super().__init__(model, ingredients, None)
        self._ingredients = ingredients
        columns = len(self.blocks) if per == "tensor" else 1
        self.raw = nn.Parameter(torch.zeros(len(ingredients), columns, device=self._device))
        self.scale = nn.Parameter(torch.ones((), device=self._device))

    def coefficients(self) -> Tensor:
        """Shares (models, blocks), each column summing to 1."""
        return self.raw.softmax(0).expand(-1, len(self.blocks))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The scaled logits."""
        return self.scale * super().forward(*args, **kwargs)

    def logits(self, predict: Predict, batch: Batch) -> Tensor:
        """The scaled logits of `predict(model, batch)`, whichever of the model's methods it calls."""
        logits: Tensor = self.scale * self.run(predict, batch)
        return logits

    def baked(self) -> MemoryWeights:
        """The averaged weights, with the first source's configuration; the scale is not part of them."""
        return self.bake(self._ingredients[0])


class _HeldOutLoss:
    def __init__(self, predict: Predict, loss: Callable[[Tensor, Batch], Tensor]) -> None:
        self._predict, self._loss = predict, loss

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        del generator
        return batch

    def __call__(self, model: Any, batch: Batch) -> Loss:
        logits = model.logits(self._predict, batch)
        total = self._loss(logits, batch)
        return Loss(total, torch.tensor(float(len(logits)), device=total.device), {"held_out": total.detach()})


def learned_soup(
    model: nn.Module,
    sources: Sequence[Source],
    batches: Sequence[Batch],
    predict: Predict,
    loss: Callable[[Tensor, Batch], Tensor],
    *,
    per: Literal["tensor", "model"] = "tensor",
    epochs: int = 5,
    learning_rate: float = 0.05,
) -> LearnedSoup:
    """Learn the shares of a soup and the scale of its logits with AdamW, no weight decay and a constant rate.

    All models are in memory at once. `result.baked().save(folder)` stores the soup.

    Args:
        batches: of held-out data; neither trained on nor reported on.
        predict: logits of a model on a batch.
        loss: mean loss of logits on a batch.

    Source: arXiv 2203.05482 appendix on learned soups: rate 0.05, 5 epochs.
    """
    soup = LearnedSoup(model, sources, per=per)
    config = TrainingConfig(
        learning_rate=learning_rate, weight_decay=0, schedule="constant", warmup=0, clip=None, progress=False
    )
    fit(soup, _HeldOutLoss(predict, loss), RepeatedBatches(batches), epochs * len(batches), config)
    return soup
