"""`leaven list`, `leaven search` and `leaven info`: the catalogue on the terminal."""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from typing import Any

import typer

from leaven.catalog import Card, Status, card, filter_cards, search_cards, status, statuses
from leaven.cli.output import print_json, print_table

AsJson = typer.Option(False, "--json", help="Write JSON instead of a table.")


def _row(one: Card, its: Status) -> dict[str, object]:
    return {
        **one.to_json(),
        "status": str(its),
        "built": its.built,
        "verdicts": [asdict(verdict) for verdict in its.verdicts],
    }


def show_version(wanted: bool) -> None:
    """Print the version and end, when it was asked for."""
    if wanted:
        from leaven import __version__

        print(f"leaven {__version__}")
        raise typer.Exit


def list_systems(
    area: str | None = typer.Option(None, help="Only systems of this area, such as code."),
    stage: str | None = typer.Option(None, help="Only systems of this stage, such as pretrain."),
    modality: str | None = typer.Option(None, help="Only systems that handle this modality, such as image."),
    idea: str | None = typer.Option(None, help="Only systems marked with this idea, such as 'span corruption'."),
    as_json: bool = AsJson,
) -> None:
    """Show the systems, all or by facet."""
    found = filter_cards(area=area, stage=stage, modality=modality, idea=idea)
    states = statuses()
    if as_json:
        print_json([_row(one, states[one.slug]) for one in found])
    elif found:
        rows = [(one.number, one.slug, one.area, one.stage, states[one.slug], one.does) for one in found]
        print_table(("no", "slug", "area", "stage", "status", "what it does"), rows)
    else:
        print("no system has all of these facets")


def search(
    text: str = typer.Argument(help="What the system is to do, in plain words."),
    top: int = typer.Option(5, help="How many systems to show."),
    as_json: bool = AsJson,
) -> None:
    """Find systems by what they do."""
    from leaven.data.cache import cache_dir

    hits = search_cards(text, top, cache=cache_dir())
    if as_json:
        print_json(
            [
                {"rank": rank, "score": round(hit.score, 6), **_row(hit.card, status(hit.card.slug))}
                for rank, hit in enumerate(hits, start=1)
            ]
        )
    elif hits:
        rows = [(hit.card.slug, hit.card.area, status(hit.card.slug), hit.card.does) for hit in hits]
        print_table(("slug", "area", "status", "what it does"), rows, wrap=True)
    else:
        print("no system shares a word with that; try other words, or `leaven list --area`")


def info(
    slug: str = typer.Argument(help="The system's short name."),
    as_json: bool = AsJson,
) -> None:
    """Show all about one system."""
    one = card(slug)
    its = status(one.slug)
    how = _how(one.slug) if its.built else {}
    if as_json:
        print_json({**_row(one, its), **how})
        return
    paper = f"arXiv {one.arxiv}" if one.arxiv else "no preprint"
    rows: list[tuple[str, object]] = [
        ("system", f"{one.slug} (number {one.number})"),
        ("title", one.title),
        ("paper", f"{paper}, {one.year}"),
        ("what it does", one.does),
        ("area, stage", f"{one.area}, {one.stage}"),
        ("modalities", ", ".join(one.modalities)),
        ("ideas", ", ".join(one.ideas)),
        ("status", its),
    ]
    for verdict in its.verdicts:
        if verdict.problem:
            rows.append((f"claim ({verdict.tier})", f"evidence cannot be read: {verdict.problem}"))
            continue
        figures = ""
        if verdict.effect is not None and verdict.bound is not None:
            figures = f" ({verdict.metric} {verdict.effect:+.4g}, 95% bound {verdict.bound:+.4g})"
        rows.append((f"claim ({verdict.tier})", f"{verdict.says}: {verdict.verdict}{figures}"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    if how:
        print(f"\noptions, as in `leaven run {one.slug} seed=1`; arms to compare: {', '.join(how['arms'])}")
        columns = ("option", "type", "default", "bounds", "what it is")
        print_table(columns, [tuple(option.values()) for option in how["options"]], wrap=True)


def _how(slug: str) -> dict[str, list[Any]]:
    """The options and arms of a system that is built."""
    from leaven.cli.overrides import describe_config

    system = import_module("leaven.systems").find_system(slug)
    return {"options": [asdict(option) for option in describe_config(system.Config)], "arms": list(system.arms)}
