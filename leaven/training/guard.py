"""Notice a loss that is not finite or has exploded."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from leaven.errors import LeavenError
from leaven.training.config import GuardConfig


class TrainingDivergedError(LeavenError):
    """Training produced NaN, infinite or exploding losses again and again."""


class Guard:
    """Compare each loss with a running median and median absolute deviation (MAD).

    Losses are compared within their kind (the names of the loss's parts and the task of a mixture), because an
    alternation of objectives or tasks has one level for each. The MAD counts as at least 1% of the median, so that a
    flat stretch does not make every ripple a spike.
    """

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._windows: dict[str, deque[float]] = {}
        self._above = 0
        self.returns = 0
        self.total_returns = 0
        self._worst_step = -1

    def inspect(self, step: int, kind: str, loss: float, grad_norm: float) -> str | None:
        """What is wrong with the step that would be number `step`, or None; a sound loss joins the window."""
        if not self.config.enabled:
            return None
        reason = None
        if not math.isfinite(loss):
            reason = f"loss is {loss}"
        elif not math.isfinite(grad_norm):
            reason = f"gradient norm is {grad_norm}"
        elif (bound := self._bound(kind)) is not None and loss > bound:
            self._above += 1
            if self._above >= self.config.spike_steps:
                reason = f"loss {loss:.6g} is above {bound:.6g} for {self._above} steps in a row"
        else:
            self._above = 0
            self._windows.setdefault(kind, deque(maxlen=self.config.window)).append(loss)
        if reason is None:
            if step > self._worst_step and self._above == 0:
                self.returns = 0
            return None
        self._above = 0
        self.returns += 1
        self.total_returns += 1
        self._worst_step = max(self._worst_step, step)
        return reason

    @property
    def calm(self) -> bool:
        """Whether the last loss was sound, so that the weights that gave it are worth keeping."""
        return self._above == 0

    def give_up_if_stuck(self, step: int, reason: str) -> None:
        """Raise TrainingDivergedError once there were more returns in a row than allowed."""
        if self.returns > self.config.max_returns:
            raise TrainingDivergedError(
                f"step {step}: {reason}; gave up after {self.config.max_returns} returns to the last good state in a "
                "row. Lower the learning rate, set clip, lengthen the warm-up, or look at the data around this step"
            )

    def state_dict(self) -> dict[str, Any]:
        """State to resume from, as JSON values."""
        return {
            "windows": {kind: list(window) for kind, window in self._windows.items()},
            "above": self._above,
            "returns": self.returns,
            "total_returns": self.total_returns,
            "worst_step": self._worst_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a saved state."""
        self._windows = {k: deque(window, maxlen=self.config.window) for k, window in state["windows"].items()}
        self._above, self.returns, self._worst_step = state["above"], state["returns"], state["worst_step"]
        self.total_returns = state["total_returns"]

    def _bound(self, kind: str) -> float | None:
        window = self._windows.get(kind, ())
        if self.config.spike_mads is None or len(window) < max(4, self.config.window // 4):
            return None
        losses = np.fromiter(window, dtype=np.float64)
        median = float(np.median(losses))
        spread = max(float(np.median(np.abs(losses - median))), 0.01 * abs(median))
        return median + self.config.spike_mads * spread
