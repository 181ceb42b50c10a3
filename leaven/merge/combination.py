"""Linear combinations of weights, computed chunk by chunk when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leaven.merge.compatibility import check_combinable, floating, overflow, refuse_nonfinite
from leaven.merge.weights import Weights

Term = tuple[Weights, float]
"""Weights and the coefficient that they are multiplied by."""


class Combination(Weights):
    """sum_i coefficient_i * weights_i over floating-point tensors; integer tensors are the first's.

    Sums are taken in float64 and rounded once, so that the average of equal models is the model itself.

    Args:
        terms: weights that `check_combinable` has passed, and coefficients; at least one.
        label: name in messages.

    Raises: ModelError on reading, when one holds NaN or infinite values or the type cannot hold the sum.
    """

    def __init__(self, terms: Sequence[Term], label: str) -> None:
        self.terms, self.label = tuple(terms), label
        self.specs, self.folder = terms[0][0].specs, terms[0][0].folder

    def flat(self, name: str, start: int, stop: int) -> Tensor:
        """Entries start..stop of the combination."""
        dtype = self.specs[name].dtype
        if not dtype.is_floating_point:
            return self.terms[0][0].flat(name, start, stop)
        total = torch.zeros(stop - start, dtype=torch.float64)
        for weights, coefficient in self.terms:
            total.add_(weights.flat(name, start, stop), alpha=coefficient)
        rounded = total.to(dtype)
        if not rounded.isfinite().all():
            refuse_nonfinite([weights for weights, _ in self.terms])
            overflow(name, dtype)
        return rounded

    def record(self) -> dict[str, Any]:
        """The terms and their coefficients."""
        return {"combination": [{"source": weights.label, "coefficient": c} for weights, c in self.terms]}


def merged_terms(terms: Sequence[Term]) -> list[Term]:
    """Terms in which weights that occur several times are one term, with the sum of their coefficients."""
    found: dict[Any, Term] = {}
    for weights, coefficient in terms:
        first, so_far = found.get(weights.identity, (weights, 0.0))
        found[weights.identity] = (first, so_far + coefficient)
    return list(found.values())


def gram(vectors: Sequence[Weights]) -> Tensor:
    """Inner products (n, n) float64 of weights, each seen as one long vector of its floating-point tensors.

    Raises: ModelError when the vectors differ in their tensors.
    """
    check_combinable(vectors, same_task=False)
    found = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for name in floating(vectors[0]):
        for start, stop in vectors[0].chunks(name):
            rows = torch.stack([vector.flat(name, start, stop).double() for vector in vectors])
            found += rows @ rows.T
    return found
