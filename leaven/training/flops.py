"""Floating-point operations of a training step, counted once per shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leaven.contracts import Batch


class FlopMeter:
    """Counts the operations of a step by running it under torch's counter the first time its shapes occur.

    Counted are matrix products, convolutions and attention, forward and backward. A step whose field shapes and drawn
    objective were seen before costs nothing to count; what depends on the contents (how many labels are predicted)
    is taken from that first time.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], float] = {}

    def count(self, batch: Batch, step: Callable[[], Any]) -> tuple[float, Any]:
        """Operations of the step, and what it returned."""
        drawn = int(batch["objective"]) if "objective" in batch else -1
        key = (drawn, *((name, tuple(value.shape)) for name, value in sorted(batch.items())))
        if key in self._known:
            return self._known[key], step()
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            result = step()
        self._known[key] = float(counter.get_total_flops())
        return self._known[key], result
