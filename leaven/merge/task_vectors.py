"""Task vectors: what fine-tuning added to the pre-trained weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch

from leaven.errors import ModelError
from leaven.merge.combination import Combination, Term, gram, merged_terms
from leaven.merge.compatibility import check_combinable, floating, sample, warn_of_strangers
from leaven.merge.weights import Source, Spec, Weights, open_weights


class TaskVector(Combination):
    """Fine-tuned minus base weights, over all floating-point tensors, in float32 or better.

    Vectors of one base can be added, subtracted, scaled and negated. Values are read when they are needed (before that
    only the beginnings of matrices, to warn of unrelated models), and the base's once however many vectors meet in an
    expression.

    Raises: ModelError naming the tensors in which the two models differ.
    Source: arXiv 2212.04089 section 2; analogies a + (b - c) section 5.
    """

    def __init__(self, finetuned: Source, base: Source) -> None:
        tuned, origin = open_weights(finetuned, "the fine-tuned model"), open_weights(base, "the base")
        check_combinable([tuned, origin], same_task=False)
        warn_of_strangers([tuned], origin, stacklevel=3)
        self._set([(tuned, 1.0), (origin, -1.0)], origin, f"{tuned.label} - {origin.label}")

    def _set(self, terms: Sequence[Term], base: Weights, label: str) -> None:
        super().__init__(merged_terms(terms), label)
        self.base, self.folder = base, None
        self.specs = {
            name: Spec(spec.shape, torch.promote_types(spec.dtype, torch.float32))
            for name, spec in floating(base).items()
        }

    def _new(self, terms: Sequence[Term], label: str) -> Self:
        made = object.__new__(type(self))
        made._set(terms, self.base, label)
        return made

    def __add__(self, other: TaskVector) -> Self:
        """Raises: ModelError when the vectors start from different weights."""
        check_same_base([self, other])
        return self._new([*self.terms, *other.terms], f"({self.label}) + ({other.label})")

    def __radd__(self, other: int | TaskVector) -> Self:
        # sum() starts from the number 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, factor: float) -> Self:
        if not math.isfinite(factor):
            raise ModelError(f"{self.label} cannot be multiplied by {factor}: expected a finite number")
        return self._new([(weights, c * factor) for weights, c in self.terms], f"{factor:g} * ({self.label})")

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        return self * -1.0

    def __sub__(self, other: TaskVector) -> Self:
        return self + -other

    def dot(self, other: TaskVector) -> float:
        """Inner product over all tensors."""
        return float(gram([self, other])[0, 1])

    def norm(self) -> float:
        """Euclidean length over all tensors."""
        return float(gram([self])[0, 0].sqrt())

    def cosine(self, other: TaskVector) -> float:
        """Cosine of the angle between the vectors, in [-1, 1]; 0 where one of them is zero."""
        products = gram([self, other])
        lengths = (products[0, 0] * products[1, 1]).sqrt()
        return float(products[0, 1] / lengths) if lengths > 0 else 0.0

    def apply(self, base: Source | None = None, coefficient: float = 1.0) -> Combination:
        """base + coefficient * vector, in the base's types and with its integer tensors.

        Args:
            base: the weights to change; None takes those the vector starts from.
            coefficient: scaling; negative ones forget the task.

        Raises: ModelError when the vector does not fit the base.
        """
        origin = self.base if base is None else open_weights(base, "the base")
        check_combinable([self.base, origin], same_task=False)
        scaled = self * coefficient
        return Combination(merged_terms([(origin, 1.0), *scaled.terms]), f"{origin.label} + {scaled.label}")

    def record(self) -> dict[str, Any]:
        """The terms, and the base."""
        return {**super().record(), "base": self.base.label}


def check_same_base(vectors: Sequence[TaskVector]) -> None:
    """Raise ModelError unless all vectors start from the same weights (of large tensors the beginning is compared)."""
    first = vectors[0].base
    check_combinable([vector.base for vector in vectors], same_task=False)
    for other in (vector.base for vector in vectors[1:]):
        if other.identity == first.identity:
            continue
        different = [name for name in floating(first) if not torch.equal(sample(first, name), sample(other, name))]
        if different:
            raise ModelError(
                f"task vectors of different bases cannot be combined: {first.label} and {other.label} differ in "
                f"{len(different)} tensors, first in {different[0]}"
            )
