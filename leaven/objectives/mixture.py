"""Several objectives in one training: one drawn per step, or all of them weighted in each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from leaven.contracts import Batch, Loss
from leaven.errors import ConfigError

Weight = float | Callable[[int], float]
"""A number, or a schedule: a function of the step, read from the batch's `step` field."""


def _checked(objectives: Mapping[str, Any], weights: Mapping[str, Weight] | None) -> dict[str, Weight]:
    if not objectives:
        raise ConfigError("a mixture needs at least one objective")
    weights = dict.fromkeys(objectives, 1.0) if weights is None else dict(weights)
    unknown = set(weights) ^ set(objectives)
    if unknown:
        raise ConfigError(f"weights and objectives differ in {sorted(unknown)}: give each objective one weight")
    negative = {name: w for name, w in weights.items() if isinstance(w, float | int) and w < 0}
    if negative:
        raise ConfigError(f"negative weights {negative}: expected numbers >= 0")
    return weights


class _Mixture(nn.Module):
    def __init__(self, objectives: Mapping[str, Any], weights: Mapping[str, Weight] | None = None) -> None:
        super().__init__()
        self.weights = _checked(objectives, weights)
        self.objectives = dict(objectives)
        self.heads = nn.ModuleDict({n: o for n, o in objectives.items() if isinstance(o, nn.Module)})

    def _weights_at(self, batch: Batch) -> torch.Tensor:
        step = int(batch["step"]) if "step" in batch else 0
        values = [w(step) if callable(w) else w for w in self.weights.values()]
        if sum(values) <= 0:
            raise ConfigError(
                f"all weights of the mixture {list(self.weights)} are 0 at step {step}: one must be positive"
            )
        return torch.tensor(values, dtype=torch.float64)


class Alternate(_Mixture):
    """Draw one objective per batch, with probability proportional to its weight.

    CodeT5 alternates masked spans, tagging and masked identifiers, equally often (arXiv 2109.00859 section 3.2).
    A weight may be a function of the step, read from the batch's `step` field.
    """

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draw and corrupt; the field `objective` (scalar) says which was drawn."""
        weights = self._weights_at(batch)
        # Inverse transform of one number: the draw is the same wherever the generator stands alike.
        point = torch.rand((), generator=generator, dtype=torch.float64) * weights.sum()
        drawn = int((weights.cumsum(0) <= point).sum().clamp(max=len(weights) - 1))
        name = list(self.objectives)[drawn]
        return {**self.objectives[name].prepare(batch, generator), "objective": torch.tensor(drawn)}

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """Loss of the drawn objective, under its name."""
        name = list(self.objectives)[int(batch["objective"])]
        loss: Loss = self.objectives[name](model, batch)
        return loss


class Weighted(_Mixture):
    """Sum of all objectives in every step, each on its own corruption of the batch, times its weight."""

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Corrupt once per objective; fields are prefixed `name/`."""
        weights = self._weights_at(batch)
        prepared: Batch = {"weights": weights}
        for name, objective in self.objectives.items():
            prepared |= {f"{name}/{field}": value for field, value in objective.prepare(batch, generator).items()}
        return prepared

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """Weighted sum of the mean losses; `count` is the largest count among them."""
        losses: dict[str, Loss] = {}
        for name, objective in self.objectives.items():
            own = {key.removeprefix(f"{name}/"): v for key, v in batch.items() if key.startswith(f"{name}/")}
            losses[name] = objective(model, own)
        pairs = list(zip(batch["weights"].tolist(), losses.values(), strict=True))
        total = torch.stack([weight * loss.total for weight, loss in pairs]).sum()
        count = torch.stack([loss.count for loss in losses.values()]).max()
        return Loss(total, count, {part: value for loss in losses.values() for part, value in loss.parts.items()})
