"""Figures as SVG text for a page: effects with intervals, figures per seed, and learning curves.

Colours are classes (`c0` to `c7`, `ink`, `soft`), which the page defines for light and dark; nothing is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from leaven.evidence.evidence_file import ClaimEvidence
from leaven.evidence.tables import number, signed

WIDE, NARROW = 640, 460
COLOURS = 8
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Learning curves of one arm, one per seed, each as (step, figure)."""

    label: str
    colour: int
    seeds: list[Points]


def effect_figure(claim: ClaimEvidence) -> str:
    """The mean effect with its two-sided 95% interval, the difference of each seed, zero and the margin."""
    interval = claim.interval or (claim.effect, claim.effect)
    low, high = _padded([*claim.differences, *interval, 0.0, claim.by])
    height, middle, axis = 74, 26, 46
    x = _Scale(low, high, 24, WIDE - 24)
    parts = [_axis(x, axis, low, high)]
    parts.append(_line((x(0), 6), (x(0), axis), "zero", "no effect"))
    if claim.by != 0:
        parts.append(_line((x(claim.by), 6), (x(claim.by), axis), "margin", f"margin {claim.by:g}"))
    for seed, value in enumerate(claim.differences):
        parts.append(_dot(x(value), middle - 12, 3.2, "c0 faint", f"seed {seed}: {signed(value)}"))
    words = f"95% interval {signed(interval[0])} to {signed(interval[1])}"
    if claim.interval:
        parts.append(_line((x(interval[0]), middle), (x(interval[1]), middle), "interval", words))
    parts.append(_dot(x(claim.effect), middle, 5.5, "c0", f"mean effect {signed(claim.effect)}"))
    return _svg(WIDE, height, parts, f"Effect {signed(claim.effect)}, {words}")


def strip_plot(figures: Mapping[str, Sequence[float | None]], colours: Mapping[str, int]) -> str:
    """One row per arm: a dot for each seed and a bar at their mean."""
    values = [value for row in figures.values() for value in row if value is not None]
    if not values:
        return ""
    low, high = _padded(values)
    left = min(180, 8 + 7 * max(len(label) for label in figures))
    x = _Scale(low, high, left + 10, NARROW - 20)
    axis = 10 + 26 * len(figures)
    parts = [_axis(x, axis, low, high)]
    for place, (label, row) in enumerate(figures.items()):
        y = 21 + 26 * place
        known = [value for value in row if value is not None]
        parts.append(_text(left, y + 4, _cut(label, 24), "end"))
        parts.append(_line((left + 10, y), (NARROW - 20, y), "grid"))
        for seed, value in enumerate(row):
            if value is not None:
                hint = f"{label}, seed {seed}: {number(value)}"
                parts.append(_dot(x(value), y, 4, f"c{colours[label] % COLOURS} faint", hint))
        if known:
            mean = math.fsum(known) / len(known)
            colour = f"c{colours[label] % COLOURS} mean"
            parts.append(_line((x(mean), y - 9), (x(mean), y + 9), colour, f"{label}: mean {number(mean)}"))
    return _svg(NARROW, axis + 28, parts, "; ".join(f"{label} {_listed(row)}" for label, row in figures.items()))


def curve_plot(curves: Sequence[Curve], points: int = 300) -> str:
    """Figure against step: every seed thin, the mean of the seeds thick.

    points: most points of a line; a longer one is drawn as means of neighbours.
    """
    seeds = [line for curve in curves for line in curve.seeds if line]
    if not seeds:
        return ""
    thinned = [
        (curve, [thin(line, points if len(curve.seeds) == 1 else points // 2) for line in curve.seeds if line])
        for curve in curves
    ]
    shown = [point for _, lines in thinned for line in lines for point in line]
    low, high = _padded([value for _, value in shown], share=0.04)
    first, last = min(step for step, _ in shown), max(step for step, _ in shown)
    if first == last:
        first, last = first - 1, last + 1
    bottom, left = 212, 44
    x, y = _Scale(first, last, left, NARROW - 14), _Scale(low, high, bottom, 12)
    parts = [_axis(x, bottom, first, last)]
    for tick in ticks(low, high):
        parts.append(_line((left, y(tick)), (NARROW - 14, y(tick)), "grid"))
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:g}", "end"))
    for curve, lines in thinned:
        colour = f"c{curve.colour % COLOURS}"
        if len(lines) > 1:
            parts += [_path(line, x, y, f"{colour} thin") for line in lines]
        parts.append(_path(thin(mean_curve(lines), points), x, y, f"{colour} thick", curve.label))
    return _svg(NARROW, bottom + 28, parts, f"Curves of {', '.join(curve.label for curve in curves)}")


def thin(line: Points, most: int) -> Points:
    """At most so many points: each the mean of neighbours, the last one kept as it is."""
    if len(line) <= most:
        return line
    body, count = line[:-1], most - 1
    means = []
    for at in range(count):
        part = body[at * len(body) // count : (at + 1) * len(body) // count]
        means.append((math.fsum(s for s, _ in part) / len(part), math.fsum(v for _, v in part) / len(part)))
    return [*means, line[-1]]


def mean_curve(lines: Sequence[Points]) -> Points:
    """Mean over the seeds at the steps that all of them have; the first seed's line where they share none."""
    if len(lines) == 1:
        return lines[0]
    by_step = [dict(line) for line in lines]
    shared = [step for step, _ in lines[0] if all(step in one for one in by_step)]
    return [(step, math.fsum(one[step] for one in by_step) / len(lines)) for step in shared] or lines[0]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between two ends."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * one for one in (1, 2, 5, 10) if power * one >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * at, 12) + 0.0 for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = abs(low) * 0.1 or 1.0
        return low - half, high + half
    return low - share * (high - low), high + share * (high - low)


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._per, self._start = low, (end - start) / (high - low), start

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._per


def _svg(width: int, height: int, parts: Sequence[str], label: str) -> str:
    shown = "".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{shown}</svg>'


def _axis(x: _Scale, y: float, low: float, high: float) -> str:
    parts = [_line((x(low), y), (x(high), y), "soft")]
    for tick in ticks(low, high, 5):
        parts.append(_line((x(tick), y), (x(tick), y + 4), "soft"))
        parts.append(_text(x(tick), y + 18, f"{tick:g}", "middle"))
    return "".join(parts)


def _line(start: tuple[float, float], end: tuple[float, float], name: str, hint: str = "") -> str:
    title = f"<title>{escape(hint)}</title>" if hint else ""
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{name}">{title}</line>'


def _dot(x: float, y: float, radius: float, name: str, hint: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{name}"><title>{escape(hint)}</title></circle>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(line: Points, x: _Scale, y: _Scale, name: str, hint: str = "") -> str:
    if len(line) == 1:
        return _dot(x(line[0][0]), y(line[0][1]), 3, name, hint or number(line[0][1]))
    places = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in line)
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<path d="M{places}" class="{name}">{title}</path>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _listed(row: Sequence[float | None]) -> str:
    return ", ".join("none" if value is None else number(value) for value in row)
