"""Measuring arms under paired seeds, resumably, and the evidence that comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from leaven.errors import ConfigError, LeavenError
from leaven.evidence.alone import alone_in
from leaven.evidence.claims import Claim
from leaven.evidence.entrants import Entrant, claim_entrants
from leaven.evidence.evidence_file import ArmEvidence, ClaimEvidence, Evidence, Protocol, Spread
from leaven.evidence.json_file import EvidenceError, write_json
from leaven.evidence.measuring import check_figures, measure
from leaven.evidence.progress import Progress, Silent
from leaven.evidence.provenance import commit, machine, versions
from leaven.evidence.run_folder import RunFolder
from leaven.evidence.side_by_side import Work, measure_side_by_side
from leaven.evidence.statistics import paired_effect, verdict
from leaven.evidence.system import Measurement, System

Results = dict[str, list[Measurement]]


def measure_seeds(
    entrants: Sequence[Entrant],
    folder: RunFolder,
    *,
    seeds: int,
    jobs: int = 1,
    metrics: Mapping[str, Sequence[str]] | None = None,
    check: Callable[[Mapping[str, Measurement], int], None] | None = None,
    progress: Progress | None = None,
) -> Results:
    """Measure every entrant under seeds 0 to `seeds` - 1, seed by seed; what the folder holds already is not repeated.

    Args:
        jobs: seeds that are measured at a time, each in a process with its share of the cores.
        metrics: figures that an entrant must report, by label; a missing or non-finite one stops the run at once.
        check: called after each seed with its measurements by label; what it raises ends the run.

    Raises: EvidenceError naming entrant and figure; ConfigError for less than one seed, a folder of another
    configuration or one that another process measures in; what an entrant raises, with its name and seed.
    """
    if seeds < 1:
        raise ConfigError(f"seeds={seeds}: at least one is needed")
    if jobs < 1:
        raise ConfigError(f"jobs={jobs}: at least one is needed")
    progress, metrics = progress or Silent(), metrics or {}
    results: Results = {one.label: [] for one in entrants}
    for seed in range(seeds):
        for one in entrants:
            # A damaged result, or one of another configuration, is told of before anything is measured.
            folder.finished(seed, one.label)
    provenance = {"git": commit(), "versions": versions(), "machine": machine()}
    folder.path.mkdir(parents=True, exist_ok=True)
    with alone_in(folder.path):
        folder.begin()
        progress.begin([one.label for one in entrants], seeds, jobs)
        try:
            if jobs > 1:
                work = Work(entrants, folder, metrics, provenance)
                told = measure_side_by_side(work, range(seeds), jobs, progress)
            else:
                told = set()
            for seed in range(seeds):
                for one in entrants:
                    needed = metrics.get(one.label, ())
                    measurement = folder.finished(seed, one.label)
                    reused = measurement is not None
                    if measurement is None:
                        progress.started(seed, one.label)
                        measurement = measure(one, folder, seed, needed=needed, provenance=provenance)
                    check_figures(one.label, seed, measurement, needed)
                    results[one.label].append(measurement)
                    if (seed, one.label) not in told:
                        progress.finished(seed, one.label, measurement, reused=reused)
                if check is not None:
                    check({label: found[seed] for label, found in results.items()}, seed)
        except LeavenError:
            folder.abandon()
            raise
    return results


def run_claims(
    system: type[System[Any]],
    *,
    tier: str = "embedded",
    seeds: int | None = None,
    smoke: bool = False,
    jobs: int = 1,
    out: Path,
    progress: Progress | None = None,
) -> Evidence:
    """Measure the arms of a system's claims in a tier and give the evidence, also written to `out`/evidence.json.

    Args:
        seeds: how many; by default what the system says for the tier, at smoke size 2.
        jobs: seeds that are measured at a time. A script that takes more than one has to keep its own work under
            `if __name__ == "__main__"`, since each process reads it.
        out: the run's folder; a later call goes on there.

    Raises: CatalogError for an unknown tier or one without claims, and what `measure_seeds` raises.
    """
    entrants = claim_entrants(system, tier)
    claims: list[Claim] = [claim for claim in system.claims if tier in claim.tiers]
    seeds = default_seeds(system, tier, smoke=smoke) if seeds is None else seeds
    folder = RunFolder(out, entrants, tier=tier, smoke=smoke)
    needed: dict[str, list[str]] = {}
    for claim in claims:
        for arm in (claim.better, claim.than):
            needed.setdefault(arm, []).append(claim.metric)
    check = partial(check_budgets, groups=compared(claims, [one.label for one in entrants]))
    results = measure_seeds(entrants, folder, seeds=seeds, jobs=jobs, metrics=needed, check=check, progress=progress)
    git = _git({(seed, one.label): folder.provenance(seed, one.label) for seed in range(seeds) for one in entrants})
    evidence = Evidence(
        system=system.slug,
        tier=tier,
        smoke=smoke,
        seeds=list(range(seeds)),
        claims=[claim_evidence(claim, results) for claim in claims],
        arms={label: arm_evidence(found) for label, found in results.items()},
        protocol=protocol(folder.configs),
        machine=machine(),
        versions=versions(),
        git=git,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=math.fsum(one.seconds for found in results.values() for one in found),
    )
    write_json(out / "evidence.json", evidence.to_json())
    return evidence


def default_seeds(system: type[System[Any]], tier: str, *, smoke: bool) -> int:
    """How many seeds a claim takes when the user does not say."""
    return 2 if smoke else system.seeds.get(tier, 5)


def claim_evidence(claim: Claim, results: Results) -> ClaimEvidence:
    """A claim with the verdict on it."""
    better, than = ([one.metrics[claim.metric] for one in results[arm]] for arm in (claim.better, claim.than))
    effect = paired_effect(better, than, smaller_is_better=claim.smaller_is_better)
    known = len(effect.differences) > 1
    return ClaimEvidence(
        says=claim.says,
        metric=claim.metric,
        smaller_is_better=claim.smaller_is_better,
        better=claim.better,
        than=claim.than,
        by=claim.by,
        effect=effect.mean,
        bound=effect.lower() if known else None,
        upper_bound=effect.upper() if known else None,
        interval=effect.interval() if known else None,
        verdict=verdict(effect, claim.by),
        paper=claim.paper,
        differences=list(effect.differences),
    )


def arm_evidence(found: Sequence[Measurement]) -> ArmEvidence:
    """What an arm gave under all seeds."""
    return ArmEvidence(
        metrics=spreads([one.metrics for one in found]),
        validation=spreads([one.validation for one in found]),
        budget=spreads([one.budget for one in found]),
        equal=sorted({name for one in found for name in one.equal}),
        chosen=[one.chosen for one in found],
        seconds=Spread.of([one.seconds for one in found]),
    )


def spreads(figures: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Mean, deviation and values by figure; a figure that a seed does not have is None there."""
    names = list(dict.fromkeys(name for one in figures for name in one))
    return {name: Spread.of([one.get(name) for one in figures]) for name in names}


