"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class WeightAverage:
    """average = decay * average + (1 - decay) * weights after every step, from the first weights on.

    Args:
        parameters: the parameters by name; the average covers the floating-point ones.
        decay: share of the old average that stays, in (0, 1).
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in parameters.items() if p.is_floating_point()}
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        torch._foreach_lerp_(list(self.average.values()), list(self._parameters.values()), 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average; a second call undoes it."""
        for name, parameter in self._parameters.items():
            weights = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(weights)
