"""How far each system is: computed from the modules and the evidence files that exist, never written by hand."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaven.catalog.cards import card, cards

PACKAGE = Path(__file__).resolve().parents[1]
TIERS = ("embedded", "standard", "yours")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The headline claim of one evidence file.

    verdict: `holds`, `reversed` or `undecided` as the runner wrote it, `unreadable` when the file is damaged.
    effect, bound: mean effect and its one-sided 95% bound in the metric's unit, None when the file does not say.
    problem: why the file could not be read, "" when it could.
    """

    tier: str
    verdict: str
    says: str = ""
    metric: str = ""
    effect: float | None = None
    bound: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """`built`: its module exists. `verdicts`: one for each tier with evidence."""

    built: bool
    verdicts: tuple[Verdict, ...] = ()

    def __str__(self) -> str:
        if self.verdicts:
            return ", ".join(f"{one.verdict} ({one.tier})" for one in self.verdicts)
        return "built" if self.built else "planned"


def checkout() -> Path | None:
    """Root of the source tree that this package runs from, None for an installed package."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "leaven").resolve() == PACKAGE else None


def evidence_dir() -> Path:
    """Where evidence files are: `LEAVEN_EVIDENCE`, else `evidence` in the source tree, else in the working folder."""
    named = os.environ.get("LEAVEN_EVIDENCE")
    if named:
        return Path(named).expanduser()
    return (checkout() or Path.cwd()) / "evidence"


def status(slug: str, *, systems: Path | None = None, evidence: Path | None = None) -> Status:
    """Status of one system.

    Args:
        systems: folder with the systems' packages by area; by default that of this package.
        evidence: folder with the evidence files; by default `evidence_dir()`.

    Raises: CatalogError for an unknown slug.
    """
    return _status(card(slug).slug, card(slug).module in _modules(systems), evidence)


def statuses(*, systems: Path | None = None, evidence: Path | None = None) -> dict[str, Status]:
    """Status of every system by slug, with one look at the folders."""
    modules = _modules(systems)
    return {one.slug: _status(one.slug, one.module in modules, evidence) for one in cards()}


def _modules(systems: Path | None) -> set[str]:
    return {path.stem for path in (systems or PACKAGE / "systems").glob("*/*.py")}


def _status(slug: str, built: bool, evidence: Path | None) -> Status:
    folder = evidence or evidence_dir()
    files = [(tier, folder / f"{slug}.{tier}.json") for tier in TIERS]
    return Status(built, tuple(_headline(tier, file) for tier, file in files if file.is_file()))


def _headline(tier: str, file: Path) -> Verdict:
    try:
        claim: dict[str, Any] = json.loads(file.read_bytes())["claims"][0]
        return Verdict(
            tier=tier,
            verdict=str(claim["verdict"]),
            says=str(claim.get("says", "")),
            metric=str(claim.get("metric", "")),
            effect=_number(claim.get("effect")),
            bound=_number(claim.get("bound")),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return Verdict(tier=tier, verdict="unreadable", problem=f"{file}: {type(error).__name__}: {error}")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
