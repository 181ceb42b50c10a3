"""The parts of a report's page, from evidence and from outcomes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from leaven.catalog import card
from leaven.errors import CatalogError
from leaven.evidence.evidence_file import ArmEvidence, ClaimEvidence, Evidence, Spread
from leaven.evidence.figures import Curve, Points, curve_plot, effect_figure, strip_plot
from leaven.evidence.page import ClaimCard, Plot, Table
from leaven.evidence.tables import effect_text, margin_text, number, ours, shown_time, signed, spread_cells, words

# What a training logs beside its losses.
_NO_LOSS = {"step", "loss", "lr", "grad_norm", "tokens", "examples", "seconds", "flops"}
_EVALUATED = ("valid/", "test/")
_COLOURS = ("#2563b0", "#c2571a", "#1a7f4b", "#8b44ac", "#a88300", "#b8336a", "#3a8ea5", "#5f6b76")


def system_title(slug: str) -> str:
    """The system's title in the catalogue, else its slug."""
    try:
        return card(slug).title
    except CatalogError:
        return slug


def claim_card(evidence: Evidence, claim: ClaimEvidence) -> ClaimCard:
    """A claim with its figures and its effect drawn."""
    from markupsafe import Markup

    interval = " to ".join(map(signed, claim.interval)) if claim.interval else "none for one seed"
    facts = [
        ("arms", f"{claim.better} against {claim.than}"),
        (words(claim.metric), ours(evidence, claim) + (" (smaller is better)" if claim.smaller_is_better else "")),
        ("effect", effect_text(claim).removeprefix("effect ")),
        ("95% interval", interval),
        ("margin", margin_text(claim).removeprefix("margin ")),
        *([("paper", claim.paper)] if claim.paper else []),
    ]
    return ClaimCard(claim.says, claim.verdict, facts, Markup(effect_figure(claim)))


def arms_summary(arms: Mapping[str, ArmEvidence]) -> Table:
    """Mean ± deviation by arm and metric."""
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm.metrics))
    columns = [
        list(arms),
        *(spread_cells([arm.metrics.get(name) for arm in arms.values()]) for name in names),
        [shown_time(arm.seconds.mean) for arm in arms.values()],
    ]
    rows = [list(row) for row in zip(*columns, strict=True)]
    caption = "Mean ± standard deviation over the seeds, on the test split, which was read once; time of one seed."
    heads = ["arm", *map(words, names), "time"]
    return Table("Arms", heads, rows, caption, set(range(1, len(heads))))


def strips(arms: Mapping[str, ArmEvidence], hues: Mapping[str, int]) -> list[Plot]:
    """A plot of the figures per seed for each metric."""
    from markupsafe import Markup

    names = list(dict.fromkeys(name for arm in arms.values() for name in arm.metrics))
    return [
        Plot(words(name), Markup(figure))
        for name in names
        if (
            figure := strip_plot(
                {label: arm.metrics[name].per_seed for label, arm in arms.items() if name in arm.metrics}, hues
            )
        )
    ]


def curve_plots(stages: Mapping[str, list[Any]], colours: Mapping[str, int]) -> list[Plot]:
    """For each stage a plot of the loss and of each figure evaluated on the way; for a single run also of its parts.

    stages: by stage, (label, records of each seed).
    """
    from markupsafe import Markup

    plots = []
    for stage, arms in stages.items():
        keys = list(dict.fromkeys(key for _, seeds in arms for records in seeds for one in records for key in one))
        for key in ("loss", *(key for key in keys if key.startswith(_EVALUATED))):
            lines = [Curve(label, colours[label], [_points(one, key) for one in seeds]) for label, seeds in arms]
            lines = [one for one in lines if any(one.seeds)]
            if lines:
                legend = [(one.label, one.colour) for one in lines]
                title = f"{stage}: {words(key.removeprefix('test/'))}"
                plots.append(Plot(title, Markup(curve_plot(lines)), legend))
        parts = [key for key in keys if key not in _NO_LOSS and not key.startswith(_EVALUATED)]
        if len(arms) == 1 and len(arms[0][1]) == 1:
            lines = [Curve(words(key), at, [_points(arms[0][1][0], key)]) for at, key in enumerate(parts)]
            lines = [one for one in lines if any(one.seeds)]
            if len(lines) > 1:
                legend = [(one.label, one.colour) for one in lines]
                plots.append(Plot(f"{stage}: parts of the loss", Markup(curve_plot(lines)), legend))
    return plots


