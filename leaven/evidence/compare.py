"""Rivals on the same data: every entrant under the same seeds, and paired verdicts between each two."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from leaven.errors import ConfigError
from leaven.evidence.entrants import Entrant, entrant
from leaven.evidence.evidence_file import ArmEvidence
from leaven.evidence.json_file import plain, rounded, write_json, write_text
from leaven.evidence.page_parts import curve_plots, curves_on_test, picture
from leaven.evidence.progress import Progress
from leaven.evidence.run_folder import RunFolder
from leaven.evidence.runner import Results, arm_evidence, measure_seeds, protocol
from leaven.evidence.statistics import paired_effect, reach_of_all_pairs
from leaven.evidence.system import Measurement, System
from leaven.evidence.tables import aligned, arms_table, signed, words


@dataclass(frozen=True)
class Pair:
    """Two entrants on one metric.

    effect: mean paired difference of `one` over `other`, positive where `one` is better.
    interval: two-sided; all intervals of a metric hold together with 95% confidence (Tukey, seeds as blocks). None for
        one seed.
    better: the one that the interval favours, None when it includes zero.
    """

    metric: str
    one: str
    other: str
    effect: float
    interval: tuple[float, float] | None
    better: str | None


@dataclass(frozen=True)
class Comparison:
    """What the entrants gave on the metrics that all of them report.

    notes: what makes them less comparable, such as unequal budgets.
    pictures: files with the curves of figures on the test split, such as the accuracy after each task of a stream.
    """

    tier: str
    smoke: bool
    seeds: int
    metrics: list[str]
    arms: dict[str, ArmEvidence]
    pairs: list[Pair]
    protocol: dict[str, Any]
    notes: list[str]
    pictures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain values, figures rounded to 6 significant digits."""
        values = {**vars(self), "pairs": [asdict(one) for one in self.pairs]}
        values["arms"] = {label: arm.model_dump(mode="json") for label, arm in self.arms.items()}
        rounded_values: dict[str, Any] = plain(rounded(values))
        return rounded_values

    def table(self, *, width: int | None = None) -> str:
        """As text: the entrants, then who is better by how much."""
        lines = arms_table(self.arms, self.metrics, width=width)
        cells = [
            (
                words(one.metric),
                f"{one.one} - {one.other}",
                signed(one.effect),
                "one seed" if one.interval is None else f"{signed(one.interval[0])} to {signed(one.interval[1])}",
                f"{one.better} is better" if one.better else "undecided",
            )
            for one in self.pairs
        ]
        heads = ("metric", "difference", "mean", "95% interval", "verdict")
        lines += ["", *aligned([[head, *column] for head, column in zip(heads, zip(*cells, strict=True), strict=True)])]
        notes = [*(f"note: {one}" for one in self.notes), *(f"{one} written" for one in self.pictures)]
        return "\n".join([*lines, *notes])


