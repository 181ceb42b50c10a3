"""How far a run of several arms and seeds is: one line for each arm, with a bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from leaven.evidence.system import Measurement


class Progress(Protocol):
    """What is told while entrants are measured."""

    def begin(self, labels: Sequence[str], seeds: int, jobs: int = 1) -> None:
        """The run starts; `jobs` seeds are measured at a time."""

    def started(self, seed: int, label: str) -> None:
        """An entrant starts under a seed."""

    def finished(self, seed: int, label: str, measurement: Measurement, *, reused: bool) -> None:
        """Its result is kept; `reused` when it was there from an earlier run."""


class Silent:
    """Tells nothing."""

    def begin(self, labels: Sequence[str], seeds: int, jobs: int = 1) -> None:
        """Nothing."""

    def started(self, seed: int, label: str) -> None:
        """Nothing."""

    def finished(self, seed: int, label: str, measurement: Measurement, *, reused: bool) -> None:
        """Nothing."""


class Lines:
    """A line on standard error for each arm.

    The lines are printed and left: the trainings inside draw bars of their own, which a live display here would break.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._seconds: dict[str, list[float]] = {}
        self._left: dict[str, int] = {}
        self._reused = 0

    def begin(self, labels: Sequence[str], seeds: int, jobs: int = 1) -> None:
        """Start the clock."""
        self._jobs = min(jobs, seeds)
        self._started, self._seeds, self._arms = time.monotonic(), seeds, len(labels)
        self._left = dict.fromkeys(labels, seeds)

    def started(self, seed: int, label: str) -> None:
        """On a terminal, say what runs now."""
        if not self._terminal:
            return
        from rich.console import Console
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        total = self._seeds * self._arms
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total, total - sum(self._left.values()), width=20)
        row.add_row(f"  seed {seed + 1}/{self._seeds}", bar, f"{label}  {self._clock()}")
        Console(stderr=True).print(row)

    def finished(self, seed: int, label: str, measurement: Measurement, *, reused: bool) -> None:
        """Say what an arm took."""
        self._left[label] -= 1
        if reused:
            self._reused += 1
        else:
            self._seconds.setdefault(label, []).append(measurement.seconds)
        if not self._terminal:
            what = "kept from an earlier run" if reused else f"{measurement.seconds:.1f} s"
            print(f"seed {seed + 1}/{self._seeds}  {label}  {what}  ({self._clock()})", file=sys.stderr, flush=True)

    def _clock(self) -> str:
        elapsed = f"{timedelta(seconds=int(time.monotonic() - self._started))}"
        left = self._estimate()
        return elapsed if left is None else f"{elapsed}, about {timedelta(seconds=int(left))} left"

    def _estimate(self) -> float | None:
        known = [second for seconds in self._seconds.values() for second in seconds]
        if not known:
            return None
        mean = sum(known) / len(known)
        left = sum(
            count * (sum(self._seconds[label]) / len(self._seconds[label]) if label in self._seconds else mean)
            for label, count in self._left.items()
        )
        return left / self._jobs