def curves_on_test(stages: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The stages with figures of the test split alone, such as the accuracy after each task of a stream."""
    found: dict[str, list[Any]] = {}
    for stage, arms in stages.items():
        kept = [(label, [_of_test(records) for records in seeds]) for label, seeds in arms]
        if any(records for _, seeds in kept for records in seeds):
            found[stage] = kept
    return found


def _of_test(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = [
        {name: value for name, value in one.items() if name == "step" or name.startswith("test/")} for one in records
    ]
    return [one for one in rows if len(one) > 1]


def picture(plot: Plot) -> str:
    """A plot of curves as an SVG file of its own, with title, legend and colours."""
    figure = str(plot.figure)
    _, _, width, height = map(int, re.findall(r"\d+", figure)[:4])
    top = 30 + 18 * len(plot.legend)
    styles = [
        "text { font: 12px system-ui, sans-serif; fill: #626a73; } .ink { fill: #1c2024; }",
        "line.soft { stroke: #626a73; } line.grid { stroke: #e2e4e0; } path { fill: none; }",
        "path.thin { opacity: .28; } path.thick { stroke-width: 2.2; }",
        *(
            f"circle.c{at}, rect.c{at} {{ fill: {one}; }} path.c{at} {{ stroke: {one}; }}"
            for at, one in enumerate(_COLOURS)
        ),
    ]
    rows = [
        f'<rect x="12" y="{30 + 18 * at}" width="16" height="4" class="c{colour % len(_COLOURS)}"/>'
        f'<text x="34" y="{36 + 18 * at}">{escape(label)}</text>'
        for at, (label, colour) in enumerate(plot.legend)
    ]
    inner = figure.replace("<svg ", f'<svg x="0" y="{top}" width="{width}" height="{height}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + height}" width="{width}">'
        f'<style>{" ".join(styles)}</style><rect width="{width}" height="{top + height}" fill="#ffffff"/>'
        f'<text x="12" y="18" class="ink">{escape(plot.title)}</text>{"".join(rows)}{inner}</svg>\n'
    )


def _points(records: Sequence[Mapping[str, Any]], key: str) -> Points:
    """(step, figure) in order; of a step that was done again after a return, the later figure."""
    found: dict[float, float] = {}
    for one in records:
        step, value = one.get("step"), one.get(key)
        if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value):
            found[float(step)] = float(value)
    return sorted(found.items())


def tables_by_seed(arms: Mapping[str, ArmEvidence], seeds: Sequence[int]) -> list[Table]:
    """Figures, budgets, choices and times of every arm under every seed."""
    heads = ["arm", "figure", *(f"seed {seed}" for seed in seeds)]
    figures = set(range(2, len(heads)))
    titles = {
        "metrics": "Test figures",
        "validation": "Validation figures",
        "budget": "Budgets",
    }
    tables = []
    for part, title in titles.items():
        rows = [
            [label, words(name), *_cells(one)]
            for label, arm in arms.items()
            for name, one in getattr(arm, part).items()
        ]
        if rows:
            tables.append(Table(f"{title} by seed", heads, rows, figures=figures))
    chosen = [
        [label, words(name), *(_text(one.get(name)) for one in arm.chosen)]
        for label, arm in arms.items()
        for name in dict.fromkeys(name for one in arm.chosen for name in one)
    ]
    if chosen:
        tables.append(Table("Chosen on the validation split", heads, chosen, figures=figures))
    tables.append(
        Table(
            "Time by seed",
            ["arm", *heads[2:]],
            [[label, *(shown_time(one) for one in arm.seconds.per_seed)] for label, arm in arms.items()],
            figures=set(range(1, len(heads) - 1)),
        )
    )
    return tables


def _cells(one: Spread) -> list[str]:
    return ["-" if value is None else number(value) for value in one.per_seed]


def configuration(shared: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """What all arms share, and what each has of its own."""
    tables = [named_values("Configuration" if not any(arms.values()) else "Configuration of all arms", shared)]
    own = list(dict.fromkeys(name for config in arms.values() for name in config))
    if own:
        rows = [[label, *(_text(config.get(name)) for name in own)] for label, config in arms.items()]
        tables.append(Table("Configuration by arm", ["arm", *own], rows))
    return tables


def named_values(title: str, values: Mapping[str, Any]) -> Table:
    """A table of names and values."""
    return Table(title, ["name", "value"], [[words(name), _text(value)] for name, value in values.items()])


def results(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """The results of a run; columns of numbers are set as such."""
    cells = [[_text(value) for value in row] for row in rows]
    numeric = {
        at
        for at in range(len(columns))
        if rows and all(row[at] is None or isinstance(row[at], int | float) for row in rows)
    }
    return Table("Results", [str(one) for one in columns], cells, figures=numeric)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return number(value) if math.isfinite(value) else str(value)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
