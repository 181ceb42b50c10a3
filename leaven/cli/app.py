"""Which commands there are; one line each."""

from __future__ import annotations

import typer

from leaven.cli import bench, data, evidence, listing, systems, zoo
from leaven.cli.contract import Group

app = typer.Typer(
    name="leaven",
    cls=Group,
    help="Find, run, test, compare and reuse 106 systems about unified and pre-trained models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: importing rich for it would take as long as the rest of a short command.
    rich_markup_mode=None,
)
data_app = typer.Typer(cls=Group, help="Where examples come from.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
zoo_app = typer.Typer(cls=Group, help="Models that leaven made itself.", rich_markup_mode=None)
app.add_typer(zoo_app, name="zoo")

app.command("list")(listing.list_systems)
app.command("search")(listing.search)
app.command("info")(listing.info)
app.command("run")(systems.run)
app.command("apply")(systems.apply)
app.command("claim")(evidence.claim)
app.command("claims")(evidence.claims)
app.command("compare")(evidence.compare)
app.command("report")(evidence.report)
app.command("bench")(bench.bench)
zoo_app.command("list")(zoo.list_zoo)
zoo_app.command("make")(zoo.make)
data_app.command("list")(data.list_data)
data_app.command("check")(data.check)


@app.callback()
def leaven(
    version: bool = typer.Option(False, "--version", help="Show the version and exit.", callback=listing.show_version),
) -> None:
    """Find, run, test, compare and reuse 106 systems about unified and pre-trained models."""
