"""LAE: a fast module learns the task, its slow average remembers, both vote."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from leaven.adapt.continual.expert_files import read_expert, write_expert
from leaven.adapt.continual.features import Inputs, read_features, rows_in
from leaven.adapt.continual.fine_tuning import logits_of
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
from leaven.errors import ConfigError, DataError, ModelError
from leaven.training.config import TrainingConfig
from leaven.training.ema import WeightAverage
from leaven.training.loop import FitResult
from leaven.training.randomness import mix

Attach = Callable[[nn.Module], nn.Module]
"""Puts parameter-efficient modules into an encoder and returns it (or a module around it)."""

Expert = Literal["ensemble", "online", "offline"]


def _default_training() -> TaskTraining:
    return TaskTraining(config=TrainingConfig(learning_rate=2.8e-3, weight_decay=0, schedule="constant", warmup=0))


class _Accumulating(ClassCrossEntropy):
    """The local loss, with the modules frozen in the first steps and averaged after every step.

    The loop asks for the next batch when a step is done, so that is when the average takes in its weights.
    """

    def __init__(self, columns: Sequence[int], fields: Sequence[str] | None, **options: Any) -> None:
        self.frozen_steps: int = options.pop("frozen_steps")
        self._start: Callable[[], WeightAverage] | None = options.pop("average")
        super().__init__(columns, fields, **options)
        self.average: WeightAverage | None = None
        self._step = 0

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        step = int(batch["step"])
        if self.average is None and self._start is not None:
            # Not before the loop has moved the module to its device.
            self.average = self._start()
        if step > self._step:
            self.step_done()
        self._step = step
        return super().prepare(batch, generator)

    def step_done(self) -> None:
        if self.average is not None:
            self.average.update()

    def __call__(self, model: Any, batch: Batch) -> Loss:
        if int(batch["step"]) >= self.frozen_steps:
            return super().__call__(model, batch)
        with torch.no_grad():
            features = model.encoder(self.inputs(batch))
        return self.loss(model.head(features), batch)


class LAE(Learner):
    """Learning, accumulation, ensemble: parameter-efficient modules learn online, an exponential average stays offline.

    The encoder is frozen. The online modules are trained on each task and never reset; from the second task on, first
    only the task's new head learns, then all. The offline modules are a copy of the online ones made at the start of
    the second task, and move towards them by 1 - decay after every optimiser step. Both share the heads; a class's
    score is the larger of its two probabilities over all classes.

    Args:
        encoder: a module; its copy gets the modules.
        attach: puts the modules into that copy, where all else is frozen before; what can be trained afterwards, and
            the buffers beside it, is the module. LoRA, adapters and prefixes should start as the identity.
        decay: of the average, in [0, 1), or "auto": 0.9^(1 / steps of the task), which is the paper's 0.9999 at its
            1040 steps per task.
        freeze: share of the steps, from the second task on, in which only the new head learns, in [0, 1].
        vote: "max" of the two probabilities, or their "mean": an ablation.
        head_std: standard deviation of a new head's weights.
        training: how to train on a task, with a budget in steps, examples or epochs.
        chunk: inputs encoded at a time where nothing is trained.

    Raises: ConfigError for values out of range or a budget in other units; ModelError when there is nothing to train.
    Source: arXiv 2303.10070 section 3; `main.py` of the official code. The rule "auto" is ours.
    """

    def __init__(
        self,
        encoder: nn.Module,
        attach: Attach,
        *,
        decay: float | Literal["auto"] = "auto",
        freeze: float = 0.6,
        vote: Literal["max", "mean"] = "max",
        head_std: float = 1e-3,
        training: TaskTraining | None = None,
        chunk: int = 256,
    ) -> None:
        if decay != "auto" and not 0 <= decay < 1:
            raise ConfigError(f"decay is {decay}; expected a number in [0, 1) or 'auto'")
        if not 0 <= freeze <= 1:
            raise ConfigError(f"freeze is {freeze}; expected a share from 0 to 1")
        if vote not in ("max", "mean"):
            raise ConfigError(f"vote={vote!r}; expected 'max' or 'mean'")
        self.training = training or _default_training()
        if self.training.steps_for(1) is None:
            raise ConfigError(
                f"LAE freezes for a share of the steps, which a budget of {self.training.budget!r} leaves open: "
                "give it in steps, examples or epochs"
            )
        self.decay, self.freeze, self.vote, self.head_std, self.chunk = decay, freeze, vote, head_std, chunk
        frozen = copy.deepcopy(require_module(encoder, "LAE")).requires_grad_(False)
        self.encoder = attach(frozen).eval()
        if not self._module_tensors():
            raise ModelError("attach left nothing to train: expected new parameters with requires_grad=True")
        self.heads = TaskHeads()
        self.columns: dict[Label, int] = {}
        self.offline: WeightAverage | None = None
        self.fits: tuple[FitResult, ...] = ()

    @property
    def classes(self) -> list[Label]:
        """Labels in the order of the logits."""
        return list(self.columns)

    @property
    def tasks(self) -> int:
        """Tasks learnt so far."""
        return len(self.heads.sizes)

    def _module_tensors(self) -> dict[str, Tensor]:
        """Parameters that learn, and the floating-point buffers of the modules that they belong to."""
        found: dict[str, Tensor] = {}
        for prefix, module in self.encoder.named_modules():
            own = {name: p for name, p in module.named_parameters(recurse=False) if p.requires_grad}
            if own:
                buffers = {n: b for n, b in module.named_buffers(recurse=False) if b.is_floating_point()}
                found |= {f"{prefix}.{name}".lstrip("."): tensor for name, tensor in (own | buffers).items()}
        return found

    def learn(self, inputs: Inputs, labels: Labels) -> None:
        """Train on one task of new classes.

        Raises: DataError for labels or features that cannot be used, a class that comes back, or a task of one class;
        whatever the training raises. The learner is then as it was before.
        """
        names = checked_labels(labels, rows_in(inputs), self.columns)
        present = distinct(names)
        back = next((label for label in present if label in self.columns), None)
        if back is not None or len(present) < 2:
            raise DataError(
                f"class {back!r} was learnt in an earlier task: give each task new classes, or use NearestMean"
                if back is not None
                else f"the task has the single class {names[0]!r}, over which the loss teaches nothing: give at least 2"
            )
        with unchanged_on_failure(self, self.encoder):
            self._learn(inputs, names, present)

    def _learn(self, inputs: Inputs, labels: list[Label], present: list[Label]) -> None:
        width = self.features(inputs).shape[1]
        generator = torch.Generator().manual_seed(mix(self.training.config.seed, self.tasks, 1))
        heads = self.heads.with_task(len(present), width, self.head_std, generator)
        first = len(self.columns)
        self.columns = {**self.columns, **{label: first + at for at, label in enumerate(present)}}
        heads.train_only(self.columns[label] for label in present)
        steps = self.training.steps_for(len(labels)) or 0
        average = partial(self._continued_average, steps) if self.tasks else None
        target = {label: at for at, label in enumerate(present)}
        objective = _Accumulating(
            [self.columns[label] for label in present],
            list(inputs) if isinstance(inputs, dict) else None,
            augment=self.training.augment,
            frozen_steps=round(self.freeze * steps) if self.tasks else 0,
            average=average,
        )
        result = train(
            EncoderWithHead(self.encoder, heads),
            objective,
            as_batch(inputs, torch.tensor([target[label] for label in labels])),
            self.training,
            seed=self.tasks,
            label=f"task {self.tasks + 1}",
        )
        if result is not None:
            objective.step_done()
            self.fits = (*self.fits, result)
        if average is not None:
            self.offline = objective.average or average()
        self.heads = heads

    def _continued_average(self, steps: int) -> WeightAverage:
        """The offline module so far, or a copy of the online one, as an average of its own for this task."""
        decay = 0.9 ** (1 / max(steps, 1)) if self.decay == "auto" else float(self.decay)
        average = WeightAverage(self._module_tensors(), decay)
        if self.offline is not None:
            for name, tensor in average.average.items():
                tensor.copy_(self.offline.average[name])
        return average

    def features(self, inputs: Inputs) -> Tensor:
        """Features (rows, dim) with the online modules. Raises: what `read_features` raises."""
        return read_features(self.encoder, inputs, chunk=self.chunk, width=self.heads.width)

    @contextmanager
    def _offline_in_place(self) -> Iterator[None]:
        if self.offline is None:
            raise ModelError("there is no offline expert before the second task")
        self.offline.swap()
        try:
            yield
        finally:
            self.offline.swap()

    def scores(self, inputs: Inputs, expert: Expert = "ensemble") -> Tensor:
        """Probabilities (rows, classes) over all classes; of the ensemble their maximum, which does not add up to 1.

        Raises: ModelError before the first task, or for the offline expert before the second; what `read_features`
        raises.
        """
        require_classes(self.columns)
        if expert not in get_args(Expert):
            raise ConfigError(f"expert={expert!r}; expected one of {', '.join(get_args(Expert))}")
        if expert == "offline":
            with self._offline_in_place():
                return self.scores(inputs, "online")
        online = logits_of(self.heads, self.features(inputs)).softmax(1)
        if expert == "online" or self.offline is None:
            return online
        offline = self.scores(inputs, "offline")
        return torch.maximum(online, offline) if self.vote == "max" else (online + offline) / 2

    def save(self, folder: Path | str) -> Path:
        """Write `online.safetensors` and, from the second task on, `offline.safetensors`: modules, heads and labels.

        Raises: ModelError before the first task; DataError for labels other than text, numbers and booleans.
        """
        require_classes(self.columns)
        folder = Path(folder)
        write_expert(folder / "online.safetensors", self._module_tensors(), self.heads, self.classes)
        if self.offline is not None:
            write_expert(folder / "offline.safetensors", self.offline.average, self.heads, self.classes)
        return folder

    def restore(self, folder: Path | str) -> None:
        """Take back modules, heads and labels that `save` wrote, into a learner with the same encoder and modules.

        Raises: ModelError when a file is missing, damaged, or of other modules or another task than its companion.
        """
        folder, module = Path(folder), self._module_tensors()
        online = read_expert(folder / "online.safetensors", module)
        offline = read_expert(folder / "offline.safetensors", module) if len(online.heads.sizes) > 1 else None
        if offline is not None and (offline.classes, offline.heads.sizes) != (online.classes, online.heads.sizes):
            raise ModelError(f"{folder}: online and offline expert are of different tasks; restore both from one copy")
        with torch.no_grad():
            for name, tensor in module.items():
                tensor.copy_(online.module[name])
        self.offline = None
        if offline is not None:
            self.offline = WeightAverage(module, 0.0)
            for name, tensor in self.offline.average.items():
                tensor.copy_(offline.module[name])
        self.heads = online.heads.to(next(iter(module.values())).device)
        self.columns = {label: at for at, label in enumerate(online.classes)}
