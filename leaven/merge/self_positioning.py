"""Self Positioning: direction and length of the step from a base model, searched on a small balanced probe set."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.contracts import Batch, Loss, Objective
from leaven.errors import ConfigError
from leaven.merge.combination import Combination, gram, merged_terms
from leaven.merge.mixed_model import MixedModel, MixedObjective, RepeatedBatches
from leaven.merge.task_vectors import TaskVector, check_same_base
from leaven.merge.weights import Source, open_weights
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit

_PARALLEL = 0.9995


def slerp_coefficients(proportions: Tensor, products: Tensor, *, share_of_sum: bool = False) -> Tensor:
    """Coefficients c (n,) of the chain of spherical interpolations, V = sum_i c_i tau_i.

    V_1 = tau_1, V_i = slerp(V_{i-1}, tau_i, t_i) with t_i = a_i / (mean(a_1..a_{i-1}) + a_i). slerp keeps the vectors'
    lengths and turns into linear interpolation where they are parallel (|cos| > 0.9995) or one is zero. V depends on
    the order of the tasks, and equal proportions are not a uniform mixture: four orthogonal vectors of one length get
    (.35, .35, .50, .71).

    Args:
        proportions: a (n,), positive; a common factor changes nothing.
        products: inner products of the task vectors (n, n), each vector seen as one over all tensors.
        share_of_sum: t_i = a_i / (a_1 + .. + a_i) instead.

    Differentiable in the proportions.
    Source: arXiv 2410.15035 section 5.1.
    """
    n = len(proportions)
    unit = torch.eye(n, dtype=proportions.dtype, device=proportions.device)
    products = products.to(proportions)
    c = unit[0]
    for i in range(1, n):
        before = proportions[:i].sum() if share_of_sum else proportions[:i].mean()
        t = proportions[i] / (before + proportions[i])
        first, second = _slerp(t, c @ products @ c, products[i, i], c @ products[i])
        c = first * c + second * unit[i]
    return c


def _slerp(t: Tensor, uu: Tensor, vv: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of u and v, from their inner products."""
    if uu.item() <= 0 or vv.item() <= 0:
        return 1 - t, t
    cosine = uv / (uu * vv).sqrt()
    if abs(cosine.item()) > _PARALLEL:
        return 1 - t, t
    angle = cosine.acos()
    return ((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()


class PositionedModel(MixedModel):
    """weights = base + length * sum_i c_i(a) tau_i; only n proportions a and the length are trained.

    Proportions and length are softplus of what is trained; all are 1 at the start.

    Args:
        model: any module of the base's architecture.
        vectors: task vectors of one base, in the order of the chain. Vectors of full weights; of adapters, merge them
            into the weights first: merging A and B of a LoRA is not merging their product.
        share_of_sum: see `slerp_coefficients`.

    Source: arXiv 2410.15035 section 5.1.
    """

    def __init__(self, model: nn.Module, vectors: Sequence[TaskVector], *, share_of_sum: bool = False) -> None:
        if not vectors:
            raise ConfigError("no task vectors to find a position with")
        check_same_base(vectors)
        super().__init__(model, vectors, vectors[0].base)
        self.task_vectors, self.share_of_sum = tuple(vectors), share_of_sum
        self.products = gram(vectors)
        start = math.log(math.e - 1)  # softplus gives 1
        self.raw_proportions = nn.Parameter(torch.full((len(vectors),), start, device=self._device))
        self.raw_length = nn.Parameter(torch.tensor(start, device=self._device))

    @property
    def proportions(self) -> Tensor:
        """a (n,), positive."""
        return F.softplus(self.raw_proportions)

    @property
    def length(self) -> Tensor:
        """lambda, positive scalar."""
        return F.softplus(self.raw_length)

    def per_vector(self) -> Tensor:
        """lambda * c (n,) in float64: what each task vector is multiplied by."""
        chain = slerp_coefficients(self.proportions.double(), self.products, share_of_sum=self.share_of_sum)
        return self.length.double() * chain

    def coefficients(self) -> Tensor:
        """The same for every block."""
        return self.per_vector()[:, None].expand(-1, len(self.blocks))

    def merged(self) -> Combination:
        """The merged weights, computed when they are read or saved."""
        base = self.task_vectors[0].base
        pairs = zip(self.per_vector().tolist(), self.task_vectors, strict=True)
        terms = [term for coefficient, vector in pairs for term in (vector * coefficient).terms]
        return Combination(merged_terms([(base, 1.0), *terms]), f"self-positioned {base.label}")


class ProbeObjective(MixedObjective):
    """Probe loss plus `penalty` times the length, which keeps the probe set from inflating the step.

    Args:
        objective: the probe's loss.
        penalty: mu >= 0; the paper tries 0, 0.05 and 0.10.
    """

    def __init__(self, objective: Objective, penalty: float) -> None:
        super().__init__(objective)
        if not penalty >= 0:
            raise ConfigError(f"penalty is {penalty}: expected 0 or more")
        self.penalty = penalty

    def forward(self, model: PositionedModel, batch: Batch) -> Loss:  # type: ignore[override]
        """`parts` has the probe loss, the length and the proportions."""
        probe: Loss = model.run(self.objective, batch)
        trace = {"probe": probe.total, "length": model.length}
        trace |= {f"proportion_{place}": a for place, a in enumerate(model.proportions, 1)}
        total = probe.total + self.penalty * model.length
        return Loss(total, probe.count, {name: value.detach() for name, value in trace.items()})


class Positioned(NamedTuple):
    """What a search found. model: holds proportions and length; `model.merged().save(folder)` stores the weights.

    trace: probe loss, length and proportions at every step.
    cosines: (n, n) float64 between the task vectors; norms: (n,) float64, their lengths.
    """

    model: PositionedModel
    trace: list[dict[str, float]]
    cosines: Tensor
    norms: Tensor


def self_position(
    model: nn.Module,
    base: Source,
    specialists: Sequence[Source],
    objective: Objective,
    batches: Sequence[Batch],
    *,
    penalty: float = 0.05,
    steps: int = 1000,
    learning_rate: float = 5e-3,
    share_of_sum: bool = False,
) -> Positioned:
    """Search the position between specialists with the lowest probe loss, by Adam through the model.

    Args:
        specialists: two or more models fine-tuned from the base, one per task; their order matters for the start.
        objective: the probe's loss.
        batches: of the probe set, with as many rows of each task; used over and over.
        penalty: mu, what a unit of length costs.

    Raises: ConfigError for fewer than two specialists, ModelError when one does not come from the base.
    Source: arXiv 2410.15035 section 5.1; steps and rate of an independent reimplementation.
    """
    if len(specialists) < 2:
        raise ConfigError(f"{len(specialists)} specialists: expected two or more, one per task")
    origin = open_weights(base, "the base")
    vectors = [TaskVector(open_weights(s, f"specialist {i}"), origin) for i, s in enumerate(specialists, 1)]
    positioned = PositionedModel(model, vectors, share_of_sum=share_of_sum)
    config = TrainingConfig(
        learning_rate=learning_rate,
        weight_decay=0,
        schedule="constant",
        warmup=0,
        clip=None,
        log_every=1,
        progress=False,
    )
    found = fit(positioned, ProbeObjective(objective, penalty), RepeatedBatches(batches), steps, config)
    length = positioned.length.item()
    if length > 2:
        warnings.warn(
            f"the search ended at length {length:.2f}, far outside the specialists: raise penalty ({penalty}) or "
            "use a larger probe set",
            stacklevel=2,
        )
    norms = positioned.products.diagonal().sqrt()
    cosines = positioned.products / (norms[:, None] * norms).clamp(min=1e-300)
    trace = [{k: float(v) for k, v in record.items() if isinstance(v, int | float)} for record in found.records]
    return Positioned(positioned, trace, cosines, norms)
