"""The types that rooms of the house hand to one another; the only module every room may import beside `errors`."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Batch = dict[str, Tensor]
"""Named tensors whose first dimension is the batch. Field names are defined by the modality that makes them."""


class Tokens(NamedTuple):
    """What a pre-net hands to the trunk.

    x: hidden states (batch, tokens, dim), floating point.
    mask: (batch, tokens) bool, True where there is a real token; None means every position is real.
    positions: (batch, tokens) int64 >= 0, None means 0..tokens-1.
    """

    x: Tensor
    mask: Tensor | None = None
    positions: Tensor | None = None


class Loss(NamedTuple):
    """What an objective returns.

    total: scalar, the mean over `count` terms; back-propagate this.
    count: scalar, how many terms (tokens, examples) the mean is over. Accumulation and data parallelism weight by it,
        so that the gradient equals that of one large batch.
    parts: detached scalars by name, for the log.
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # the field's name wins over tuple.count
    parts: dict[str, Tensor]


class Objective(Protocol):
    """Corruption and loss of one idea. Stateless objectives are plain objects, those with a head are modules."""

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Corrupt the batch; the result depends on the batch and the generator's state alone."""
        ...

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """Loss of the model on a prepared batch."""
        ...
