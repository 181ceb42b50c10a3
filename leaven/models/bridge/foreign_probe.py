"""Trying out a model that is used as it is: how its states become scores, and whether its cache can be relied on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from leaven.models.bridge.foreign_cache import ForeignCache


class Scores(nn.Module):
    """The way from states to scores, found by trying: the output matrix, with T5's scale and BART's bias.

    Where that does not give the model's own scores (soft caps, norms in the head), states are taken to be the scores
    themselves: right for every model, at the price of computing scores for all positions.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = [inner]  # in a list, so that its weights are not counted twice
        self.scale: float | None = None

    def find(self, states: Tensor | None, scores: Tensor) -> None:
        """Settle on the scale with which the states give the scores."""
        if states is None or not scores.any():
            return
        for scale in (1.0, states.shape[-1] ** -0.5):
            self.scale = scale
            if _close(self(states), scores):
                return
        self.scale = None

    def forward(self, states: Tensor) -> Tensor:
        """Scores (..., vocab)."""
        if self.scale is None:
            return states
        scores: Tensor = self.inner[0].get_output_embeddings()(states * self.scale if self.scale != 1.0 else states)
        bias = getattr(self.inner[0], "final_logits_bias", None)
        return scores if bias is None else scores + bias


def _close(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and torch.allclose(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def cache_agrees(
    step: Callable[[ForeignCache, Tensor], Tensor], cache: ForeignCache, ids: Tensor, want: Tensor
) -> bool:
    """Whether decoding in two parts with transformers' own cache gives what it gives in one."""
    try:
        rows = torch.zeros(1, dtype=torch.long, device=ids.device)
        first = step(cache, ids[:, :2])
        cache.select(rows)
        return cache.length == 2 and _close(torch.cat([first, step(cache, ids[:, 2:])], dim=1), want)
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False


def some_ids(inner: Any, vocab: int) -> Tensor:
    """Three ids (1, 3) of the vocabulary to try a model with, on its device."""
    return torch.arange(1, 4, device=inner.device)[None] % vocab
