"""LoRA: a change of low rank beside each frozen weight, from zero or from the weight's principal directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.peft.bottleneck import Bottleneck
from leaven.adapt.peft.linear import patch_linears, require_width
from leaven.adapt.peft.method import Method
from leaven.adapt.peft.patches import Patch, own_type, require_float
from leaven.adapt.peft.sites import Projection
from leaven.adapt.peft.spectra import signed_svd
from leaven.adapt.peft.targets import select
from leaven.errors import ConfigError


class PrincipalLowRank(Bottleneck):
    """A low-rank change that starts at the weight's top singular part, which is taken off again.

    Source: arXiv 2404.02948 section 3 (PiSSA): both factors hold the root of the singular values.
    """

    down_start: Tensor
    up_start: Tensor

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        """Take the principal part of a weight (outputs, inputs), and begin there."""
        u, values, v = signed_svd(weight)
        rank = len(self.down)
        root = (values[:rank] / float(self.scale)).sqrt()
        up, down = u[:, :rank] * root, v[:, :rank].t() * root[:, None]
        self.register_buffer("up_start", up, persistent=False)
        self.register_buffer("down_start", down, persistent=False)
        self.up.copy_(up)
        self.down.copy_(down)

    def forward(self, x: Tensor) -> Tensor:
        """The change."""
        start = F.linear(F.linear(x.to(self.down.dtype), self.down_start), self.up_start)
        return super().forward(x) - start * self.scale

    def matrix(self) -> Tensor:
        """The change as one matrix."""
        return super().matrix() - self.up_start @ self.down_start * self.scale

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these outputs alone."""
        super().keep_rows(rows)
        self.up_start = self.up_start[rows]


@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank adaptation: y = W x + (alpha / rank) B A x, with B zero at first.

    Args:
        rank: of each change, at least 1. alpha: scale times rank.
        targets: which projections, as in `sites.select`. dropout: of the input of A, in [0, 1).
        init: "zero", or "pissa": from the weight's `rank` greatest singular values.
        split: give each part of a fused matrix its own A and B; False treats the matrix as one, as peft does.
        overrides: (rank, alpha) by name of a module, where they differ.

    Example:
        >>> model = LoRA(rank=8, alpha=16, targets="q,v", train=("classifier*",)).apply(model)  # doctest: +SKIP

    Raises: ConfigError for a rank that is larger than a matrix allows, or targets that match nothing.
    Source: arXiv 2106.09685 section 4.1.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str | tuple[str, ...] = "q,v"
    dropout: float = 0.0
    init: Literal["zero", "pissa"] = "zero"
    split: bool = True
    overrides: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init not in ("zero", "pissa"):
            raise ConfigError(f"init={self.init!r}: expected zero or pissa")
        if not 0 <= self.dropout < 1 or self.alpha <= 0:
            raise ConfigError(f"dropout={self.dropout}, alpha={self.alpha}: expected [0, 1) and a positive number")
        if self.init == "pissa" and self.dropout:
            raise ConfigError("init='pissa' with dropout: the model would not start as the base model, set dropout=0")

    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """The patches."""
        chosen = select(model, self.targets)
        if not self.split:
            chosen = _whole(chosen)
        changes: dict[Projection, nn.Module] = {}
        for part in chosen:
            require_float(model, (part.name,))
            rank, alpha = self.overrides.get(part.module, (self.rank, self.alpha))
            weight = part.weight(model).detach()
            require_width(part, rank, weight.shape[1], "rank")
            kind = Bottleneck if self.init == "zero" else PrincipalLowRank
            change = kind(weight.shape[1], weight.shape[0], rank, scale=alpha / rank, dropout=self.dropout)
            changes[part] = change.initialise("lora", generator).to(**own_type(model, part.name))
            if isinstance(change, PrincipalLowRank):
                change.start_at(weight)
        return patch_linears("lora", chosen, changes)


def _whole(chosen: list[Projection]) -> list[Projection]:
    """Fused matrices in one piece."""
    found: dict[str, Projection] = {}
    for part in chosen:
        stop = max(part.stop, found[part.name].stop) if part.name in found else part.stop
        role = part.role if part.parts == 1 else ""
        found[part.name] = Projection(part.module, part.tensor, role, 0, stop, 1, part.transposed, part.parametrized)
    return list(found.values())
