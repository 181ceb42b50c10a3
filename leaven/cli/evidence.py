"""`leaven claim`, `claims`, `compare` and `report`: what was claimed, what was found, and the page that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leaven.catalog import evidence_dir
from leaven.cli.listing import AsJson
from leaven.cli.output import print_json, print_table
from leaven.errors import ConfigError

if TYPE_CHECKING:
    from leaven.evidence.evidence_file import Entry
    from leaven.evidence.system import System

RUNS = Path("runs")

_TIER = typer.Option("embedded", help="Data tier: embedded, or standard for public data sets.")
_SEEDS = typer.Option(None, min=1, help="How many seeds, 0 to N-1; by default what the system says.")
_JOBS = typer.Option(1, min=1, help="Seeds that are measured at a time, each in a process with its share of the cores.")
_OUT = typer.Option(None, help="Folder of the run, which a later call goes on in.")


def claim(
    slug: str = typer.Argument(help="The system's short name."),
    *,
    tier: str = _TIER,
    seeds: int | None = _SEEDS,
    smoke: bool = typer.Option(False, "--smoke", help="At a size of seconds, to see that it works; gives no evidence."),
    jobs: int = _JOBS,
    out: Path | None = _OUT,
    as_json: bool = AsJson,
) -> None:
    """Test a system's claims: its arms under paired seeds, and the verdicts. What is finished is not repeated."""
    system = _system(slug)
    from leaven.evidence.entrants import claim_entrants
    from leaven.evidence.evidence_file import check_replaceable, write_evidence
    from leaven.evidence.progress import Lines
    from leaven.evidence.runner import default_seeds, run_claims

    folder = out or RUNS / "claims" / f"{slug}.{tier}{'.smoke' if smoke else ''}"
    count = default_seeds(system, tier, smoke=smoke) if seeds is None else seeds
    arms = claim_entrants(system, tier)
    if not smoke:
        check_replaceable(evidence_dir() / f"{slug}.{tier}.json", count)
    if not as_json:
        size = f"{len(arms)} arms, {count} {'seed' if count == 1 else 'seeds'}"
        print(f"{slug}, {tier} tier{', smoke size' if smoke else ''}: {size}", flush=True)
    evidence = run_claims(system, tier=tier, seeds=count, smoke=smoke, jobs=jobs, out=folder, progress=Lines())
    written = folder / "evidence.json" if smoke else write_evidence(evidence, evidence_dir())
    if as_json:
        print_json(evidence.to_json())
        return
    from leaven.evidence.tables import evidence_table

    print(evidence_table(evidence, width=_width()))
    shown = folder if smoke else written
    print(f"\n{written} written; `leaven report {shown}` makes a page with the curves")


def claims(as_json: bool = AsJson) -> None:
    """Show every claim that was tested: the paper's figure, ours, effect, bound and verdict."""
    from leaven.evidence.evidence_file import read_folder

    entries = read_folder(evidence_dir())
    rows = [row for entry in entries for row in _claim_rows(entry)]
    if as_json:
        print_json(rows)
    elif rows:
        columns = ("system", "tier", "verdict", "effect", "bound", "margin", "seeds", "ours", "claim", "paper")
        print_table(columns, [[_cell(row.get(name)) for name in columns] for row in rows], wrap=True)
        for entry in entries:
            if entry.problem:
                print(f"unreadable: {entry.problem}")
    else:
        print(f"no evidence in {evidence_dir()}; `leaven claim SLUG` makes some")


def compare(
    arguments: list[str] = typer.Argument(help="SLUG or SLUG:ARM, two or more, and key=value for all."),  # noqa: B008
    *,
    tier: str = _TIER,
    seeds: int = typer.Option(3, min=1, help="How many seeds, 0 to N-1."),
    smoke: bool = typer.Option(False, "--smoke", help="At a size of seconds, to see that it works."),
    jobs: int = _JOBS,
    out: Path | None = _OUT,
    as_json: bool = AsJson,
) -> None:
    """Measure systems, or arms of systems, on the same data: leaven compare slca lae:slow data=imagefolder:DIR."""
    specs = [one for one in arguments if "=" not in one]
    items = [one for one in arguments if "=" in one]
    twice = next((one for one in specs if specs.count(one) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is given twice")
    systems = {spec: _system(spec.partition(":")[0]) for spec in specs}
    from leaven.cli.overrides import parse_overrides
    from leaven.evidence.compare import compare as compare_systems
    from leaven.evidence.compare import default_folder
    from leaven.evidence.progress import Lines

    overrides: dict[str, Any] = {}
    for system in systems.values():
        overrides = parse_overrides(system.Config, items).model_dump(exclude_unset=True)
    folder = out or default_folder(specs, overrides, tier=tier, smoke=smoke)
    found = compare_systems(
        systems, tier=tier, seeds=seeds, smoke=smoke, jobs=jobs, out=folder, progress=Lines(), **overrides
    )
    if as_json:
        print_json(found.to_json())
        return
    print(found.table(width=_width()))
    print(f"\n`leaven report {folder}` makes a page with the curves")


def report(
    path: Path = typer.Argument(help="Folder of a run, claim run or comparison, or an evidence file."),  # noqa: B008
    out: Path | None = typer.Option(None, help="The page; by default report.html in the folder."),  # noqa: B008
    open_page: bool = typer.Option(False, "--open", help="Open the page in the browser."),
) -> None:
    """Write one self-contained HTML page with tables, figures per seed and curves."""
    from leaven.evidence.report import write_report

    target = out or (path / "report.html" if path.is_dir() else RUNS / "reports" / f"{path.stem}.html")
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; --out takes the name of the page")
    written = write_report(path, target, runs=RUNS / "claims")
    print(f"{written} written")
    if open_page:
        import webbrowser

        webbrowser.open(written.resolve().as_uri())


def _system(slug: str) -> type[System[Any]]:
    import leaven.systems

    return leaven.systems.find_system(slug)


def _claim_rows(entry: Entry) -> list[dict[str, Any]]:
    from leaven.evidence.json_file import plain, rounded
    from leaven.evidence.tables import ours

    evidence = entry.evidence
    if evidence is None:
        slug, _, tier = entry.path.stem.rpartition(".")
        return [{"system": slug, "tier": tier, "verdict": "unreadable", "problem": entry.problem}]
    return [
        {
            "system": evidence.system,
            "tier": evidence.tier,
            "claim": one.says,
            "metric": one.metric,
            "paper": one.paper,
            "ours": ours(evidence, one),
            "effect": rounded(one.effect),
            "bound": plain(rounded(one.bound)),
            "interval": plain(rounded(one.interval)),
            "margin": one.by,
            "verdict": one.verdict,
            "seeds": len(evidence.seeds),
            "headline": at == 0,
        }
        for at, one in enumerate(evidence.claims)
    ]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _width() -> int | None:
    """Columns of the terminal, None for a file or a pipe."""
    import shutil
    import sys

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
