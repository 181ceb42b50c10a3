"""Gradients of losses with respect to a model's weights: which tasks conflict, which blocks of task vectors help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leaven.contracts import Batch, Objective
from leaven.errors import ConfigError
from leaven.merge.compatibility import floating
from leaven.merge.mixed_model import block_names, run_with
from leaven.merge.weights import Source, Spec, Weights, open_weights


def weight_gradients(
    model: nn.Module, objective: Objective, batches: Iterable[Batch], at: Source | None = None
) -> dict[str, Tensor]:
    """Gradient by parameter name of the mean loss over prepared batches, at the model's own or other weights.

    Frozen parameters have gradients too. The model runs in eval mode and is left as it was.

    Raises: ConfigError without batches, ModelError when `at` does not fit the model.
    """
    weights = {name: p.detach() for name, p in model.named_parameters() if p.is_floating_point()}
    if at is not None:
        source = open_weights(at, "the weights")
        places = block_names(model, [source])
        weights = {name: source.tensor(places[source, name]).to(p) for name, p in weights.items()}
    weights = {name: tensor.requires_grad_() for name, tensor in weights.items()}
    sums = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    modes = {module: module.training for module in model.modules()}
    terms = 0.0
    try:
        model.eval()
        for batch in batches:
            loss = run_with(model, weights, objective, batch)
            count = float(loss.count)
            found = torch.autograd.grad(loss.total * count, list(weights.values()), allow_unused=True)
            for name, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient
            terms += count
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not terms:
        raise ConfigError("gradients need at least one batch with something to predict")
    return {name: (total / terms).detach() for name, total in sums.items()}


class TaskConflict(NamedTuple):
    """How the gradients of tasks relate at one point of training.

    tasks: names, in the order of the rows. cosines: (tasks, tasks) float64 in [-1, 1].
    negative: share of pairs of tasks with a negative cosine, in [0, 1]; 0 for a single task.
    """

    tasks: tuple[str, ...]
    cosines: Tensor
    negative: float


def task_conflict(model: nn.Module, objective: Objective, batches: Mapping[str, Iterable[Batch]]) -> TaskConflict:
    """Cosines between the gradients of the tasks' losses at the model's present weights.

    Args:
        batches: prepared batches of each task.

    Source: arXiv 2410.15035, task conflict.
    """
    gradients = [weight_gradients(model, objective, of_task) for of_task in batches.values()]
    count = len(gradients)
    products = torch.zeros(count, count, dtype=torch.float64)
    for name in gradients[0]:
        rows = torch.stack([gradient[name].flatten().double().cpu() for gradient in gradients])
        products += rows @ rows.T
    lengths = products.diagonal().sqrt()
    cosines = products / (lengths[:, None] * lengths).clamp(min=1e-300)
    pairs = cosines[*torch.triu_indices(count, count, 1)]
    return TaskConflict(tuple(batches), cosines, float((pairs < 0).double().mean()) if len(pairs) else 0.0)


def block_scores(
    model: nn.Module, base: Source, vectors: Sequence[Weights], objective: Objective, batches: Iterable[Batch]
) -> Tensor:
    """How much the loss changes with each coefficient of a `ComposedModel` at zero: |<gradient, vector>|.

    The vectors are read one tensor at a time; only the model and one gradient are in memory.

    Returns: (vectors, blocks) float64, blocks in the order of the model's parameters.
    Source: arXiv 2407.02880, selection of blocks under a memory budget.
    """
    gradients = weight_gradients(model, objective, batches, base)
    places = block_names(model, vectors)
    return torch.tensor(
        [
            [
                abs(float(g.double().cpu().flatten() @ v.tensor(places[v, n]).double().flatten()))
                for n, g in gradients.items()
            ]
            for v in vectors
        ],
        dtype=torch.float64,
    )


def best_blocks(scores: Tensor, budget: int) -> Tensor:
    """Indices (budget, blocks) of the vectors with the largest scores for each block, best first.

    Args:
        scores: (vectors, blocks).
        budget: vectors' worth of memory, in 1..vectors.

    Raises: ConfigError for an impossible budget.
    """
    if not 1 <= budget <= len(scores):
        raise ConfigError(f"budget is {budget}: expected 1 to {len(scores)} vectors")
    return scores.topk(budget, dim=0).indices


def random_blocks(vectors: int, blocks: int, budget: int, generator: torch.Generator) -> Tensor:
    """As `best_blocks`, but drawn at random for each block without replacement: the control of an ablation."""
    return best_blocks(torch.rand(vectors, blocks, generator=generator, dtype=torch.float64), budget)


def best_vectors(scores: Tensor, budget: int) -> Tensor:
    """As `best_blocks`, but the same whole vectors for every block: those with the largest sums of scores."""
    return best_blocks(scores.sum(1, keepdim=True), budget).expand(-1, scores.shape[1])


def composite_vectors(model: nn.Module, vectors: Sequence[Weights], chosen: Tensor) -> list[Weights]:
    """Vectors put together block by block: the j-th takes block p from vector `chosen[j, p]`.

    Args:
        chosen: (composites, blocks) int64, from `best_blocks`.
    """
    places = block_names(model, vectors)
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    return [
        _Composite(
            {name: (vectors[i], places[vectors[i], name]) for name, i in zip(names, row, strict=True)},
            f"composite {place}",
        )
        for place, row in enumerate(chosen.tolist(), 1)
    ]


class _Composite(Weights):
    def __init__(self, parts: Mapping[str, tuple[Weights, str]], label: str) -> None:
        self._parts, self.label = dict(parts), label
        self.specs: dict[str, Spec] = {name: floating(weights)[place] for name, (weights, place) in parts.items()}

    def flat(self, name: str, start: int, stop: int) -> Tensor:
        weights, place = self._parts[name]
        return weights.flat(place, start, stop)

    def record(self) -> dict[str, Any]:
        return {"composite": {name: weights.label for name, (weights, _) in self._parts.items()}}