def compare(
    systems: Mapping[str, type[System[Any]]],
    *,
    tier: str = "embedded",
    seeds: int = 3,
    smoke: bool = False,
    jobs: int = 1,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Comparison:
    """Measure systems, or arms of systems, on the same data and model.

    Args:
        systems: the class of each of two or more specs, `SLUG` or `SLUG:ARM`.
        out: the run's folder, resumable; by default one under runs/compare that is named after what is compared.
        jobs: seeds that are measured at a time, as in `run_claims`.
        overrides: configuration values that all of them get, such as `data="imagefolder:birds"`.

    Raises: CatalogError for an unknown arm; ConfigError for less than two, an override of the seed or of what makes an
    arm, or no metric in common; pydantic's ValidationError for an override that a system does not take; what a
    measurement raises.
    """
    if len(systems) < 2:
        raise ConfigError(f"a comparison takes two systems or arms, or more; got {', '.join(systems) or 'none'}")
    if "seed" in overrides:
        raise ConfigError("seed cannot be set in a comparison: all run under seeds 0, 1, ... as many as `seeds` says")
    entrants = [entrant(spec, system, overrides) for spec, system in systems.items()]
    out = Path(out) if out is not None else default_folder(list(systems), overrides, tier=tier, smoke=smoke)
    folder = RunFolder(out, entrants, tier=tier, smoke=smoke)
    for name in {claim.metric for one in entrants for claim in one.system.claims}:
        _smaller_is_better(name, entrants)
    results = measure_seeds(entrants, folder, seeds=seeds, jobs=jobs, check=_check_common, progress=progress)
    metrics = _common_metrics(results)
    found = Comparison(
        tier=tier,
        smoke=smoke,
        seeds=seeds,
        metrics=metrics,
        arms={label: arm_evidence(measured) for label, measured in results.items()},
        pairs=[pair for name in metrics for pair in _pairs(name, results, _smaller_is_better(name, entrants))],
        protocol=protocol(folder.configs).model_dump(mode="json"),
        notes=_unequal_budgets(results),
        pictures=_write_pictures(results, out),
    )
    write_json(out / "comparison.json", found.to_json())
    return found


def _write_pictures(results: Results, out: Path) -> list[str]:
    """A picture for each figure on the test split that the entrants recorded on their way."""
    stages: dict[str, list[Any]] = {}
    for label, found in results.items():
        for stage in found[0].curves:
            stages.setdefault(stage, []).append((label, [one.curves.get(stage, []) for one in found]))
    written = []
    for plot in curve_plots(curves_on_test(stages), {label: place for place, label in enumerate(results)}):
        file = out / f"{re.sub(r'[^a-z0-9]+', '-', plot.title.lower())}.svg"
        write_text(file, picture(plot))
        written.append(str(file))
    return written


def default_folder(specs: Sequence[str], overrides: Mapping[str, Any], *, tier: str, smoke: bool) -> Path:
    """The folder of a comparison: another one for other overrides, so that a later call goes on in its own."""
    key = hashlib.sha256(json.dumps([dict(overrides), tier, smoke], sort_keys=True, default=str).encode()).hexdigest()
    return Path("runs/compare") / f"{'_'.join(specs).replace(':', '@')[:120]}.{key[:8]}"


def _check_common(measured: Mapping[str, Measurement], seed: int) -> None:
    _common_metrics({label: [one] for label, one in measured.items()})


def _common_metrics(results: Results) -> list[str]:
    reported = {
        label: [
            name
            for name in found[0].metrics
            if all(name in one.metrics and math.isfinite(one.metrics[name]) for one in found)
        ]
        for label, found in results.items()
    }
    first, *rest = reported.values()
    common = [name for name in first if all(name in other for other in rest)]
    if not common:
        listed = "; ".join(f"{label} reports {', '.join(names) or 'none'}" for label, names in reported.items())
        raise ConfigError(f"no metric in common: {listed}")
    return common


def _smaller_is_better(metric: str, entrants: Sequence[Entrant]) -> bool:
    """As the systems' claims say; larger is better where none of them is about the metric."""
    said = {claim.smaller_is_better for one in entrants for claim in one.system.claims if claim.metric == metric}
    if len(said) > 1:
        raise ConfigError(f"{metric}: some of these systems say that smaller is better, others that larger is")
    return said == {True}


def _pairs(metric: str, results: Results, smaller_is_better: bool) -> list[Pair]:
    figures = {label: [one.metrics[metric] for one in measured] for label, measured in results.items()}
    reach = reach_of_all_pairs(list(figures.values()))
    pairs = []
    for one, other in combinations(figures, 2):
        mean = paired_effect(figures[one], figures[other], smaller_is_better=smaller_is_better).mean
        low, high = mean - reach, mean + reach
        better = one if low > 0 else other if high < 0 else None
        pairs.append(Pair(metric, one, other, mean, (low, high) if math.isfinite(reach) else None, better))
    return pairs


def _unequal_budgets(results: Results) -> list[str]:
    notes = []
    for figure in sorted({name for found in results.values() for one in found for name in one.equal}):
        used = {label: found[0].budget.get(figure) for label, found in results.items()}
        if len(set(used.values())) > 1:
            listed = ", ".join(f"{label} {'none' if value is None else f'{value:g}'}" for label, value in used.items())
            notes.append(f"the budgets differ: {figure} {listed}")
    return notes
