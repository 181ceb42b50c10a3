"""The baselines: fine-tuning on one task after the other, linear probes, and joint training on everything."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.continual.exemplars import Exemplars
from leaven.adapt.continual.features import Encoder, Inputs, joined, read_features, rows_in
from leaven.adapt.continual.heads import EncoderWithHead, TaskHeads
from leaven.adapt.continual.learner import Label, Labels, Learner, checked_labels, distinct, require_classes
from leaven.adapt.continual.task_training import (
    ClassCrossEntropy,
    TaskTraining,
    as_batch,
    require_module,
    train,
    unchanged_on_failure,
)
from leaven.contracts import Batch, Loss
from leaven.errors import ConfigError, DataError
from leaven.training.loop import FitResult
from leaven.training.randomness import mix

Softmax = Literal["task", "seen"]


class _DistilledCrossEntropy(ClassCrossEntropy):
    """Cross-entropy plus the weighted squared distance of unit features to a teacher's; without one, as it is."""

    def __init__(self, teacher: nn.Module | None, weight: float, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.teacher, self.weight = teacher, weight

    def __call__(self, model: Any, batch: Batch) -> Loss:
        if self.teacher is None:
            return super().__call__(model, batch)
        inputs = self.inputs(batch)
        features = model.encoder(inputs)
        classes = self.loss(model.head(features), batch)
        with torch.no_grad():
            earlier = self.teacher.to(features.device)(inputs)
        distance = (F.normalize(features, dim=1) - F.normalize(earlier, dim=1)).square().sum(1).mean()
        parts = {**classes.parts, "distillation": distance.detach()}
        return Loss(classes.total + self.weight * distance, classes.count, parts)


class SequentialFineTuning(Learner):
    """Encoder and a new linear head are trained on each task in turn; the heads of all tasks vote side by side.

    A class that comes back goes on with the head it has. With `slow` 0 the encoder is read once per task and only the
    heads learn: a linear probe.

    Args:
        encoder: a module, of which a copy is trained; with `slow` 0 any encoder, used as it is.
        slow: learning-rate factor of the encoder, in [0, 1].
        softmax: "task" takes the loss over the classes of the current task alone, "seen" over all.
        exemplars_per_class: training inputs kept per class and rehearsed, as many of them in each batch as new ones;
            0 keeps none. Needs the softmax over all classes.
        distillation: weight of the squared distance between unit features and those of the encoder that the task
            began with, >= 0; needs an encoder that is trained.
        head_std: standard deviation of a new head's weights.
        training: how to train on a task.
        chunk: inputs encoded at a time where nothing is trained.

    Raises: ConfigError for options that contradict each other; ModelError when the encoder must be trained and is no
    module.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        slow: float = 1.0,
        softmax: Softmax = "task",
        exemplars_per_class: int = 0,
        distillation: float = 0.0,
        head_std: float = 0.02,
        training: TaskTraining | None = None,
        chunk: int = 256,
    ) -> None:
        self.training = training or TaskTraining()
        if not 0 <= slow <= 1:
            raise ConfigError(f"slow is {slow}; expected a learning-rate factor from 0 (frozen encoder) to 1")
        if softmax not in ("task", "seen"):
            raise ConfigError(f"softmax={softmax!r}; expected 'task' or 'seen'")
        if exemplars_per_class < 0 or (exemplars_per_class and softmax == "task"):
            raise ConfigError(f"exemplars_per_class={exemplars_per_class} needs softmax='seen' and at least 0")
        if distillation < 0 or (distillation and slow == 0):
            raise ConfigError(
                f"distillation={distillation} needs an encoder that is trained (slow above 0) and at least 0"
            )
        if slow == 0 and self.training.augment is not None:
            raise ConfigError("a frozen encoder (slow=0) is read once per task: leave augment out")
        self.slow, self.softmax, self.head_std, self.chunk = slow, softmax, head_std, chunk
        self.distillation = distillation
        self.encoder: Encoder = copy.deepcopy(require_module(encoder, type(self).__name__)).eval() if slow else encoder
        self.heads = TaskHeads()
        self.columns: dict[Label, int] = {}
        self.exemplars = Exemplars(exemplars_per_class)
        self.fits: tuple[FitResult, ...] = ()
        self.tasks = 0

    @property
    def classes(self) -> list[Label]:
        """Labels in the order of the logits."""
        return list(self.columns)

    def fresh(self) -> SequentialFineTuning:
        """A copy that trains an encoder of its own, from where this one stands."""
        twin = copy.copy(self)
        twin.encoder = self.encoder if self._trained is None else copy.deepcopy(self._trained)
        return twin

    @property
    def _trained(self) -> nn.Module | None:
        return self.encoder if self.slow and isinstance(self.encoder, nn.Module) else None

    def learn(self, inputs: Inputs, labels: Labels) -> None:
        """Train on one task. Nothing of it is kept but the weights (and exemplars where asked).

        Raises: DataError for labels or features that cannot be used, or a loss over a single class; ModelError for
        features of another width; whatever the training raises. The learner is then as it was before.
        """
        names = checked_labels(labels, rows_in(inputs), self.columns)
        self._check_task(names)
        with unchanged_on_failure(self, self._trained):
            self._learn(inputs, names)

    def _check_task(self, labels: list[Label]) -> None:
        lossy = set(labels) if self.softmax == "task" else set(labels) | set(self.columns)
        if len(lossy) < 2:
            raise DataError(
                f"the loss would be over the single class {labels[0]!r}, which teaches nothing: give a task at least 2 "
                "classes, or use softmax='seen' or a learner of prototypes (NearestMean, SimpleCIL)"
            )

    def _learn(self, inputs: Inputs, labels: list[Label]) -> None:
        features = self.features(inputs)
        present = distinct(labels)
        new = [label for label in present if label not in self.columns]
        self.columns = {**self.columns, **{label: len(self.columns) + at for at, label in enumerate(new)}}
        generator = torch.Generator().manual_seed(mix(self.training.config.seed, self.tasks, 1))
        heads = copy.deepcopy(self.heads)
        if new:
            heads = heads.with_task(len(new), features.shape[1], self.head_std, generator)
        lossy = present if self.softmax == "task" else list(self.columns)
        heads.train_only(self.columns[label] for label in lossy)
        self._train(inputs if self._trained is not None else features, labels, heads, lossy)
        if self.exemplars.per_class:
            kept = inputs if self._trained is not None else features
            self.exemplars = self.exemplars.with_task(kept, labels, generator)
        self.heads, self.tasks = heads, self.tasks + 1

    def _train(self, inputs: Inputs, labels: list[Label], heads: TaskHeads, lossy: list[Label]) -> None:
        target = {label: at for at, label in enumerate(lossy)}
        data = as_batch(inputs, torch.tensor([target[label] for label in labels]))
        exemplars = self.exemplars.batch(target)
        objective = _DistilledCrossEntropy(
            copy.deepcopy(self._trained) if self.distillation else None,
            self.distillation,
            [self.columns[label] for label in lossy],
            list(inputs) if isinstance(inputs, dict) else None,
            augment=self.training.augment,
            exemplars=exemplars,
        )
        half = max(1, self.training.batch_size // 2)
        training = self.training if exemplars is None else replace(self.training, batch_size=half)
        encoder = self._trained
        learns = encoder is not None and any(parameter.requires_grad for parameter in encoder.parameters())
        result = train(
            EncoderWithHead(encoder or nn.Identity(), heads),
            objective,
            data,
            training,
            seed=self.tasks,
            label=f"task {self.tasks + 1}",
            lr_factors={"encoder.*": self.slow} if learns and self.slow != 1 else None,
        )
        self.fits = self.fits if result is None else (*self.fits, result)

    def features(self, inputs: Inputs) -> Tensor:
        """Features (rows, dim) of the encoder as it is now. Raises: what `read_features` raises."""
        return read_features(self.encoder, inputs, chunk=self.chunk, width=self.heads.width)

    def scores(self, inputs: Inputs) -> Tensor:
        """Logits (rows, classes). Raises: ModelError before the first task; what `read_features` raises."""
        require_classes(self.columns)
        return logits_of(self.heads, self.features(inputs))


class LinearProbe(SequentialFineTuning):
    """A linear head per task on a frozen encoder, trained on one task after the other."""

    def __init__(
        self, encoder: Encoder, *, softmax: Softmax = "task", training: TaskTraining | None = None, chunk: int = 256
    ) -> None:
        super().__init__(encoder, slow=0, softmax=softmax, training=training, chunk=chunk)


class JointTraining(Learner):
    """The upper bound: keeps all data, and trains the encoder it was given anew on everything after each task.

    Args:
        encoder, slow, training, chunk: as for `SequentialFineTuning`; `slow` 0 is the joint linear probe.
    """

    def __init__(
        self, encoder: Encoder, *, slow: float = 1.0, training: TaskTraining | None = None, chunk: int = 256
    ) -> None:
        self.learner = SequentialFineTuning(encoder, slow=slow, training=training, chunk=chunk)
        self._untrained = self.learner
        self.fits: tuple[FitResult, ...] = ()
        self._inputs: list[Inputs] = []
        self._labels: list[Label] = []

    @property
    def classes(self) -> list[Label]:
        """Labels in the order of the logits."""
        return self.learner.classes

    def learn(self, inputs: Inputs, labels: Labels) -> None:
        """Train from the start on all tasks so far and this one. Raises: as `SequentialFineTuning.learn`."""
        names = checked_labels(labels, rows_in(inputs), self._labels[:1])
        learner = self._untrained.fresh()
        learner.learn(joined([*self._inputs, inputs]), [*self._labels, *names])
        self.fits = (*self.fits, *learner.fits)
        self.learner, self._inputs, self._labels = learner, [*self._inputs, inputs], [*self._labels, *names]

    def scores(self, inputs: Inputs) -> Tensor:
        """Logits (rows, classes). Raises: ModelError before the first task; what `read_features` raises."""
        return self.learner.scores(inputs)


def logits_of(heads: TaskHeads, features: Tensor) -> Tensor:
    """Logits (rows, classes) of features (rows, dim), float32, on the CPU, without gradients."""
    first = next(heads.parameters())
    with torch.no_grad():
        return heads(features.to(first.device)).float().cpu()  # type: ignore[no-any-return]
