"""Learning-rate schedules that follow the budget's own unit: a factor of the share of the budget that is used."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine", "inverse-sqrt"]


def decay(name: ScheduleName, fraction: float, warmup: float, floor: float = 0.0) -> float:
    """Factor of the peak learning rate once the warm-up is over.

    Args:
        name: the curve.
        fraction: share of the budget used, in [warmup, 1].
        warmup: share of the budget at which the warm-up ended, in [0, 1); above 0 for "inverse-sqrt".
        floor: factor at the end of the budget for "linear" and "cosine", in [0, 1].

    Returns: a factor in [0, 1].
    """
    if name == "constant":
        return 1.0
    if name == "inverse-sqrt":
        return math.sqrt(warmup / fraction)
    passed = (fraction - warmup) / (1 - warmup) if warmup < 1 else 1.0
    curve = 1 - passed if name == "linear" else 0.5 * (1 + math.cos(math.pi * passed))
    return floor + (1 - floor) * max(0.0, curve)


class Schedule:
    """Linear warm-up, then a decay.

    Args:
        name: the decay.
        warmup: below 1 a share of the budget, otherwise a number of steps.
        floor: factor at the end of the budget for "linear" and "cosine".
    """

    def __init__(self, name: ScheduleName, warmup: float, floor: float = 0.0) -> None:
        self.name: ScheduleName = name
        self.warmup = warmup
        self.floor = floor
        # A warm-up in steps ends at a share of the budget that is known only on arrival (the budget may be in tokens).
        self._warmup_end: float | None = warmup if warmup < 1 else None

    def factor(self, step: int, fraction: float) -> float:
        """Factor of the peak learning rate for the update that starts after `step` updates, in [0, 1]."""
        if self.warmup >= 1:
            if step < self.warmup:
                return step / self.warmup
            if self._warmup_end is None:
                self._warmup_end = fraction
        elif fraction < self.warmup:
            return fraction / self.warmup
        return decay(self.name, fraction, self._warmup_end or 0.0, self.floor)

    def state_dict(self) -> dict[str, float | None]:
        """State to resume from."""
        return {"warmup_end": self._warmup_end}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Return to a saved state."""
        self._warmup_end = state["warmup_end"]
