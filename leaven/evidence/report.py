"""One self-contained HTML page from a run, an evidence file, a claim run or a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leaven.errors import ConfigError
from leaven.evidence.evidence_file import ArmEvidence, Evidence, read_evidence
from leaven.evidence.json_file import EvidenceError, read_json, write_text
from leaven.evidence.page import Chip, Page, Table
from leaven.evidence.page_parts import (
    arms_summary,
    claim_card,
    configuration,
    curve_plots,
    named_values,
    results,
    strips,
    system_title,
    tables_by_seed,
)
from leaven.evidence.tables import shown_time, signed, words


def write_report(path: Path, out: Path, *, runs: Path | None = None) -> Path:
    """Write the page of `path` to `out`.

    Args:
        path: a run's folder, a claim run's or comparison's folder, or an evidence file.
        runs: where claim runs are kept; the curves of an evidence file are taken from the run that it came from, if
            that run is still there.

    Raises: ConfigError where there is nothing to report on; EvidenceError for a damaged file.
    """
    write_text(out, page_of(path, runs=runs).html())
    return out


def page_of(path: Path, *, runs: Path | None = None) -> Page:
    """The page of a run's folder, a claim run's or comparison's folder, or an evidence file; see `write_report`."""
    if path.is_file():
        evidence = read_evidence(path)
        return evidence_page(evidence, _run_behind(evidence, runs))
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder or file; give a run's folder or an evidence file")
    if (path / "outcome.json").is_file():
        return run_page(path / "outcome.json")
    if (path / "evidence.json").is_file():
        evidence = read_evidence(path / "evidence.json")
        return evidence_page(evidence, read_curves(path, list(evidence.arms), len(evidence.seeds)))
    if (path / "comparison.json").is_file():
        return comparison_page(path / "comparison.json")
    if (path / "protocol.json").is_file():
        raise ConfigError(f"{path}: is not finished; the command that began it goes on where it stopped")
    raise ConfigError(
        f"{path}: nothing to report on; expected the folder of a finished `leaven run`, `leaven claim` or "
        "`leaven compare`"
    )


def evidence_page(evidence: Evidence, curves: Mapping[str, list[Any]] | None = None) -> Page:
    """The page of a claim run; `curves` as `read_curves` gives them."""
    colours = {label: place for place, label in enumerate(evidence.arms)}
    count = len(evidence.seeds)
    page = Page(
        title=system_title(evidence.system),
        subtitle=f"{evidence.system}, {evidence.tier} tier, {count} {'seed' if count == 1 else 'seeds'}, "
        f"{evidence.date[:10]}, {shown_time(evidence.seconds)} in all",
        chips=_verdicts(evidence),
        notes=[evidence.note] if evidence.note else [],
        claims=[claim_card(evidence, one) for one in evidence.claims],
        tables=[arms_summary(evidence.arms)],
        strips=strips(evidence.arms, colours),
        curves=curve_plots(curves or {}, colours),
    )
    if evidence.smoke:
        page.chips.append(Chip("smoke run: no evidence", "warning"))
    if evidence.git.get("dirty"):
        page.chips.append(Chip("made with uncommitted changes", "warning"))
    page.details = [
        *tables_by_seed(evidence.arms, evidence.seeds),
        *configuration(evidence.protocol.shared, evidence.protocol.arms),
        named_values(
            "Machine and versions",
            {
                **evidence.machine,
                **evidence.versions,
                **{f"git {name}": value for name, value in evidence.git.items()},
                "date": evidence.date,
            },
        ),
    ]
    return page


def run_page(file: Path) -> Page:
    """The page of a run, from its outcome.json. Raises: EvidenceError when it is damaged."""
    outcome = read_json(file)
    try:
        page = Page(
            title=str(outcome["title"]),
            subtitle=f"{outcome['system']}, {shown_time(math.fsum(outcome['timings'].values()))} in all",
            notes=[str(note) for note in outcome["notes"]],
            tables=[results(outcome["columns"], outcome["rows"])],
            curves=curve_plots(
                {stage: [("run", [records])] for stage, records in outcome["curves"].items()}, {"run": 0}
            ),
            samples=[{str(name): str(text) for name, text in one.items()} for one in outcome["samples"]],
            details=configuration(outcome["config"], {}),
        )
        if outcome["timings"]:
            rows = [[stage, shown_time(seconds)] for stage, seconds in outcome["timings"].items()]
            page.details.append(Table("Time", ["stage", "time"], rows, figures={1}))
        if outcome["artefacts"]:
            page.details.append(named_values("Files", outcome["artefacts"]))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise EvidenceError(f"{file}: not the outcome of a run ({error!r})") from error
    return page


def comparison_page(file: Path) -> Page:
    """The page of a comparison. Raises: EvidenceError when the file is damaged."""
    found = read_json(file)
    try:
        arms = {label: ArmEvidence.model_validate(one) for label, one in found["arms"].items()}
        colours = {label: place for place, label in enumerate(arms)}
        rows = [
            [
                words(one["metric"]),
                f"{one['one']} - {one['other']}",
                signed(one["effect"]),
                " to ".join(map(signed, one["interval"])) if one["interval"] else "-",
                f"{one['better']} is better" if one["better"] else "undecided",
            ]
            for one in found["pairs"]
        ]
        pairs = Table(
            "Who is better",
            ["metric", "difference", "mean", "95% interval", "verdict"],
            rows,
            caption="Paired differences, positive where the first is better. The intervals of a metric hold together.",
            figures={2, 3},
        )
        return Page(
            title=" against ".join(arms),
            subtitle=f"comparison, {found['tier']} tier, {found['seeds']} seeds",
            chips=[Chip("smoke run: no evidence", "warning")] if found["smoke"] else [],
            notes=[str(note) for note in found["notes"]],
            tables=[arms_summary(arms), pairs],
            strips=strips(arms, colours),
            curves=curve_plots(read_curves(file.parent, list(arms), int(found["seeds"])), colours),
            details=[
                *tables_by_seed(arms, range(int(found["seeds"]))),
                *configuration(found["protocol"]["shared"], found["protocol"]["arms"]),
            ],
        )
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise EvidenceError(f"{file}: not a comparison ({error!r})") from error


def read_curves(folder: Path, labels: Sequence[str], seeds: int) -> dict[str, list[Any]]:
    """By stage, a list of (label, records by seed) from a run's folder; what is missing there is left out."""
    stages: dict[str, dict[str, list[Any]]] = {}
    for label in labels:
        for seed in range(seeds):
            file = folder / f"seed-{seed}" / f"{label.replace(':', '@')}.json"
            if not file.is_file():
                continue
            for stage, records in read_json(file).get("measurement", {}).get("curves", {}).items():
                stages.setdefault(stage, {}).setdefault(label, []).append(records)
    return {stage: list(arms.items()) for stage, arms in stages.items()}


def _verdicts(evidence: Evidence) -> list[Chip]:
    first, *others = [one.verdict for one in evidence.claims]
    chips = [Chip(f"headline claim: {first}", first)]
    return chips + [Chip(f"{others.count(one)} more: {one}", one) for one in dict.fromkeys(others)]


def _run_behind(evidence: Evidence, runs: Path | None) -> dict[str, list[Any]]:
    folder = (runs or Path("runs/claims")) / f"{evidence.system}.{evidence.tier}"
    if not (folder / "evidence.json").is_file():
        return {}
    behind = read_evidence(folder / "evidence.json")
    if (behind.arms, behind.seeds) != (evidence.arms, evidence.seeds):
        return {}
    return read_curves(folder, list(evidence.arms), len(evidence.seeds))
