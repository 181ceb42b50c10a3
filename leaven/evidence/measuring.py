"""Measuring one entrant under one seed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from leaven.errors import LeavenError
from leaven.evidence.entrants import Entrant, near
from leaven.evidence.json_file import EvidenceError
from leaven.evidence.run_folder import RunFolder
from leaven.evidence.system import Measurement


def measure(
    one: Entrant, folder: RunFolder, seed: int, *, needed: Sequence[str], provenance: Mapping[str, Any]
) -> Measurement:
    """Measure an entrant and keep the result in the run's folder.

    Args:
        needed: figures that it must report.
        provenance: what the result is made with.

    Raises: EvidenceError with entrant and seed for what the system raises, and for a figure that is missing or not
    finite.
    """
    began = time.monotonic()
    work = folder.work(seed, one.label)
    work.mkdir(parents=True, exist_ok=True)
    try:
        system = one.configured(tier=folder.tier, smoke=folder.smoke, seed=seed)
        measurement = system.measure(work)
    except LeavenError as error:
        raise EvidenceError(f"{one.label}, seed {seed}: {error}") from error
    # A system that was interrupted knows of its earlier lives; this clock does not.
    if not measurement.seconds > 0:
        measurement = replace(measurement, seconds=time.monotonic() - began)
    check_figures(one.label, seed, measurement, needed)
    return folder.keep(seed, one.label, measurement, provenance)


def check_figures(label: str, seed: int, measurement: Measurement, needed: Sequence[str]) -> None:
    """Raises: EvidenceError for a figure that a claim needs and that is missing or not finite."""
    for name in needed:
        value = measurement.metrics.get(name)
        if value is None:
            known = ", ".join(measurement.metrics) or "none"
            raise EvidenceError(f"{label} reports no {name!r}; it has {known}.{near(name, measurement.metrics)}")
        if not math.isfinite(value):
            raise EvidenceError(f"{label}, seed {seed}: {name} is {value}; a claim needs a finite figure")
