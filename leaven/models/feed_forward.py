"""What a block does to each token by itself: dense, gated and expert feed-forward layers, and norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.errors import ConfigError

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "quick_gelu"]
NormKind = Literal["layer", "rms"]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "quick_gelu": _quick_gelu,
}


def make_norm(kind: NormKind, dim: int, eps: float) -> nn.Module:
    """Layer norm (arXiv 1607.06450) or root-mean-square norm (arXiv 1910.07467)."""
    if kind == "layer":
        return nn.LayerNorm(dim, eps=eps)
    if kind == "rms":
        return nn.RMSNorm(dim, eps=eps)
    raise ConfigError(f"unknown norm {kind!r}: expected layer or rms")


class FeedForward(nn.Module):
    """Two linear maps with an activation between; gated: one map's activation multiplies another (arXiv 2002.05202).

    Shapes: (..., dim) -> (..., dim).
    """

    def __init__(
        self, dim: int, hidden: int, *, activation: Activation, bias: bool, gated: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up_proj = nn.Linear(dim, hidden, bias=bias)
        self.gate_proj = nn.Linear(dim, hidden, bias=bias) if gated else None
        self.down_proj = nn.Linear(hidden, dim, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token."""
        if self.gate_proj is None:
            hidden = self.activation(self.up_proj(x))
        else:
            hidden = self.activation(self.gate_proj(x)) * self.up_proj(x)
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        out: Tensor = self.down_proj(hidden)
        return out


class ExpertFeedForward(nn.Module):
    """Top-k routed experts: each token goes to its k most likely experts, weighted by their renormalised probability.

    After each call `balance_loss` holds num_experts * sum_e f_e * P_e, with f_e the share of assignments that expert e
    received and P_e its mean probability: 1 when the load is even.

    Shapes: (..., dim) -> (..., dim).
    Source: arXiv 2101.03961 section 2.2 (balance loss), arXiv 2401.04088 section 2 (top-k, renormalised).
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        experts: int,
        experts_per_token: int,
        activation: Activation,
        bias: bool,
        gated: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 1 <= experts_per_token <= experts:
            raise ConfigError(f"experts_per_token={experts_per_token} must lie between 1 and experts={experts}")
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(
            FeedForward(dim, hidden, activation=activation, bias=bias, gated=gated, dropout=dropout)
            for _ in range(experts)
        )
        self.experts_per_token = experts_per_token
        self.balance_loss: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Route each token, run each expert once over the tokens that chose it, and add up."""
        tokens = x.reshape(-1, x.shape[-1])
        probability = self.router(tokens).float().softmax(-1)
        weight, chosen = probability.topk(self.experts_per_token, dim=-1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        share = F.one_hot(chosen, len(self.experts)).float().mean(dim=(0, 1))
        self.balance_loss = len(self.experts) * (share * probability.mean(0)).sum()
        out = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            row, slot = (chosen == index).nonzero(as_tuple=True)
            out = out.index_add(0, row, (expert(tokens[row]) * weight[row, slot, None]).to(out.dtype))
        return out.view_as(x)


def balance_loss(model: nn.Module) -> Tensor | None:
    """Mean balance loss over the expert layers of a model in its last call, or None when it has none."""
    losses = [
        m.balance_loss for m in model.modules() if isinstance(m, ExpertFeedForward) and m.balance_loss is not None
    ]
    return torch.stack(losses).mean() if losses else None
