"""Trainings on tasks, kept beside the arms of a seed: arms that differ only in what comes after a training share it."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leaven.adapt.continual import LAE, SequentialFineTuning
from leaven.adapt.continual.features import Inputs
from leaven.adapt.continual.heads import TaskHeads, bare_linear
from leaven.adapt.continual.learner import Label
from leaven.errors import CheckpointError
from leaven.training.budgets import Counters
from leaven.training.checkpoint import Checkpoint, verify, write
from leaven.training.distributed import is_main_process
from leaven.training.ema import WeightAverage
from leaven.training.loop import FitResult

_OFFLINE = "offline"


@dataclass(frozen=True)
class KeptTasks:
    """A folder with what the training on each task made: encoder or modules, the task's head, the offline average.

    The heads of earlier tasks are frozen in it and not in its loss, so that they make no difference. An interrupted
    training leaves nothing and begins again; those before it are kept. One that is damaged is told of in a warning, and
    made again.
    """

    folder: Path

    @staticmethod
    def at(place: Path, kind: str, values: Mapping[str, Any]) -> KeptTasks:
        """The folder, under a place, for all that decides the training; for other values it is another one."""
        digest = hashlib.sha256(json.dumps(dict(values), sort_keys=True, default=str).encode()).hexdigest()[:16]
        return KeptTasks(place / f"{kind}-{digest}")

    def train(self, learner: SharedLAE | SharedFineTuning, train: Callable[[], None]) -> None:
        """Bring a learner to where the training on its next task takes it: from the folder, else by `train`."""
        path, before = self.folder / f"step-{learner.tasks + 1:08d}", len(learner.fits)
        if path.is_dir():
            try:
                _put_back(learner, verify(path))
                return
            except CheckpointError as error:
                warnings.warn(f"damaged training passed over, done again: {error}", stacklevel=2)
        train()
        if is_main_process():
            write(self.folder, "step", learner.tasks, *_kept_of(learner, learner.fits[before:]))


class SharedFineTuning(SequentialFineTuning):
    """Fine-tuning whose trainings are kept where `kept` says so; what a subclass does after a training is its own.

    Every task must be of new classes, with the softmax over them alone.
    """

    kept: KeptTasks | None = None

    def _learn(self, inputs: Inputs, labels: list[Label]) -> None:
        train = partial(super()._learn, inputs, labels)
        if self.kept is None:
            train()
        else:
            self.kept.train(self, train)


class SharedLAE(LAE):
    """LAE whose trainings are kept where `kept` says so."""

    kept: KeptTasks | None = None

    def _learn(self, inputs: Inputs, labels: list[Label], present: list[Label]) -> None:
        train = partial(super()._learn, inputs, labels, present)
        if self.kept is None:
            train()
        else:
            self.kept.train(self, train)


def _learnt(learner: SharedLAE | SharedFineTuning) -> dict[str, Tensor]:
    """What a training changes in the encoder; nothing where it is frozen, and perhaps no module."""
    encoder = learner.encoder
    if not isinstance(encoder, nn.Module) or (isinstance(learner, SharedFineTuning) and not learner.slow):
        return {}
    learn = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    learn |= {name for name, _ in encoder.named_buffers()}
    return {name: tensor for name, tensor in encoder.state_dict().items() if name in learn}


def _kept_of(
    learner: SharedLAE | SharedFineTuning, fits: tuple[FitResult, ...]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    head = learner.heads.tasks[-1]
    tensors = {"encoder": _learnt(learner), "head": dict(head.state_dict())}
    if isinstance(learner, LAE) and learner.offline is not None:
        tensors[_OFFLINE] = learner.offline.average
    state = {
        "classes": learner.classes[-learner.heads.sizes[-1] :],
        "device": str(next(head.parameters()).device),
        "fits": [asdict(one) for one in fits],
    }
    own = {file: {name: tensor.detach().cpu().clone() for name, tensor in of.items()} for file, of in tensors.items()}
    return own, state


def _put_back(learner: SharedLAE | SharedFineTuning, kept: Checkpoint) -> None:
    state, device = kept.state(), torch.device(kept.state()["device"])
    weights, learnt, average = kept.tensors("head") or {}, kept.tensors("encoder") or {}, kept.tensors(_OFFLINE)
    classes, width = weights["weight"].shape
    head = bare_linear(width, classes)
    head.load_state_dict(weights)
    if learnt and isinstance(learner.encoder, nn.Module):
        learner.encoder.to(device).eval()
    _fill(_learnt(learner), learnt)
    learner.heads = TaskHeads([*copy.deepcopy(learner.heads.tasks), head]).to(device).eval()
    learner.columns = {label: at for at, label in enumerate([*learner.columns, *state["classes"]])}
    learner.fits = (*learner.fits, *(_fit_of(one) for one in state["fits"]))
    if isinstance(learner, SharedFineTuning):
        learner.tasks += 1
    elif average is not None:
        # Each task averages with a decay of its own.
        learner.offline = WeightAverage(learner._module_tensors(), 0.0)
        _fill(learner.offline.average, average)


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _fit_of(values: dict[str, Any]) -> FitResult:
    best = values["best"]
    return FitResult(**{**values, "used": Counters(**values["used"]), "best": None if best is None else tuple(best)})
