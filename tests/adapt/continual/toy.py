"""A small world for the continual learners: Gaussian classes behind a random non-linear view, and a small encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leaven.adapt.continual import TaskTraining
from leaven.training.config import TrainingConfig

INPUT, WIDTH = 12, 8


class Encoder(nn.Module):
    def __init__(self, seed: int = 0, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Linear(INPUT, 24)
            self.norm = nn.BatchNorm1d(24) if batch_norm else nn.Identity()
            self.drop = nn.Dropout(dropout)
            self.last = nn.Linear(24, WIDTH)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(self.first(inputs)).tanh()))


def classes(count: int = 6, rows: int = 30, spread: float = 0.6, seed: int = 0) -> tuple[Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, INPUT, generator=torch.Generator().manual_seed(99))
    inputs = centres.repeat_interleave(rows, 0)
    inputs = inputs + spread * torch.randn(inputs.shape, generator=generator)
    return inputs, [f"class {at}" for at in range(count) for _ in range(rows)]


def quick(budget: str = "4 epochs", rate: float = 1e-2, **settings: object) -> TaskTraining:
    config = {"learning_rate": rate, "weight_decay": 0.0, "schedule": "constant", "warmup": 0, "progress": False}
    return TaskTraining(budget, TrainingConfig(**{**config, **settings}), 16)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
