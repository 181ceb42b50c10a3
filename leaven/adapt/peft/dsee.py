"""Low-rank plus sparse changes (DSEE): where the sparse entries lie, and the change itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from leaven.adapt.peft.bottleneck import Bottleneck
from leaven.adapt.peft.linear import patch_linears, require_width
from leaven.adapt.peft.method import Method
from leaven.adapt.peft.patches import Patch, own_type, require_float
from leaven.adapt.peft.sites import Projection
from leaven.adapt.peft.targets import select
from leaven.errors import ConfigError


class LowRankSparseParts(NamedTuple):
    """weight = u v + sparse + small rest; u (outputs, k), v (k, inputs), sparse (outputs, inputs)."""

    u: Tensor
    v: Tensor
    sparse: Tensor


@torch.no_grad()
def low_rank_sparse(
    weight: Tensor, generator: torch.Generator, *, rounds: int = 1, step: int = 5, threshold: float = 0.01
) -> LowRankSparseParts:
    """Greedy decomposition of a matrix into a low-rank and a sparse part.

    Args:
        weight: (outputs, inputs); decomposed in float32 at least.
        rounds: each after the first adds `step` to the rank. The sparse part is lost when the rank comes near the
            matrix size: keep rounds * step well below min(outputs, inputs).
        threshold: sparse entries below it are zero while the parts are fitted.

    Raises: ConfigError when the rank would reach the size of the matrix.
    Source: arXiv 2111.00160 section 3.2, the GreBsmo algorithm.
    """
    if rounds < 1 or step < 1 or rounds * step >= min(weight.shape):
        raise ConfigError(
            f"rounds={rounds}, step={step}: a rank of {rounds * step} leaves nothing for the sparse part of a "
            f"matrix of shape {tuple(weight.shape)}"
        )
    w = weight.detach().to("cpu", torch.promote_types(weight.dtype, torch.float32))
    v = torch.randn(step, w.shape[1], generator=generator, dtype=w.dtype)
    rest = None
    for _ in range(rounds):
        sparse = torch.zeros_like(w)
        if rest is not None:
            v = torch.cat([v, torch.linalg.qr(rest).R[:step]])
        for _ in range(2):
            u = torch.linalg.qr((w - sparse) @ v.t()).Q
            v = u.t() @ (w - sparse)
            sparse = w - u @ v
            sparse[sparse.abs() < threshold] = 0
        rest = w - u @ v - sparse
    return LowRankSparseParts(u, v, sparse)


class LowRankSparse(Bottleneck):
    """scale * (U V + S) with S zero but for the entries at `rows`, `columns`, whose `values` are trained.

    Shapes: (..., inputs) -> (..., outputs). rows, columns: (entries,) int64. Source: arXiv 2111.00160 equation 1.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, inputs: int, outputs: int, rank: int, entries: int, *, scale: float) -> None:
        super().__init__(inputs, outputs, rank, scale=scale)
        self.values = nn.Parameter(torch.zeros(entries))
        self.register_buffer("rows", torch.zeros(entries, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(entries, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """The change."""
        x = x.to(self.values.dtype)
        low = super().forward(x)
        return low.index_add(-1, self.rows, (x[..., self.columns] * (self.values * self.scale)).to(low.dtype))

    def low_rank(self) -> Tensor:
        """The low-rank part alone, scaled."""
        return super().matrix()

    def matrix(self) -> Tensor:
        """The change as one matrix (outputs, inputs)."""
        return self.low_rank().index_put((self.rows, self.columns), self.values * self.scale, accumulate=True)

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these outputs alone, and of the sparse entries those that lie in them."""
        outputs = len(self.up)
        super().keep_rows(rows)
        place = torch.full((outputs,), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        new = place[self.rows]
        kept = new >= 0
        self.values = nn.Parameter(self.values.detach()[kept])
        self.rows, self.columns = new[kept], self.columns[kept]


@dataclass(frozen=True)
class DSEE(Method):
    """A low-rank update plus a handful of free entries; `pruning` then thins the frozen weights by it.

    Args:
        rank: of U V, 0 for none. sparse: free entries per matrix, 0 for none, None for as many as one more rank would
            have numbers. alpha: scale times rank.
        targets: which projections, as in `sites.select`.
        support: free entries where the sparse part of the frozen weight is largest, or "random".
        rounds: of the decomposition, see `low_rank_sparse`.

    Raises: ConfigError for more entries than a matrix has, or a rank beyond its size.
    Source: arXiv 2111.00160 section 3.2; V is normal with deviation 0.02, U and the entries start at zero.
    """

    rank: int = 16
    sparse: int | None = 16
    alpha: float = 32.0
    targets: str | tuple[str, ...] = "q,v"
    support: Literal["decomposition", "random"] = "decomposition"
    rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        sparse = 1 if self.sparse is None else self.sparse
        if self.rank < 0 or sparse < 0 or self.rank + sparse == 0 or self.alpha <= 0:
            raise ConfigError(
                f"rank={self.rank}, sparse={self.sparse}, alpha={self.alpha}: expected sizes of at least 0, not both "
                "0, and a positive alpha"
            )
        if self.support not in ("decomposition", "random"):
            raise ConfigError(f"support={self.support!r}: expected decomposition or random")

    def build(self, model: nn.Module, generator: torch.Generator | None) -> list[Patch]:
        """The patches."""
        chosen = select(model, self.targets)
        changes: dict[Projection, nn.Module] = {}
        for part in chosen:
            require_float(model, (part.name,))
            weight = part.weight(model)
            outputs, inputs = weight.shape
            sparse = outputs + inputs if self.sparse is None else self.sparse
            if sparse > outputs * inputs:
                raise ConfigError(f"sparse={sparse}: {part.module} ({part.role}) has {outputs * inputs} entries")
            if self.rank:
                require_width(part, self.rank, inputs, "rank")
            change = LowRankSparse(inputs, outputs, self.rank, sparse, scale=self.alpha / max(self.rank, 1))
            if generator is not None:
                nn.init.normal_(change.down, std=0.02, generator=generator)
                entries = self._support(weight, sparse, generator)
                change.rows, change.columns = entries // inputs, entries % inputs
            changes[part] = change.to(**own_type(model, part.name))
        return patch_linears("dsee", chosen, changes)

    def _support(self, weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Flat places (entries,) of the free entries, ascending."""
        if self.support == "random" or not count:
            return torch.randperm(weight.numel(), generator=generator)[:count].sort().values
        size = low_rank_sparse(weight, generator, rounds=self.rounds).sparse.abs()
        return size.flatten().topk(count).indices.sort().values
