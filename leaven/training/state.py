"""Everything that a run must remember: taken to memory for the guard, to disk for resuming."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leaven.errors import CheckpointError
from leaven.training import checkpoint
from leaven.training.budgets import Budget, Counters
from leaven.training.config import TrainingConfig
from leaven.training.distributed import TrainingStep, Workers, fill, whole
from leaven.training.early_stopping import BestMetric
from leaven.training.ema import WeightAverage
from leaven.training.guard import Guard
from leaven.training.metrics_log import MetricsLog
from leaven.training.precision import Precision
from leaven.training.randomness import global_rng_state, set_global_rng_state
from leaven.training.schedules import Schedule
from leaven.training.stream import DataStream


@dataclass
class RunState:
    """The parts of a run whose state decides how it goes on."""

    config: TrainingConfig
    budget: Budget
    step: TrainingStep
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    guard: Guard
    best: BestMetric
    average: WeightAverage | None
    data: DataStream
    log: MetricsLog
    counters: Counters = field(default_factory=Counters)
    precision: Precision = "fp32"
    window: dict[str, list[float]] = field(default_factory=dict)
    evaluated: dict[str, float] | None = None
    evaluated_step: int = -1
    snapshot: dict[str, Any] | None = None

    def take_snapshot(self) -> None:
        """Remember the present weights, moments and counters in memory."""
        self.snapshot = {
            "weights": {name: tensor.detach().clone() for name, tensor in self.step.named_weights().items()},
            "moments": {
                name: {key: value.clone() for key, value in moments.items()} for name, moments in self._moments()
            },
            "average": {n: t.clone() for n, t in self.average.average.items()} if self.average else {},
            "counters": Counters(**self.counters.as_dict()),  # type: ignore[arg-type]
            "schedule": self.schedule.state_dict(),
        }

    @torch.no_grad()
    def return_to_snapshot(self) -> None:
        """Go back to the last good state; the data go on, so what did the harm is not met again at once."""
        if self.snapshot is None:
            return
        saved = self.snapshot
        for name, tensor in self.step.named_weights().items():
            tensor.copy_(saved["weights"][name])
        parameters = dict(self._named_parameters())
        self.optimizer.state.clear()
        for name, moments in saved["moments"].items():
            self.optimizer.state[parameters[name]] = {key: value.clone() for key, value in moments.items()}
        if self.average is not None:
            for name, tensor in self.average.average.items():
                tensor.copy_(saved["average"][name])
        seconds = self.counters.seconds
        self.counters = Counters(**saved["counters"].as_dict())
        self.counters.seconds = seconds
        self.schedule.load_state_dict(saved["schedule"])
        self.window.clear()

    def save(self, folder: Path, workers: Workers) -> None:
        """Write a checkpoint; every process must call this."""
        weights = {name: whole(tensor).cpu() for name, tensor in self.step.named_weights().items()}
        moments = {
            f"{key}.{name}": whole(value).cpu() for name, values in self._moments() for key, value in values.items()
        }
        average = {n: whole(t).cpu() for n, t in self.average.average.items()} if self.average else {}
        generators = workers.gather(global_rng_state())
        if workers.main:
            tensors = {"model": weights, "optimizer": moments} | ({"average": average} if average else {})
            # A run that ended in a moment without moments (nothing trained yet) has no optimizer file.
            tensors = {name: contents for name, contents in tensors.items() if contents}
            checkpoint.write(folder, "step", self.counters.steps, tensors, self._as_json(generators))
            checkpoint.prune(folder, self.config.keep)
        workers.wait()

    def save_best(self, folder: Path, workers: Workers) -> None:
        """Write the weights of the best evaluation so far."""
        weights = {name: whole(tensor).cpu() for name, tensor in self.step.named_weights().items()}
        if workers.main:
            checkpoint.write(folder, "best", self.counters.steps, {"model": weights}, {"metric": self.best.value})
        workers.wait()

    def load(self, saved: checkpoint.Checkpoint, workers: Workers) -> None:
        """Go on from a checkpoint. Raises: CheckpointError when it is of another model, data, budget or setting."""
        state = saved.state()
        self._check_same_run(state, saved.path)
        self.load_weights(saved)
        parameters = dict(self._named_parameters())
        for label, value in (saved.tensors("optimizer") or {}).items():
            key, _, name = label.partition(".")
            parameter = parameters[name]
            if key == "step":
                self.optimizer.state[parameter][key] = value.to(parameter.device)
            else:
                self.optimizer.state[parameter][key] = torch.zeros_like(parameter)
                fill(self.optimizer.state[parameter][key], value, f"{key} of {name}")
        if self.average is not None:
            average = saved.tensors("average") or {}
            for name, tensor in self.average.average.items():
                fill(tensor, average[name], f"average of {name}")
        self.counters = Counters(**state["counters"])
        self.schedule.load_state_dict(state["schedule"])
        self.guard.load_state_dict(state["guard"])
        self.best.load_state_dict(state["best"])
        self.data.load_state_dict(state["data"])
        self.precision = state["precision"]
        self.window = state["window"]
        self.evaluated, self.evaluated_step = state["evaluated"], state["evaluated_step"]
        self.log.recover(saved.path.parent / "metrics.jsonl", state["records"], self.counters.steps)
        generators = state["generators"]
        set_global_rng_state(generators[workers.rank % len(generators)])

    def load_weights(self, saved: checkpoint.Checkpoint) -> None:
        """Fill the weights from a checkpoint. Raises: CheckpointError when names or shapes differ."""
        weights = saved.tensors("model") or {}
        mine = self.step.named_weights()
        differing = sorted(set(weights) ^ set(mine))
        if differing:
            raise CheckpointError(
                f"{saved.path}: holds another model: {differing[0]!r} is only in "
                f"{'the checkpoint' if differing[0] in weights else 'the model'} ({len(differing)} names differ)"
            )
        for name, tensor in mine.items():
            if tuple(tensor.shape) != tuple(weights[name].shape):
                raise CheckpointError(
                    f"{saved.path}: {name} has shape {tuple(weights[name].shape)}, the model has {tuple(tensor.shape)}"
                )
            fill(tensor, weights[name], name)

    def _named_parameters(self) -> list[tuple[str, Tensor]]:
        return [(name.removeprefix("model."), p) for name, p in self.step.named_parameters() if p.requires_grad]

    def _moments(self) -> list[tuple[str, dict[str, Tensor]]]:
        state = self.optimizer.state
        return [(name, dict(state[p])) for name, p in self._named_parameters() if state.get(p)]

    def _as_json(self, generators: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "numerics": self.config.numerics(),
            "budget": str(self.budget),
            "counters": self.counters.as_dict(),
            "schedule": self.schedule.state_dict(),
            "guard": self.guard.state_dict(),
            "best": self.best.state_dict(),
            "data": self.data.state_dict(),
            "precision": self.precision,
            "window": self.window,
            "evaluated": self.evaluated,
            "evaluated_step": self.evaluated_step,
            "records": len(self.log.records),
            "generators": generators,
        }

    def _check_same_run(self, state: dict[str, Any], path: Path) -> None:
        now = self.config.numerics()
        for name, value in now.items():
            if state["numerics"].get(name) != value:
                raise CheckpointError(
                    f"{path}: the run was started with {name}={state['numerics'].get(name)!r}, now it is {value!r}; "
                    "resume with the same setting, or start in a new folder"
                )
        if state["budget"] != str(self.budget) and self.config.schedule != "constant":
            raise CheckpointError(
                f"{path}: the run was started with the budget {state['budget']!r}, now it is {str(self.budget)!r}, "
                f"which would bend its {self.config.schedule} schedule; resume with the same budget, or start in a new "
                "folder"
            )
