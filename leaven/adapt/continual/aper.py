"""APER (first named ADAM): adapt a copy of the encoder on the first task, then classify by prototypes of both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from leaven.adapt.continual.features import Inputs, device_of, read_features, rows_in, take
from leaven.adapt.continual.heads import CosineHead, EncoderWithHead
from leaven.adapt.continual.learner import Label, Labels, Learner, checked_labels, distinct, require_classes
from leaven.adapt.continual.prototypes import SimpleCIL
from leaven.adapt.continual.task_training import ClassCrossEntropy, TaskTraining, as_batch, require_module, train
from leaven.errors import ConfigError, DataError, ModelError
from leaven.training.randomness import mix

Adaptation = Callable[[nn.Module, Inputs, Sequence[Label]], nn.Module]
"""Adapts a copy of the encoder, which it may change, to the inputs and labels of the first task and returns it."""


@dataclass(frozen=True)
class CosineTuning:
    """Adaptation by gradients: cross-entropy of a cosine head over the task's classes; the head is thrown away.

    Args:
        attach: puts parameter-efficient modules into the encoder and freezes the rest; None trains all of it.
        training: how to train.

    Source: arXiv 2303.07338 section 4.
    """

    attach: Callable[[nn.Module], nn.Module] | None = None
    training: TaskTraining = field(default_factory=TaskTraining)

    def __call__(self, encoder: nn.Module, inputs: Inputs, labels: Sequence[Label]) -> nn.Module:
        """The adapted encoder. Raises: DataError for a single class; whatever the training raises."""
        present = distinct(labels)
        if len(present) < 2:
            raise DataError(
                f"the first task has the single class {present[0]!r}, over which the loss teaches nothing: "
                "give it at least 2"
            )
        width = read_features(encoder.eval(), take(inputs, slice(0, 1))).shape[1]
        adapted = self.attach(encoder) if self.attach is not None else encoder
        if not any(parameter.requires_grad for parameter in adapted.parameters()):
            raise ModelError("nothing of the encoder can be trained: expected parameters with requires_grad=True")
        generator = torch.Generator().manual_seed(mix(self.training.config.seed, 1))
        target = {label: at for at, label in enumerate(present)}
        fields = list(inputs) if isinstance(inputs, dict) else None
        train(
            EncoderWithHead(adapted, CosineHead(width, len(present), generator)),
            ClassCrossEntropy(range(len(present)), fields, augment=self.training.augment),
            as_batch(inputs, torch.tensor([target[label] for label in labels])),
            self.training,
            seed=0,
            label="adaptation",
        )
        return adapted


@dataclass(frozen=True)
class BatchNormReestimation:
    """Adaptation without gradients: the statistics of batch normalisation are taken anew from the task's inputs.

    They are the plain mean over all batches, so that nothing of the old ones is left however small the task is.

    Args:
        passes: over the inputs, >= 1.
        batch_size: inputs that are normalised together, >= 2.
        seed: of the order of the inputs, which differs from pass to pass.

    Source: arXiv 2303.07338 section 4.
    """

    passes: int = 10
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passes < 1 or self.batch_size < 2:
            raise ConfigError(f"passes {self.passes}, batch_size {self.batch_size}; expected at least 1 and 2")

    def __call__(self, encoder: nn.Module, inputs: Inputs, labels: Sequence[Label]) -> nn.Module:
        """The adapted encoder. Raises: ModelError without batch normalisation, DataError for a single input."""
        del labels
        layers = [
            m
            for m in encoder.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
        ]
        rows, device = rows_in(inputs), device_of(encoder)
        if not layers:
            raise ModelError(
                f"{type(encoder).__name__} has no batch normalisation whose statistics could be taken anew"
            )
        if rows < 2:
            raise DataError("the first task has one input; batch normalisation needs at least 2")
        momenta = [layer.momentum for layer in layers]
        encoder.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for _ in range(self.passes):
                order = torch.randperm(rows, generator=generator)
                # A last batch of one input has no variance: spread the rows evenly instead.
                for part in order.chunk(max(1, round(rows / self.batch_size))):
                    encoder(_moved(take(inputs, part), device))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        return encoder.eval()


class APER(Learner):
    """Adapt and merge: prototypes in the joined features of the frozen encoder and a copy adapted on the first task.

    The first call of `learn` is the first task: a copy of the encoder is adapted to it, and both are frozen for ever.
    Every later call only adds to the means of its classes, as in `SimpleCIL`, so classes may come back.

    Args:
        encoder: a module in evaluation mode, used as it is.
        adapt: how the copy is adapted: `CosineTuning` (all weights, or any parameter-efficient modules),
            `BatchNormReestimation`, or a function of (copy, inputs, labels).
        merge: False uses the adapted features alone: an ablation.
        chunk: inputs encoded at a time.

    Source: arXiv 2303.07338 section 4, Adam there, APER in its journal version.
    """

    def __init__(
        self, encoder: nn.Module, adapt: Adaptation | None = None, *, merge: bool = True, chunk: int = 256
    ) -> None:
        self.encoder = require_module(encoder, "APER")
        self.adapt: Adaptation = adapt or CosineTuning()
        self.merge, self.chunk = merge, chunk
        self.adapted: nn.Module | None = None
        self.prototypes = SimpleCIL(self._joined, chunk=chunk)

    @property
    def classes(self) -> list[Label]:
        """Labels in the order in which they came."""
        return self.prototypes.classes

    def learn(self, inputs: Inputs, labels: Labels) -> None:
        """Adapt to the first task; add labelled inputs to the means of their classes.

        Raises: what `SimpleCIL.learn` and the adaptation raise; the learner is then as it was before.
        """
        if self.adapted is not None:
            self.prototypes.learn(inputs, labels)
            return
        names = checked_labels(labels, rows_in(inputs))
        read_features(self.encoder, inputs, chunk=self.chunk)
        adapted = self.adapt(copy.deepcopy(self.encoder), inputs, names)
        self.adapted = require_module(adapted, "adapt").requires_grad_(False).eval()
        try:
            self.prototypes.learn(inputs, names)
        except BaseException:
            self.adapted = None
            raise

    def _joined(self, inputs: Inputs) -> Tensor:
        if self.adapted is None:
            raise ModelError("nothing has been learnt yet: the first task adapts the encoder")
        adapted = read_features(self.adapted, inputs, chunk=self.chunk)
        if not self.merge:
            return adapted
        return torch.cat([read_features(self.encoder, inputs, chunk=self.chunk), adapted], dim=1)

    def scores(self, inputs: Inputs) -> Tensor:
        """Cosines (rows, classes). Raises: ModelError before the first task; what `read_features` raises."""
        require_classes(self.classes)
        return self.prototypes.scores(inputs)


def _moved(inputs: Inputs, device: torch.device | None) -> Inputs:
    if isinstance(inputs, dict):
        return {name: field.to(device) for name, field in inputs.items()}
    return inputs.to(device) if isinstance(inputs, Tensor) else inputs
