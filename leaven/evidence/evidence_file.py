"""`evidence/SLUG.TIER.json`: written by the runner, checked whenever it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leaven.evidence.json_file import EvidenceError, plain, read_json, rounded, write_json
from leaven.evidence.statistics import Verdict, decide, paired_effect, spread


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Part):
    """A figure over the seeds; None where it is missing or not finite."""

    mean: float | None
    sd: float | None
    per_seed: list[float | None]

    @staticmethod
    def of(values: Sequence[float | None]) -> Spread:
        """From one value per seed."""
        per_seed = [one if one is not None and math.isfinite(one) else None for one in values]
        known = [one for one in per_seed if one is not None]
        mean, sd = spread(known) if known and len(known) == len(values) else (None, None)
        return Spread(mean=mean, sd=sd, per_seed=per_seed)


class ClaimEvidence(_Part):
    """A claim and its verdict.

    effect: mean paired difference in the metric's unit, positive where `better` is better.
    bound, upper_bound: its one-sided 95% bounds; interval: two-sided 95%. None for a single seed.
    differences: one per seed.
    """

    says: str
    metric: str
    smaller_is_better: bool
    better: str
    than: str
    by: float
    effect: float
    bound: float | None
    upper_bound: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    paper: str
    differences: list[float]


class ArmEvidence(_Part):
    """What an arm gave: figures on the test split, on the validation split, what it used and what was chosen."""

    metrics: dict[str, Spread]
    validation: dict[str, Spread]
    budget: dict[str, Spread]
    equal: list[str]
    chosen: list[dict[str, Any]]
    seconds: Spread


class Protocol(_Part):
    """Configuration: what all arms share, and what each has of its own."""

    shared: dict[str, Any]
    arms: dict[str, dict[str, Any]]


class Evidence(_Part):
    """All that a claim run gave; the first claim is the headline.

    note: free text, written by hand into the file and kept when the file is rewritten.
    """

    format: Literal[1] = 1
    system: str
    tier: str
    smoke: bool
    seeds: list[int] = Field(min_length=1)
    claims: list[ClaimEvidence] = Field(min_length=1)
    arms: dict[str, ArmEvidence]
    protocol: Protocol
    machine: dict[str, Any]
    versions: dict[str, str]
    git: dict[str, Any]
    date: str
    seconds: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values, figures rounded to 6 significant digits."""
        values: dict[str, Any] = plain(rounded(self.model_dump(mode="json")))
        return values

    @property
    def file_name(self) -> str:
        """Its name in the evidence folder."""
        return f"{self.system}.{self.tier}.json"


@dataclass(frozen=True)
class Entry:
    """A file of the evidence folder: its evidence, or why it cannot be used."""

    path: Path
    evidence: Evidence | None
    problem: str = ""


def read_evidence(path: Path) -> Evidence:
    """The evidence of a file.

    Raises: EvidenceError naming the file and field when it is damaged, or when a verdict does not follow from the
    figures per seed: what the file says was then not written by the runner.
    """
    values = read_json(path)
    try:
        evidence = Evidence.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EvidenceError(f"{path}: {where or 'the file'}: {first['msg']} ({error.error_count()} in all)") from error
    for claim in evidence.claims:
        _check(path, evidence, claim)
    return evidence


def write_evidence(evidence: Evidence, folder: Path) -> Path:
    """Write the file of the evidence into the evidence folder, keeping the note of the one it replaces.

    Raises: EvidenceError for smoke evidence, which is no evidence, and for a damaged file in the place.
    """
    if evidence.smoke:
        raise EvidenceError(f"evidence of a smoke run of {evidence.system} stays in its run folder")
    path = folder / evidence.file_name
    note = evidence.note or kept_note(path)
    write_json(path, evidence.model_copy(update={"note": note}).to_json())
    return path


def kept_note(path: Path) -> str:
    """The note of an evidence file, empty where there is no file. Raises: EvidenceError when it cannot be read."""
    note = read_json(path).get("note", "") if path.exists() else ""
    if not isinstance(note, str):
        raise EvidenceError(f"{path}: note must be text")
    return note


def check_replaceable(path: Path, seeds: int) -> None:
    """Whether evidence of so many seeds may take the place of a file, asked before the hours of the run.

    Raises: EvidenceError for a file whose note would be lost, or that rests on more seeds.
    """
    kept_note(path)
    there = read_json(path).get("seeds") if path.exists() else None
    if isinstance(there, list) and len(there) > seeds:
        raise EvidenceError(
            f"{path} rests on {len(there)} seeds, which {seeds} would replace; give --seeds {len(there)} or more, "
            "--smoke for a try, or remove the file"
        )


def read_folder(folder: Path) -> list[Entry]:
    """Every evidence file of a folder by name; a damaged one is listed with its problem."""
    return [_entry(path) for path in sorted(folder.glob("*.json")) if not path.name.startswith(".")]


def _entry(path: Path) -> Entry:
    try:
        evidence = read_evidence(path)
        if path.name != evidence.file_name:
            raise EvidenceError(f"{path}: holds the evidence of {evidence.file_name}")
        if evidence.smoke:
            raise EvidenceError(f"{path}: was written by a smoke run, which is no evidence")
    except EvidenceError as error:
        return Entry(path, None, str(error))
    return Entry(path, evidence)


def _check(path: Path, evidence: Evidence, claim: ClaimEvidence) -> None:
    """Compute the claim anew from the arms' figures per seed, up to their rounding."""
    figures: list[list[float]] = []
    for arm in (claim.better, claim.than):
        found = evidence.arms[arm].metrics.get(claim.metric) if arm in evidence.arms else None
        values = [one for one in found.per_seed if one is not None] if found is not None else []
        if len(values) != len(evidence.seeds):
            raise EvidenceError(
                f"{path}: arm {arm!r} has no {claim.metric!r} for each of the {len(evidence.seeds)} seeds"
            )
        figures.append(values)
    effect = paired_effect(*figures, smaller_is_better=claim.smaller_is_better)
    slack = 1e-4 * max(abs(value) for values in figures for value in values)
    lower, upper = effect.lower(), effect.upper()
    stated = [(claim.effect, effect.mean)]
    if math.isfinite(lower):
        stated += [(claim.bound, lower), (claim.upper_bound, upper)]  # type: ignore[list-item]
    allowed = {decide(claim.by, effect.mean + s, lower + s, upper + s) for s in (-slack, 0.0, slack)}
    if claim.verdict not in allowed or any(one is None or abs(one - true) > slack for one, true in stated):
        raise EvidenceError(
            f"{path}: {claim.better} against {claim.than} on {claim.metric}: effect {claim.effect:g} and verdict "
            f"{claim.verdict!r} do not follow from the figures per seed; run `leaven claim {evidence.system}` again"
        )
