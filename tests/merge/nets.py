"""Small models for the tests of merging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.contracts import Batch, Loss

INPUTS, CLASSES = 6, 3


class Net(nn.Module):
    """Two layers and a norm; `scores` is a second way to call it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Linear(INPUTS, 8)
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, CLASSES)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)


class Tied(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Embedding(5, 4)
        self.embed.weight.data = torch.randn(5, 4, generator=generator)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embed(ids))


class CrossEntropy:
    """An objective that calls a method of the model, not the model."""

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        return batch

    def __call__(self, model: Any, batch: Batch) -> Loss:
        total = F.cross_entropy(model.scores(batch["x"]), batch["y"])
        return Loss(total, torch.tensor(len(batch["y"])), {})


class SquaredError(CrossEntropy):
    """Half the mean of squares of a linear model."""

    def __call__(self, model: Any, batch: Batch) -> Loss:
        error = model(batch["x"]).squeeze(-1) - batch["y"]
        return Loss(0.5 * error.square().mean(), torch.tensor(len(error)), {})


def near(state: dict[str, Tensor], seed: int, size: float = 0.1) -> dict[str, Tensor]:
    """A state dict with noise on its floating-point tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        n: t + size * torch.randn(t.shape, generator=generator, dtype=t.dtype) if t.is_floating_point() else t.clone()
        for n, t in state.items()
    }


def batches(count: int = 3, rows: int = 16, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "x": torch.randn(rows, INPUTS, generator=generator),
            "y": torch.randint(0, CLASSES, (rows,), generator=generator),
        }
        for _ in range(count)
    ]


def finite_difference(loss: Callable[[], Tensor], parameter: Tensor, index: tuple[int, ...], step: float) -> float:
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            parameter[index] += sign * step
            values.append(float(loss()))
            parameter[index] -= sign * step
    return (values[0] - values[1]) / (2 * step)
