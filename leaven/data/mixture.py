"""Several tasks in one stream, each step drawn from one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from leaven.contracts import Batch
from leaven.data.loader import Loader
from leaven.errors import CheckpointError, ConfigError


class Mixture:
    """Batches without end, each from one task; step and seed alone decide which, so all processes agree.

    Each batch has the additional field `task`, an int64 scalar: the place of its task in `tasks`. `last_task` is its
    name.

    Args:
        loaders: a stream per task.
        rates: probability of each task in the order of `loaders` (or by name), >= 0; they are normalised. See
            `leaven.data.splits.sample_rates`.
        seed: >= 0.

    Raises: ConfigError for no tasks, rates of the wrong number, negative or all zero.
    Source: arXiv 2109.00859 section 3.3 (multi-task sampling).
    """

    def __init__(
        self, loaders: Mapping[str, Loader], rates: Sequence[float] | Mapping[str, float], seed: int = 0
    ) -> None:
        if not loaders:
            raise ConfigError("Mixture: no tasks given; expected at least one loader")
        if seed < 0:
            raise ConfigError(f"Mixture: seed is {seed}, expected 0 or more")
        self.loaders = dict(loaders)
        self.tasks = tuple(self.loaders)
        if isinstance(rates, Mapping):
            if set(rates) != set(self.tasks):
                raise ConfigError(f"Mixture: rates are for {', '.join(rates)}, the tasks are {', '.join(self.tasks)}")
            rates = [rates[task] for task in self.tasks]
        weights = np.array(list(rates), dtype=np.float64)
        if len(weights) != len(self.tasks):
            raise ConfigError(f"Mixture: {len(weights)} rates for {len(self.tasks)} tasks, expected one each")
        if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
            raise ConfigError(f"Mixture: rates are {weights.tolist()}, expected numbers >= 0 with a sum above 0")
        self.rates = weights / weights.sum()
        self.seed = seed
        self.step = 0
        self.stopped: set[str] = set()
        self.last_task: str | None = None

    def stop(self, task: str) -> None:
        """Draw no more from a task; the others share its rate. Raises: ConfigError for an unknown task."""
        if task not in self.loaders:
            raise ConfigError(f"Mixture: no task {task!r}; the tasks are {', '.join(self.tasks)}")
        self.stopped.add(task)

    def set_shard(self, rank: int, world_size: int) -> None:
        """Take one process's share of every task's batches."""
        for loader in self.loaders.values():
            loader.set_shard(rank, world_size)

    def _draw(self) -> int | None:
        rates = np.where([task in self.stopped for task in self.tasks], 0.0, self.rates)
        if rates.sum() <= 0:
            return None
        share = np.random.default_rng([self.seed, self.step]).random() * rates.sum()
        # Never a task of rate zero, not even when rounding puts the share on the upper edge.
        return min(int(np.searchsorted(np.cumsum(rates), share, side="right")), int(np.flatnonzero(rates)[-1]))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        drawn = self._draw()
        if drawn is None:
            raise StopIteration
        self.last_task = self.tasks[drawn]
        batch = next(self.loaders[self.last_task])
        batch["task"] = torch.tensor(drawn)
        self.step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Step, stopped tasks and the position in each task's data."""
        return {
            "step": self.step,
            "seed": self.seed,
            "stopped": sorted(self.stopped),
            "loaders": {task: loader.state_dict() for task, loader in self.loaders.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a saved position. Raises: CheckpointError when tasks or seed differ."""
        saved = state.get("loaders")
        if not isinstance(saved, Mapping) or list(saved) != list(self.tasks) or state.get("seed") != self.seed:
            found = ", ".join(saved) if isinstance(saved, Mapping) else "nothing"
            raise CheckpointError(
                f"Mixture: the position is of the tasks {found} with seed {state.get('seed')}; here are "
                f"{', '.join(self.tasks)} with seed {self.seed}"
            )
        for task, loader in self.loaders.items():
            loader.load_state_dict(saved[task])
        self.step, self.stopped = int(state["step"]), set(state["stopped"])
