"""Classifiers that grow: one linear head per task, side by side."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bare_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer whose weights are still to be filled in; draws nothing from the global generator."""
    return cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias))  # type: ignore[no-untyped-call]


class TaskHeads(nn.Module):
    """Linear heads of several tasks, concatenated: features (batch, dim) -> logits (batch, classes of all tasks)."""

    def __init__(self, heads: Iterable[nn.Linear] = ()) -> None:
        super().__init__()
        self.tasks = nn.ModuleList(heads)

    @property
    def _linears(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.tasks))

    @property
    def sizes(self) -> list[int]:
        """Classes of each head, in the order of the logits."""
        return [head.out_features for head in self._linears]

    @property
    def width(self) -> int | None:
        """Width of the features, None without heads."""
        return self._linears[0].in_features if len(self.tasks) else None

    def with_task(self, classes: int, dim: int, std: float, generator: torch.Generator) -> TaskHeads:
        """A copy with one more head: weights drawn from N(0, std^2), bias 0."""
        heads = copy.deepcopy(self)
        head = bare_linear(dim, classes)
        with torch.no_grad():
            head.weight.normal_(0, std, generator=generator)
            head.bias.zero_()
        first = next(heads.parameters(), None)
        heads.tasks.append(head if first is None else head.to(first.device))
        return heads

    def train_only(self, columns: Iterable[int]) -> None:
        """Let only the heads that hold one of these columns of the logits learn."""
        wanted, start = set(columns), 0
        for head, size in zip(self.tasks, self.sizes, strict=True):
            head.requires_grad_(not wanted.isdisjoint(range(start, start + size)))
            start += size

    def forward(self, features: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return torch.cat([head(features) for head in self.tasks], dim=1)


class CosineHead(nn.Module):
    """Learned scale times the cosine of features and class weights (batch, dim) -> (batch, classes).

    Source: arXiv 2303.07338 section 4; `CosineLinear` of the official code.
    """

    def __init__(self, dim: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(dim)
        self.weight = nn.Parameter(torch.empty(classes, dim).uniform_(-bound, bound, generator=generator))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """Logits in [-scale, scale]."""
        return self.scale * (F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).t())


class EncoderWithHead(nn.Module):
    """An encoder and a classifier on its features; inputs -> logits (batch, classes).

    Batch normalisation whose weights are frozen keeps its statistics too: in training mode it stays in evaluation.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def train(self, mode: bool = True) -> EncoderWithHead:
        """Training or evaluation mode, but for frozen batch normalisation."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                weights = list(module.parameters(recurse=False))
                if weights and not any(weight.requires_grad for weight in weights):
                    module.eval()
        return self

    def forward(self, inputs: Any) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.encoder(inputs))
        return logits
