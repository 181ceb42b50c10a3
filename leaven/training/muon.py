"""Muon: momentum made orthogonal, for the matrices of a model's blocks; AdamW for every other parameter."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from leaven.training.distributed import fill, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Fused projections are several matrices in one; each is made orthogonal by itself.
_FUSED = {"qkv_proj.weight": 3, "qkv.weight": 3, "in_proj_weight": 3, "kv_proj.weight": 2}


def hidden_matrices(module: nn.Module) -> dict[str, int]:
    """Names of the matrices inside repeated blocks (children of a ModuleList), with how many are fused in each.

    Embeddings, heads, vectors and stacks of matrices are not among them.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    found = {}
    for path, blocks in module.named_modules():
        if not isinstance(blocks, nn.ModuleList):
            continue
        for name, parameter in blocks.named_parameters():
            if parameter.ndim == 2 and id(parameter) not in embeddings:
                parts = next((count for end, count in _FUSED.items() if name.split(".", 1)[-1].endswith(end)), 1)
                found[f"{path}.{name}" if path else name] = parts
    return found


@torch.no_grad()
def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T of each matrix U S V^T (..., rows, columns): its singular values end between 0.7 and 1.2.

    Newton-Schulz iteration of fifth order. Source: K. Jordan and others, "Muon", 2024.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.AdamW):
    """Muon over the groups marked `muon`, AdamW over the others.

    An update is the orthogonalized Nesterov momentum, times 0.2 sqrt(max(rows, columns)) so that its size is that of an
    AdamW update and one learning rate fits both (arXiv 2502.16982 section 2.2). Weight decay is decoupled.

    Args:
        groups: as AdamW takes them; with `muon: True` and `parts`, the number of matrices fused in each parameter.
        momentum: decay rate of the momentum, in [0, 1).
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        self.momentum = momentum

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            super().step(closure)
        finally:
            self.param_groups = groups
        self._step_matrices([group for group in groups if group["muon"]])

    @torch.no_grad()
    def _step_matrices(self, groups: list[dict[str, Any]]) -> None:
        # Matrices of one shape are made orthogonal together.
        waiting: dict[torch.Size, list[tuple[Tensor, Tensor, int]]] = defaultdict(list)
        updates: dict[Tensor, tuple[list[Tensor], float]] = {}
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
                update = whole(parameter.grad.lerp(state["momentum"], self.momentum))
                parts = update.chunk(group["parts"])
                updates[parameter] = (list(parts), group["lr"])
                for index, part in enumerate(parts):
                    waiting[part.shape].append((parameter, part, index))
        for shape, items in waiting.items():
            scale = 0.2 * math.sqrt(max(shape))
            made = orthogonalized(torch.stack([part for _, part, _ in items])) * scale
            for (parameter, _, index), matrix in zip(items, made, strict=True):
                updates[parameter][0][index] = matrix
        for parameter, (matrices, rate) in updates.items():
            update = torch.cat(matrices) if len(matrices) > 1 else matrices[0]
            if hasattr(parameter, "full_tensor"):
                shard = torch.empty_like(parameter)
                fill(shard, update, "update")
                update = shard
            parameter.add_(update, alpha=-rate)
