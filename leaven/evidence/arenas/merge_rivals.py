"""Rivals of composed task vectors with as few numbers: the heads alone, or low-rank changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leaven.adapt.peft import LoRA
from leaven.adapt.peft.sites import projections


class HeadProbe(nn.Module):
    """The heads of a `HeadedEncoder` as the only parameter that is trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.heads = nn.Parameter(model.get_buffer("heads").clone())
        self.model = model.requires_grad_(False)

    def forward(self, **inputs: Tensor) -> Tensor:
        """The model's logits with these heads."""
        logits: Tensor = functional_call(self.model, {"heads": self.heads}, (), inputs)
        return logits

    def settle(self) -> None:
        """Put the heads into the model."""
        self.model.get_buffer("heads").copy_(self.heads.detach())


def with_low_rank(model: nn.Module, wanted: int, seed: int) -> nn.Module:
    """LoRA of rank 1 on so many query and value projections, the last ones first, that it trains `wanted` numbers."""
    targets: list[str] = []
    numbers = 0
    for place in reversed([one for one in projections(model) if one.role in ("q", "v")]):
        if numbers < wanted:
            targets.append(f"{place.module}:{place.role}")
            numbers += sum(place.weight(model).shape)
    return LoRA(rank=1, alpha=1.0, targets=tuple(targets)).apply(model, torch.Generator().manual_seed(seed))