def protocol(configs: Mapping[str, Mapping[str, Any]]) -> Protocol:
    """What all arms share, and what each has of its own."""
    first, *rest = configs.values()
    shared = {name: value for name, value in first.items() if all(name in o and o[name] == value for o in rest)}
    own = {label: {k: v for k, v in config.items() if k not in shared} for label, config in configs.items()}
    return Protocol(shared=shared, arms=own)


def compared(claims: Sequence[Claim], arms: Sequence[str]) -> list[list[str]]:
    """Groups of arms that claims compare, by way of others too; those that no claim names are with the first."""
    groups: list[set[str]] = []
    for claim in claims:
        pair = {claim.better, claim.than}
        joined = pair.union(*(group for group in groups if group & pair))
        groups = [*(group for group in groups if not group & pair), joined]
    groups.sort(key=lambda group: min(arms.index(arm) for arm in group))
    alone = set(arms).difference(*groups)
    return [[arm for arm in arms if arm in group or (at == 0 and arm in alone)] for at, group in enumerate(groups)]


def check_budgets(measured: Mapping[str, Measurement], seed: int, groups: Sequence[Sequence[str]]) -> None:
    """Raises: EvidenceError where arms of a group that must have the same budget differ."""
    for group in groups:
        _check_group({label: measured[label] for label in group}, seed)


def _check_group(measured: Mapping[str, Measurement], seed: int) -> None:
    for figure in sorted({name for one in measured.values() for name in one.equal}):
        values = {label: one.budget.get(figure) for label, one in measured.items()}
        first_label, first = next(iter(values.items()))
        for label, value in values.items():
            if value is None or first is None or not math.isclose(value, first, rel_tol=1e-9):
                raise EvidenceError(
                    f"seed {seed}: the arms must have the same {figure}, but {first_label} has {_number(first)} "
                    f"and {label} has {_number(value)}; an unequal budget makes no evidence"
                )


def _git(found: Mapping[tuple[int, str], Mapping[str, Any]]) -> dict[str, Any]:
    """One commit where all results are of one; otherwise the list, for a run that went on after a change of code."""
    of_results = [one.get("git") or {} for one in found.values()]
    commits = list(dict.fromkeys(one.get("commit") for one in of_results))
    dirty = [one.get("dirty") for one in of_results]
    merged: dict[str, Any] = {"commit": commits[-1], "dirty": None if None in dirty else any(dirty)}
    return {**merged, "commits": commits} if len(commits) > 1 else merged


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.10g}"
