"""bf16 where a short measurement finds it faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Context of the forward pass: weights stay float32, matrix products are computed in the given precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def faster_precision(step: Callable[[Precision], object], device: torch.device, runs: int = 3) -> Precision:
    """The precision in which the step takes less time: medians of alternating runs after one warm-up each."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return "fp32"
    times: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    for run in range(runs + 1):
        for precision, taken in times.items():
            started = time.perf_counter()
            step(precision)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if run:
                taken.append(time.perf_counter() - started)
    return "bf16" if median(times["bf16"]) < median(times["fp32"]) else "fp32"
