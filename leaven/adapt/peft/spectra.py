"""Singular values of weights: a decomposition with fixed signs, the rank that holds a share of it, SVFit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.peft.linear import LinearPatch, patch_linears, require_width
from leaven.adapt.peft.method import Method, adaptation_of
from leaven.adapt.peft.patches import Patch, require_float
from leaven.adapt.peft.sites import Projection
from leaven.adapt.peft.targets import select
from leaven.errors import ConfigError, ModelError


class SVD(NamedTuple):
    """weight = u diag(values) v^T; u (outputs, k), values (k,) descending, v (inputs, k)."""

    u: Tensor
    values: Tensor
    v: Tensor


@torch.no_grad()
def signed_svd(weight: Tensor) -> SVD:
    """Singular value decomposition, in float32 at least; the entry of largest size in each column of u is positive.

    weight: (outputs, inputs), floating point.
    """
    u, values, vt = torch.linalg.svd(weight.to(torch.promote_types(weight.dtype, torch.float32)), full_matrices=False)
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    return SVD(u * signs, values, vt.t() * signs)


def rank_for(values: Tensor, share: float, criterion: str) -> int:
    """How many singular values, descending, hold the share of their sum ("nuclear") or squares' sum ("energy")."""
    weights = values.double() ** (2 if criterion == "energy" else 1)
    held = weights.cumsum(0) / weights.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return min(int((held < share - 1e-12).sum()) + 1, len(values))


class SingularScale(nn.Module):
    """u diag(s - values) v^T: only s trains, and it starts at the singular values, where the change is exactly zero.

    `s` has one dimension, so weight decay, which would pull it away from the base model, leaves it alone.
    Shapes: (..., inputs) -> (..., outputs).
    """

    u: Tensor
    v: Tensor
    values: Tensor

    def __init__(self, found: SVD, *, stored: bool = False) -> None:
        super().__init__()
        for name, tensor in zip(SVD._fields, found, strict=True):
            self.register_buffer(name, tensor.contiguous(), persistent=stored)
        self.s = nn.Parameter(found.values.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The change."""
        return F.linear(F.linear(x.to(self.u.dtype), self.v.t()) * (self.s - self.values), self.u)

    def matrix(self) -> Tensor:
        """The change as one matrix (outputs, inputs)."""
        return (self.u * (self.s - self.values)) @ self.v.t()


@dataclass(frozen=True)
class SVFit(Method):
    """Train the largest singular values of each weight; singular vectors and the rest stay frozen.

    Args:
        energy: share of the spectrum that the trained values hold, in (0, 1]; exclusive with `rank`.
        rank: how many values train in each weight.
        criterion: "energy" measures the share in squares, "nuclear" in the values themselves.
        basis: "top", the vectors of the largest values; as controls "bottom", those of the smallest, and "random",
            orthonormal vectors from the generator, which are stored with the adapter.
        targets: which projections, as in `sites.select`; each part of a fused matrix has its own spectrum.

    Example:
        >>> model = SVFit(energy=0.99, targets="*.attn.*_proj").apply(model)  # doctest: +SKIP

    Learning rates are larger than LoRA's, 1e-3 to 1e-2: the values are of the size of singular values.
    Raises: ConfigError for a rank beyond min(outputs, inputs), or when both or neither of energy and rank are given.
    Source: arXiv 2409.05926 section 3.
    """

    energy: float | None = None
    rank: int | None = None
    criterion: Literal["energy", "nuclear"] = "energy"
    basis: Literal["top", "bottom", "random"] = "top"
    targets: str | tuple[str, ...] = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.energy is None) == (self.rank is None):
            raise ConfigError(f"SVFit(energy={self.energy}, rank={self.rank}): give one of the two")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy={self.energy}: expected a share in (0, 1]")
        if self.criterion not in ("energy", "nuclear"):
            raise ConfigError(f"criterion={self.criterion!r}: expected energy or nuclear")
        if self.basis not in ("top", "bottom", "random"):
            raise ConfigError(f"basis={self.basis!r}: expected top, bottom or random")

    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """The patches."""
        chosen = select(model, self.targets)
        changes: dict[Projection, nn.Module] = {}
        for part in chosen:
            require_float(model, (part.name,))
            weight = part.weight(model).detach()
            if self.rank is not None:
                require_width(part, self.rank, weight.shape[1], "rank")
            found = signed_svd(weight)
            rank = self.rank or rank_for(found.values, self.energy or 1.0, self.criterion)
            kept = slice(len(found.values) - rank, None) if self.basis == "bottom" else slice(rank)
            trained = SVD(found.u[:, kept], found.values[kept], found.v[:, kept])
            if self.basis == "random":
                trained = _random_vectors(trained, generator)
            changes[part] = SingularScale(trained, stored=self.basis == "random")
        return patch_linears("svfit", chosen, changes)


def _random_vectors(like: SVD, generator: torch.Generator | None) -> SVD:
    """The same values between random orthonormal vectors; zero vectors, to be filled in, without a generator."""
    if generator is None:
        return SVD(torch.zeros_like(like.u), like.values, torch.zeros_like(like.v))
    drawn = (torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for x in (like.u, like.v))
    u, v = (torch.linalg.qr(x).Q for x in drawn)
    return SVD(u, like.values, v)


def spectra(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Trained singular values before and after, (rank,) each, by module and part. Raises: ModelError without SVFit."""
    found = {
        f"{patch.host}:{part.role or 'all'}": (change.values.clone(), change.s.detach().clone())
        for patch in adaptation_of(model).modules(model)
        if isinstance(patch, LinearPatch)
        for part, change in patch.items()
        if isinstance(change, SingularScale)
    }
    if not found:
        raise ModelError("the model carries no SVFit, and no other method trains singular values")
    return found
