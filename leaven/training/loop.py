"""The training loop: `fit`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leaven.contracts import Batch, Objective
from leaven.errors import ConfigError
from leaven.training import checkpoint
from leaven.training.budgets import Budget, Counters
from leaven.training.config import TrainingConfig
from leaven.training.distributed import TrainingStep, Workers, whole
from leaven.training.early_stopping import BestMetric
from leaven.training.ema import WeightAverage
from leaven.training.flops import FlopMeter
from leaven.training.guard import Guard
from leaven.training.metrics_log import MetricsLog, Record
from leaven.training.muon import hidden_matrices
from leaven.training.parameter_groups import build_optimizer, parameter_groups
from leaven.training.precision import Precision, arithmetic, faster_precision
from leaven.training.progress import ProgressBar
from leaven.training.randomness import mix, preserved_rng, seed_global_generators
from leaven.training.schedules import Schedule
from leaven.training.state import RunState
from leaven.training.stream import DataStream, count_examples, count_tokens

Evaluate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class FitResult:
    """What a training did.

    used: steps, tokens, examples, seconds (and FLOPs where the budget is in them).
    ended: the limit that ended it ("steps", ...), "patience", or "data" when the stream ran out.
    evaluation: figures of the last evaluation; best: the best value of the chosen metric and its step.
    records: what stands in metrics.jsonl.
    """

    used: Counters
    ended: str
    evaluation: dict[str, float] | None
    best: tuple[float, int] | None
    precision: Precision
    records: list[Record]


def fit(
    model: nn.Module,
    objective: Objective,
    data: DataStream,
    budget: Budget | str | int,
    config: TrainingConfig | None = None,
    *,
    out: Path | None = None,
    evaluate: Evaluate | None = None,
    label: str = "training",
) -> FitResult:
    """Train a model in place until the budget is used up.

    Under `torchrun` or `accelerate launch` each process trains on its rows of the global batch; loss and gradient are
    those of the whole. With `out`, checkpoints and metrics.jsonl are written there, and a run that finds a checkpoint
    goes on from it, bit for bit as if it had not been interrupted.

    Args:
        model: any module that the objective can use.
        objective: corruption and loss; if it is a module, its parameters are trained too.
        data: endless, resumable batches, such as a `leaven.data.loader.Loader`.
        budget: for example "200 steps", "1M tokens", "5min".
        config: every setting of the loop.
        out: the run's folder.
        evaluate: figures of the model, called at the end and every `config.evaluate_every`; random numbers it draws do
            not disturb the training.
        label: name on the progress bar.

    Raises: ConfigError for settings that do not fit, CheckpointError when `out` holds another run or damaged
    checkpoints alone, TrainingDivergedError when loss or gradients stay broken.
    """
    config = config or TrainingConfig()
    budget = Budget.parse(budget)
    if config.metric is not None and evaluate is None:
        raise ConfigError(f"metric={config.metric!r} needs an evaluation: give fit the argument evaluate")
    run = _Run(model, objective, data, budget=budget, config=config, out=out, evaluate=evaluate)
    return run.train(label)


class _Run:
    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: DataStream,
        *,
        budget: Budget,
        config: TrainingConfig,
        out: Path | None,
        evaluate: Evaluate | None,
    ) -> None:
        self.objective, self.config, self.budget, self.out, self.evaluate = objective, config, budget, out, evaluate
        self.workers = Workers(config.parallel)
        seed_global_generators(mix(config.seed, self.workers.rank))
        self.original = TrainingStep(model, objective, config.length_groups)
        trained, self.call = self.workers.share_out(self.original)
        named = [(name.removeprefix("model."), p) for name, p in trained.named_parameters()]
        matrices = {name.removeprefix("model."): parts for name, parts in hidden_matrices(trained).items()}
        groups = parameter_groups(named, config, matrices)
        self.parameters = [p for group in groups for p in group["params"]]
        share = getattr(data, "set_shard", None)
        if share is not None:
            share(self.workers.rank, self.workers.count)
        self.state = RunState(
            config=config,
            budget=budget,
            step=trained,
            optimizer=build_optimizer(groups, config),
            schedule=Schedule(config.schedule, config.warmup, config.floor),
            guard=Guard(config.guard),
            best=BestMetric(config),
            average=WeightAverage(dict(trained.named_parameters()), config.ema) if config.ema else None,
            data=data,
            log=MetricsLog(out / "metrics.jsonl" if out is not None else None, write=self.workers.main),
        )
        self.flops = FlopMeter() if budget.flops is not None else None
        self.saved_step = -1
        self.saved_seconds = 0.0

    def train(self, label: str) -> FitResult:
        state, config = self.state, self.config
        trained = state.step
        if self.out is not None and self.workers.main:
            checkpoint.clear_drafts(self.out)
        self.workers.wait()
        previous = checkpoint.latest_good(self.out) if self.out is not None else None
        if previous is not None:
            state.load(previous, self.workers)
            if self.out is not None and self.workers.main:
                checkpoint.discard_after(self.out, previous.step)
            self.saved_step, self.saved_seconds = previous.step, state.counters.seconds
        else:
            # Records of a life that ended before its first checkpoint.
            state.log.rewind(0)
            state.precision = self._measured_precision() if config.precision == "auto" else config.precision
        if config.guard.enabled:
            state.take_snapshot()
        trained.train()
        stream = iter(state.data)
        ended = self._reason()
        with ProgressBar(label, config.progress and self.workers.main) as bar:
            while ended is None:
                before = self.budget.fraction(state.counters)
                batches = self._next_batches(stream)
                if batches is None:
                    ended = "data"
                    break
                figures = self._step(batches, before)
                share = self.budget.fraction(state.counters)
                bar.update(share, figures)
                ended = self._reason()
                if ended is None and self._due(config.evaluate_every, before, share):
                    self._evaluate()
                    ended = self._reason()
                if self.out is not None and ended is None and self._checkpoint_due():
                    self._save()
        self._finish(ended)
        used = state.counters
        best = (state.best.value, state.best.step) if state.best.value is not None else None
        return FitResult(used, ended, state.evaluated, best, state.precision, state.log.records)  # type: ignore[arg-type]

    def _reason(self) -> str | None:
        return "patience" if self.state.best.out_of_patience else self.budget.exhausted(self.state.counters)

    def _next_batches(self, stream: Iterator[Batch]) -> list[Batch] | None:
        try:
            return [next(stream) for _ in range(self.config.accumulate)]
        except StopIteration:
            return None

    def _prepare(self, batch: Batch, micro: int) -> Batch:
        """Corrupt; the noise depends on seed, step and how often the guard went back, never on the process."""
        state = self.state
        generator = torch.Generator().manual_seed(
            mix(self.config.seed, state.counters.steps, micro, state.guard.total_returns)
        )
        batch = self.objective.prepare({**batch, "step": torch.tensor(state.counters.steps)}, generator)
        return {name: value.to(self.workers.device, non_blocking=True) for name, value in batch.items()}

    def _step(self, batches: list[Batch], fraction: float) -> str:
        state, workers = self.state, self.workers
        started = time.perf_counter()
        factor = state.schedule.factor(state.counters.steps, fraction)
        for group in state.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * group["lr_factor"] * factor
        state.optimizer.zero_grad(set_to_none=True)
        loss_sum, terms, flops = 0.0, 0.0, 0.0
        parts: dict[str, tuple[float, float]] = {}
        for micro, raw in enumerate(batches):
            batch = self._prepare(raw, micro)
            if self.flops is not None:
                counted, (value, count, named) = self.flops.count(batch, lambda b=batch: self._backward(b))  # type: ignore[misc]
                flops += counted
            else:
                value, count, named = self._backward(batch)
            loss_sum, terms = loss_sum + value * count, terms + count
            for name, part in named.items():
                total, weight = parts.get(name, (0.0, 0.0))
                parts[name] = (total + part * count, weight + count)
        sums = workers.add_up(
            [
                loss_sum,
                terms,
                sum(count_tokens(b) for b in batches),
                sum(count_examples(b) for b in batches),
                flops,
                *(figure for name in sorted(parts) for figure in parts[name]),
            ]
        )
        terms = max(sums[1], 1.0)
        loss = sums[0] / terms
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # Sums over terms were back-propagated, and the processes averaged: this makes it the mean over all terms.
        norm = self._scale(gradients, workers.count / terms)
        # A mixture's batch is of one task; elsewhere rows may have a task each, and one level.
        tasks = {f"task {int(raw['task'])}" for raw in batches if "task" in raw and raw["task"].ndim == 0}
        kind = "+".join([*sorted(parts), *sorted(tasks)])
        reason = state.guard.inspect(state.counters.steps, kind, loss, norm)
        if reason is not None:
            return self._return(reason)
        state.optimizer.step()
        if state.average is not None:
            state.average.update()
        used = state.counters
        used.steps += 1
        used.tokens += int(sums[2])
        used.examples += int(sums[3])
        used.flops += sums[4]
        # One clock for all processes, so that a budget in seconds ends for all at the same step.
        used.seconds += workers.add_up([time.perf_counter() - started])[0] / workers.count
        means = {
            name: total / max(weight, 1.0)
            for name, total, weight in zip(sorted(parts), sums[5::2], sums[6::2], strict=True)
        }
        self._log({"loss": loss, **means, "grad_norm": norm}, self.config.learning_rate * factor)
        if self.config.guard.enabled and used.steps % self.config.guard.snapshot_every == 0 and state.guard.calm:
            state.take_snapshot()
        return f"loss {loss:.4g}"

    def _backward(self, batch: Batch) -> tuple[float, float, dict[str, float]]:
        with arithmetic(self.state.precision, self.workers.device):
            loss = self.call(batch)
        count = loss.count.to(loss.total.dtype)
        (loss.total * count).backward()
        return float(loss.total.detach()), float(count), {name: float(part) for name, part in loss.parts.items()}

    def _scale(self, gradients: list[Tensor], factor: float) -> float:
        """Multiply the gradients by a factor, then clip them, in one pass; gives their global norm before clipping."""
        if not gradients:
            return 0.0
        norm = float(whole(nn.utils.get_total_norm(gradients))) * factor
        clip = self.config.clip
        clipped = 1.0 if clip is None or norm <= clip else clip / (norm + 1e-6)
        torch._foreach_mul_(gradients, factor * clipped)
        return norm

    def _return(self, reason: str) -> str:
        state = self.state
        at = state.counters.steps
        state.guard.give_up_if_stuck(at, reason)
        state.return_to_snapshot()
        state.log.append({"step": at, "event": "returned", "to_step": state.counters.steps, "reason": reason})
        return f"returned to step {state.counters.steps}: {reason}"

    def _log(self, figures: dict[str, float], learning_rate: float) -> None:
        state = self.state
        for name, value in figures.items():
            total = state.window.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += 1
        state.window["lr"] = [learning_rate, 1.0]
        if state.counters.steps % self.config.log_every == 0:
            self._close_window()

    def _close_window(self) -> None:
        """Write the means since the last record."""
        state = self.state
        if state.window:
            means = {name: total / count for name, (total, count) in state.window.items()}
            state.log.append({"step": state.counters.steps, **means, **_used(state.counters)})
            state.window.clear()

    def _due(self, every: float | None, before: float, after: float) -> bool:
        if self.evaluate is None or every is None:
            return False
        if every >= 1:
            return self.state.counters.steps % int(every) == 0
        return int(after / every + 1e-9) > int(before / every + 1e-9)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the place of the trained ones, where there is an average."""
        average = self.state.average
        if average is None:
            yield
            return
        average.swap()
        try:
            yield
        finally:
            average.swap()

    def _evaluate(self) -> None:
        state = self.state
        if self.evaluate is None or state.evaluated_step == state.counters.steps:
            return
        model = state.step.model
        with preserved_rng(), self._averaged(), torch.no_grad(), self.workers.whole_for_evaluation():
            model.eval()
            figures = {name: float(value) for name, value in self.evaluate(model).items()}
            state.step.train()
            better = state.best.update(figures, state.counters.steps)
        state.evaluated, state.evaluated_step = figures, state.counters.steps
        state.log.append({"step": state.counters.steps, **{f"valid/{k}": v for k, v in figures.items()}})
        if better:
            with self._averaged():
                self._keep_best()

    def _keep_best(self) -> None:
        if self.out is not None:
            self.state.save_best(self.out, self.workers)
        elif self.config.restore_best:
            self.best_weights = {n: t.detach().clone() for n, t in self.state.step.named_weights().items()}

    def _checkpoint_due(self) -> bool:
        used, config = self.state.counters, self.config
        if not self.state.guard.calm or used.steps == self.saved_step:
            return False
        steps, seconds = used.steps - max(self.saved_step, 0), used.seconds - self.saved_seconds
        by_steps = config.checkpoint_every is not None and steps >= config.checkpoint_every
        return by_steps or (config.checkpoint_seconds is not None and seconds >= config.checkpoint_seconds)

    def _save(self) -> None:
        state = self.state
        if self.out is None or state.counters.steps == self.saved_step:
            return
        # A resumed run has this state to return to; so must this one.
        if self.config.guard.enabled:
            state.take_snapshot()
        state.save(self.out, self.workers)
        self.saved_step, self.saved_seconds = state.counters.steps, state.counters.seconds

    @torch.no_grad()
    def _finish(self, ended: str) -> None:
        state = self.state
        self._close_window()
        self._evaluate()
        self._save()
        if self.config.restore_best and state.best.step is not None:
            if self.out is not None:
                state.load_weights(checkpoint.verify(self.out / f"best-{state.best.step:08d}"))
            else:
                for name, tensor in state.step.named_weights().items():
                    tensor.copy_(self.best_weights[name])
        elif state.average is not None:
            state.average.swap()
        self.workers.copy_back(state.step, self.original)
        self.original.eval()
        state.snapshot = None
        self.workers.wait()

    def _measured_precision(self) -> Precision:
        """Time a step in fp32 and in bf16 on the first batch, and leave everything as it was."""
        state = self.state
        position: Mapping[str, Any] = state.data.state_dict()
        batch = self._prepare(next(iter(state.data)), 0)
        state.data.load_state_dict(position)

        def step(precision: Precision) -> None:
            state.precision = precision
            self._backward(batch)
            state.optimizer.zero_grad(set_to_none=True)

        with preserved_rng():
            chosen = faster_precision(step, self.workers.device)
        return self.workers.from_main(chosen)  # type: ignore[no-any-return]


def _used(counters: Counters) -> dict[str, float]:
    used = counters.as_dict()
    used.pop("steps")
    return {name: value for name, value in used.items() if value}
