"""aTLAS: task vectors composed with one learned coefficient per vector and parameter tensor."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from leaven.errors import ConfigError
from leaven.merge.mixed_model import MixedModel
from leaven.merge.task_vectors import TaskVector, check_same_base
from leaven.merge.weights import MemoryWeights, Source, Weights, open_weights
from leaven.training.checkpoint import replaced


class ComposedModel(MixedModel):
    """weights[p] = base[p] + sum_i coefficient[i, p] * vector_i[p]; every parameter tensor, biases and norms too.

    coefficient: the only parameter, 0 at the start: (vectors, blocks); (vectors, blocks, groups) with several groups
    (aTLAS x K); (vectors, 1) with one number per vector.

    Train it with `leaven.training.loop.fit` and a `MixedObjective`, or in any loop:
    `ComposedModel(model, base, vectors)` is called as the model is.

    Args:
        model: any module of the base's architecture.
        base: weights that the vectors are added to.
        vectors: task vectors, or what `composite_vectors` makes of them.
        per: "block" for a coefficient per parameter tensor, "vector" for plain task arithmetic with learned factors.
        groups, generator, store: see `MixedModel`.

    Raises: ModelError for vectors of different bases or other blocks; ConfigError without vectors.
    Source: arXiv 2407.02880.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Source,
        vectors: Sequence[Weights],
        *,
        per: Literal["block", "vector"] = "block",
        groups: int = 1,
        generator: torch.Generator | None = None,
        store: torch.dtype = torch.float32,
    ) -> None:
        if not vectors or per not in ("block", "vector"):
            raise ConfigError(f"{len(vectors)} vectors, per={per!r}: expected at least one, per 'block' or 'vector'")
        if task_vectors := [vector for vector in vectors if isinstance(vector, TaskVector)]:
            check_same_base(task_vectors)
        origin = open_weights(base, "the base")
        super().__init__(model, vectors, origin, groups=groups, generator=generator, store=store)
        self._base = origin
        self.labels = [vector.label for vector in vectors]
        columns = len(self.blocks) if per == "block" else 1
        shape = (len(vectors), columns, groups) if groups > 1 else (len(vectors), columns)
        self.coefficient = nn.Parameter(torch.zeros(shape, device=self._device))

    def coefficients(self) -> Tensor:
        """(vectors, blocks), or (vectors, blocks, groups)."""
        every: Tensor = self.coefficient.expand(-1, len(self.blocks), *self.coefficient.shape[2:])
        return every

    def linearised(self, *args: Any) -> Any:
        """What the model returns at the base weights plus its derivative in the direction of the composed vector.

        Source: arXiv 2305.12827; the linearised variant of arXiv 2407.02880.
        """
        base = {name: self._origin[name].view(self._shapes[name]) for name in self.blocks}
        step = {name: tensor - base[name] for name, tensor in self.weights().items()}
        found = jvp(lambda weights: functional_call(self.model, weights, args), (base,), (step,))
        return found[0] + found[1]

    def baked(self) -> MemoryWeights:
        """The composed weights, with the base's configuration."""
        return self.bake(self._base)

    def regulariser(self, norm: Literal[1, 2] = 1) -> Tensor:
        """0.5 * mean over blocks of the norm of their coefficients, scalar; to be weighted and added to a loss.

        Source: arXiv 2407.02880, task addition.
        """
        per_block = self.coefficients().transpose(0, 1).flatten(1)
        lengths: Tensor = torch.linalg.vector_norm(per_block, ord=norm, dim=1)
        return 0.5 * lengths.mean()

    def write_coefficients(self, path: Path | str) -> None:
        """A CSV table with one row per vector and block: vector, block, group, coefficient."""
        values = self.coefficients().detach().cpu()
        values = values if values.ndim == 3 else values[..., None]
        with replaced(Path(path)) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["vector", "block", "group", "coefficient"])
            for vector, rows in zip(self.labels, values.tolist(), strict=True):
                for block, groups in zip(self.blocks, rows, strict=True):
                    table.writerows([vector, block, group, value] for group, value in enumerate(groups))
