"""Which evaluation was the best, and whether to wait for a better one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from leaven.errors import ConfigError
from leaven.training.config import TrainingConfig


class BestMetric:
    """The best value of one evaluation figure so far."""

    def __init__(self, config: TrainingConfig) -> None:
        self._config = config
        self.value: float | None = None
        self.step: int | None = None
        self.waited = 0

    def update(self, metrics: Mapping[str, float], step: int) -> bool:
        """Take in an evaluation; True if it is the best so far. NaN is never better.

        Raises: ConfigError if the evaluation does not return the metric.
        """
        name = self._config.metric
        if name is None:
            return False
        if name not in metrics:
            near = difflib.get_close_matches(name, metrics, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"metric is {name!r}, but the evaluation returns {', '.join(sorted(metrics))}{hint}")
        value = float(metrics[name])
        gain = (
            math.inf if self.value is None else value - self.value if self._config.mode == "max" else self.value - value
        )
        if not math.isnan(value) and gain > self._config.min_delta:
            self.value, self.step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    @property
    def out_of_patience(self) -> bool:
        """Whether as many evaluations as `patience` went by without a better one."""
        return self._config.patience is not None and self.waited >= self._config.patience

    def state_dict(self) -> dict[str, Any]:
        """State to resume from, as JSON values."""
        return {"value": self.value, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a saved state."""
        self.value, self.step, self.waited = state["value"], state["step"], state["waited"]
