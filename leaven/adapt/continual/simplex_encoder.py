"""Models on a fixed simplex: the encoder, whose vertex is whose, and the proof that a model belongs to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.continual.features import Inputs, read_features, rows_in
from leaven.adapt.continual.heads import bare_linear
from leaven.adapt.continual.learner import Label, Labels, checked_labels
from leaven.adapt.continual.statistics import ClassStatistics
from leaven.errors import ModelError
from leaven.objectives.simplex import SimplexHead


class SimplexEncoder(nn.Module):
    """An encoder and a linear layer without bias to the space of a simplex: inputs -> features (batch, slots - 1).

    Args:
        encoder: gives features (batch, dim).
        dim: their width; None where it is slots - 1 already, and no layer is put behind.
        slots: of the simplex, the same for all models that are to be compatible.
        generator: of the layer's first weights; one with seed 0 when None.
    """

    def __init__(
        self, encoder: nn.Module, dim: int | None, slots: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, SimplexHead(slots)
        self.projection: nn.Linear | None = None
        if dim is not None:
            self.projection = bare_linear(dim, slots - 1, bias=False)
            bound = dim**-0.5
            with torch.no_grad():
                self.projection.weight.uniform_(-bound, bound, generator=generator or torch.Generator().manual_seed(0))

    @property
    def slots(self) -> int:
        """Classes that can ever be."""
        return self.head.slots

    def forward(self, inputs: Any) -> Tensor:
        """Features (batch, slots - 1), not normalised. Raises: ModelError for an encoder of another width."""
        features: Tensor = self.encoder(inputs)
        if self.projection is not None:
            return self.projection(features)  # type: ignore[no-any-return]
        if features.shape[-1] != self.slots - 1:
            raise ModelError(
                f"the encoder gives {features.shape[-1]} dimensions, a simplex of {self.slots} slots needs "
                f"{self.slots - 1}: give dim={features.shape[-1]}, so that a linear layer is put behind it"
            )
        return features


@dataclass(frozen=True)
class Slots:
    """Which vertex is whose: pre-training takes vertices from the front, local training from the end.

    Args:
        total: of the simplex.
        reserved: vertices 0 .. reserved - 1 belong to the other side's classes.
        side: from where new classes get theirs.
        of: the vertex of each class.
    """

    total: int
    reserved: int = 0
    side: Literal["front", "end"] = "end"
    of: Mapping[Label, int] = field(default_factory=dict)

    def with_classes(self, labels: Collection[Label]) -> Slots:
        """These, and one more for each label that has none. Raises: ModelError when the free ones run out."""
        slots = dict(self.of)
        for label in labels:
            if label not in slots:
                slots[label] = len(slots) if self.side == "front" else self.total - 1 - len(slots)
        return replace(self, of=slots).checked()

    def checked(self) -> Slots:
        """These. Raises: ModelError when one is taken twice or there are more classes than slots."""
        free = self.total - self.reserved
        if self.reserved < 0 or len(self.of) > free:
            raise ModelError(
                f"{len(self.of)} classes for {free} free slots ({self.total} of the simplex, {self.reserved} taken by "
                "the other side): the number of slots is fixed for ever, so train all models on a larger simplex"
            )
        return self


def slot_numbers(slots: Labels, rows: int, total: int) -> list[int]:
    """The vertices of rows as whole numbers. Raises: DataError for other values, ModelError for one out of range."""
    numbers = cast("list[int]", checked_labels(slots, rows, [0]))
    wrong = next((slot for slot in numbers if not 0 <= slot < total), None)
    if wrong is not None:
        raise ModelError(f"slot {wrong} is none of the simplex, which has slots 0 to {total - 1}")
    return numbers


def simplex_agreement(model: SimplexEncoder, inputs: Inputs, slots: Labels) -> dict[int, float]:
    """Cosine of the mean feature of each class and its vertex, in [-1, 1]; near 1 for a model trained on the simplex.

    Args:
        model: in evaluation mode.
        inputs: of classes it was trained on.
        slots: the vertex of each input.

    Raises: ModelError for a slot that the simplex does not have; what `read_features` raises.
    """
    numbers = slot_numbers(slots, rows_in(inputs), model.slots)
    statistics = ClassStatistics()
    statistics.update(F.normalize(read_features(model, inputs, nonzero=True), dim=1), numbers)
    vertices = model.head.vertices.cpu().double()
    return {
        slot: float(F.cosine_similarity(statistics.mean(slot), vertices[slot], dim=0))
        for slot in dict.fromkeys(numbers)
    }


def require_on_simplex(model: SimplexEncoder, inputs: Inputs, slots: Labels, at_least: float = 0.5) -> None:
    """Raises: ModelError when the mean cosine of `simplex_agreement` is below a bound: no model of this simplex."""
    cosines = simplex_agreement(model, inputs, slots)
    mean = sum(cosines.values()) / len(cosines)
    if not mean >= at_least:
        raise ModelError(
            f"the model's class means have a mean cosine of {mean:.2f} to their vertices; expected at least "
            f"{at_least:g}: it was trained on another classifier, or its classes have other slots"
        )
