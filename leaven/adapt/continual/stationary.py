"""Stationary representations: every version of a model is trained against the same fixed simplex."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from leaven.adapt.continual.exemplars import Exemplars
from leaven.adapt.continual.features import Inputs, read_features, rows_in
from leaven.adapt.continual.learner import Label, Labels, Learner, checked_labels, distinct, require_classes
from leaven.adapt.continual.simplex_encoder import SimplexEncoder, Slots, require_on_simplex, slot_numbers
from leaven.adapt.continual.task_training import (
    ClassCrossEntropy,
    TaskTraining,
    as_batch,
    train,
    unchanged_on_failure,
)
from leaven.contracts import Batch, Loss
from leaven.errors import ConfigError, ModelError
from leaven.objectives.backward_compatibility import SameClass, higher_order_compatibility
from leaven.training.loop import FitResult
from leaven.training.randomness import mix


class _CompatibleLoss(ClassCrossEntropy):
    """weight * cross-entropy over all slots + (1 - weight) * compatibility with the old model."""

    def __init__(
        self, old: SimplexEncoder, learner: CompatibleLearner, fields: list[str] | None, **options: Any
    ) -> None:
        super().__init__(range(old.slots), fields, **options)
        self.old, self.learner = old, learner

    def __call__(self, model: Any, batch: Batch) -> Loss:
        features, weight = model(self.inputs(batch)), self.learner.weight
        classes = self.loss(model.head(features), batch)
        if weight == 1:
            return classes
        with torch.no_grad():
            earlier = self.old.to(features.device)(self.inputs(batch))
        compatible = higher_order_compatibility(
            earlier, features, batch["target"], scale=self.learner.scale, same_class=self.learner.same_class
        )
        parts = {**classes.parts, "compatibility": compatible.detach()}
        return Loss(weight * classes.total + (1 - weight) * compatible, classes.count, parts)


class CompatibleLearner(Learner):
    """A stream trained on a fixed simplex with rehearsal, so that features of any version search any older gallery.

    Each task's old model is a copy of the weights it starts from; `replace` puts a model from elsewhere, trained on the
    same simplex, in the place of the present one. Start from a pre-trained one: compatibility with an untrained model
    holds features where they happen to lie. Pre-training is the same with side="front", weight=1 and
    exemplars_per_class=0.

    Args:
        model: of which a copy is trained.
        side: "end" gives the first class the last vertex, "front" the first.
        reserved: vertices at the other end that are taken, or will be by a replacement.
        exemplars_per_class: inputs kept per class, as many of them in each batch as new ones; 0 keeps none.
        weight: of the cross-entropy, in [0, 1]; the rest is the compatibility with the old model. 1 leaves that out.
        scale, same_class: of `higher_order_compatibility`.
        training: how to train on a task.

    Source: arXiv 2405.02581 equation 3.
    """

    def __init__(
        self,
        model: SimplexEncoder,
        *,
        side: Literal["front", "end"] = "end",
        reserved: int = 0,
        exemplars_per_class: int = 20,
        weight: float = 0.1,
        scale: float = 10.0,
        same_class: SameClass = "zero",
        training: TaskTraining | None = None,
        chunk: int = 256,
    ) -> None:
        if not 0 <= weight <= 1 or exemplars_per_class < 0 or side not in ("front", "end"):
            raise ConfigError(
                f"weight={weight}, exemplars_per_class={exemplars_per_class}, side={side!r}; expected a share in "
                "[0, 1], at least 0, and 'front' or 'end'"
            )
        self.model = copy.deepcopy(model).eval()
        self.slots = Slots(model.slots, reserved, side).checked()
        self.exemplars = Exemplars(exemplars_per_class)
        self.weight, self.scale, self.chunk = weight, scale, chunk
        self.same_class: SameClass = same_class
        self.training = training or TaskTraining()
        self.fits: tuple[FitResult, ...] = ()
        self.tasks = 0

    @property
    def classes(self) -> list[Label]:
        """Labels in the order of the columns of `scores`."""
        return list(self.slots.of)

    def learn(self, inputs: Inputs, labels: Labels) -> None:
        """Train on one task, rehearsing exemplars of earlier ones.

        Raises: DataError for labels or features that cannot be used; ModelError when the slots run out; whatever the
        training raises. The learner is then as it was before.
        """
        names = checked_labels(labels, rows_in(inputs), self.slots.of)
        slots = self.slots.with_classes(distinct(names))
        self.features(inputs)
        with unchanged_on_failure(self, self.model):
            exemplars = self.exemplars.batch(slots.of)
            objective = _CompatibleLoss(
                self.version(),
                self,
                list(inputs) if isinstance(inputs, dict) else None,
                augment=self.training.augment,
                exemplars=exemplars,
            )
            half = max(1, self.training.batch_size // 2)
            result = train(
                self.model,
                objective,
                as_batch(inputs, torch.tensor([slots.of[label] for label in names])),
                self.training if exemplars is None else replace(self.training, batch_size=half),
                seed=self.tasks,
                label=f"task {self.tasks + 1}",
            )
            if self.exemplars.per_class:
                generator = torch.Generator().manual_seed(mix(self.training.config.seed, self.tasks, 2))
                self.exemplars = self.exemplars.with_task(inputs, names, generator)
            self.fits = self.fits if result is None else (*self.fits, result)
            self.slots, self.tasks = slots, self.tasks + 1

    def version(self) -> SimplexEncoder:
        """A copy of the model as it is now, which later tasks do not change: to index a gallery with."""
        return copy.deepcopy(self.model)

    def replace(self, model: SimplexEncoder, inputs: Inputs, slots: Labels) -> None:
        """Go on from a model that was trained elsewhere on the same simplex; a copy of it takes the present one's
        place, and the vertices up to the last that it is known to use are reserved.

        Args:
            model: in evaluation mode.
            inputs, slots: some examples of the classes it was trained on, and their vertices: the proof that its
                simplex is this one.

        Raises: ModelError for another number of slots, vertices that local classes have taken, or a model that is not
        on the simplex.
        """
        if model.slots != self.slots.total:
            raise ModelError(f"a model on a simplex of {model.slots} slots cannot replace one of {self.slots.total}")
        numbers = slot_numbers(slots, rows_in(inputs), model.slots)
        if taken := set(numbers) & set(self.slots.of.values()):
            raise ModelError(f"slot {min(taken)} is a local class's, and the new model uses it too: they would collide")
        reach = max(numbers) + 1 if self.slots.side == "end" else model.slots - min(numbers)
        slots_left = replace(self.slots, reserved=max(self.slots.reserved, reach)).checked()
        require_on_simplex(model, inputs, numbers)
        self.model, self.slots = copy.deepcopy(model).eval(), slots_left

    def features(self, inputs: Inputs) -> Tensor:
        """Features (rows, slots - 1) of the model as it is now. Raises: what `read_features` raises."""
        return read_features(self.model, inputs, chunk=self.chunk, width=self.slots.total - 1)

    def scores(self, inputs: Inputs) -> Tensor:
        """Logits (rows, classes). Raises: ModelError before the first task; what `read_features` raises."""
        require_classes(self.slots.of)
        return self.features(inputs) @ self.model.head.vertices.cpu()[list(self.slots.of.values())].t()
