"""Evidence as text: arms with mean ± deviation, then a line for each claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta

from leaven.evidence.evidence_file import ArmEvidence, ClaimEvidence, Evidence, Spread


def evidence_table(evidence: Evidence, *, width: int | None = None) -> str:
    """The arms' table and the verdicts.

    width: columns of the terminal. Metrics that no claim is about are left out, last first, when they do not fit.
    """
    claimed = list(dict.fromkeys(claim.metric for claim in evidence.claims))
    lines = arms_table(evidence.arms, claimed, width=width)
    for claim in evidence.claims:
        lines += ["", *claim_lines(claim)]
    return "\n".join(lines)


def arms_table(arms: Mapping[str, ArmEvidence], first: Sequence[str] = (), *, width: int | None = None) -> list[str]:
    """One row per arm: mean ± standard deviation of each metric over the seeds, and the mean time of a seed."""
    names = list(dict.fromkeys([*first, *(name for arm in arms.values() for name in arm.metrics)]))
    columns = [[words(name), *spread_cells([arm.metrics.get(name) for arm in arms.values()])] for name in names]
    outer = [["arm", *arms], ["time", *(shown_time(arm.seconds.mean) for arm in arms.values())]]
    shown = list(columns)
    while width is not None and len(shown) > max(1, len(first)) and _width([*outer, *shown]) > width:
        shown.pop()
    lines = aligned([outer[0], *shown, outer[1]])
    if len(shown) < len(columns):
        left_out = ", ".join(words(name) for name in names[len(shown) :])
        lines.append(f"not shown: {left_out} (in the report and with --json)")
    return lines


def claim_lines(claim: ClaimEvidence) -> list[str]:
    """What is claimed, then effect, bound, margin, verdict and the paper's figure."""
    paper = f"   paper: {claim.paper}" if claim.paper else ""
    return [claim.says, f"{effect_text(claim)}, {margin_text(claim)}: {claim.verdict}{paper}"]


def effect_text(claim: ClaimEvidence) -> str:
    """The effect with the one-sided bound that the verdict rests on."""
    bound = claim.upper_bound if claim.verdict == "reversed" else claim.bound
    if bound is None:
        return f"effect {signed(claim.effect)} (one seed, no bound)"
    alike = ", the same under every seed" if claim.interval and claim.interval[0] == claim.interval[1] else ""
    side = "upper 95% bound" if claim.verdict == "reversed" else "95% bound"
    return f"effect {signed(claim.effect)} ({side} {signed(bound)}{alike})"


def margin_text(claim: ClaimEvidence) -> str:
    """The margin in words."""
    return f"margin {claim.by:g}" if claim.by >= 0 else f"at most {-claim.by:g} worse"


def ours(evidence: Evidence, claim: ClaimEvidence) -> str:
    """Means of the two arms, as `0.67 against 0.23`."""
    means = [evidence.arms[arm].metrics[claim.metric].mean for arm in (claim.better, claim.than)]
    return " against ".join("-" if mean is None else number(mean) for mean in means)


def words(name: str) -> str:
    """A metric's name as words."""
    return name.replace("_", " ")


def number(value: float) -> str:
    """Four significant digits, whole numbers in full."""
    if value.is_integer() and abs(value) < 1e15:
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return f"{value:.4g}"


def signed(value: float) -> str:
    """Three significant digits with the sign; no sign for zero."""
    return "0" if value == 0 else f"{value:+.3g}"


def spread_cells(column: Sequence[Spread | None]) -> list[str]:
    """Mean ± standard deviation of each, all to the second digit of the largest deviation; - where there is none."""
    largest = max((one.sd for one in column if one is not None and one.sd), default=None)
    if largest is None:
        return ["-" if one is None or one.mean is None else number(one.mean) for one in column]
    places = min(6, max(0, 1 - math.floor(math.log10(largest))))
    return [
        "-" if one is None or one.mean is None else f"{one.mean:.{places}f} ± {one.sd or 0.0:.{places}f}"
        for one in column
    ]


def shown_time(seconds: float | None) -> str:
    """Seconds under a minute, else hours, minutes and seconds."""
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table given by columns, each with its heading first."""
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in columns) - 2
