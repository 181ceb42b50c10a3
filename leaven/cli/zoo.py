"""`leaven zoo list` and `leaven zoo make`: the models that leaven made itself."""

from __future__ import annotations

from pathlib import Path

import typer

from leaven.cli.listing import AsJson
from leaven.cli.output import print_json, print_table


def list_zoo(as_json: bool = AsJson) -> None:
    """Show the models that come with leaven."""
    from leaven.models.zoo import zoo_card, zoo_names

    cards = {name: zoo_card(name) for name in zoo_names()}
    if as_json:
        print_json([{"name": name, **card} for name, card in cards.items()])
    elif cards:
        rows = [
            (f"zoo:{name}", f"{card['parameters'] / 1e6:.1f}M", f"{card['size_bytes'] / 1e6:.1f} MB", card["what"])
            for name, card in cards.items()
        ]
        print_table(("model", "parameters", "size", "what it is"), rows, wrap=True)
    else:
        print("the zoo is empty; `leaven zoo make NAME` makes a model")


def make(
    name: str = typer.Argument(help="Which model, such as code-t5."),
    out: Path | None = typer.Option(None, help="Where to put it; by default into the package."),  # noqa: B008
    work: Path | None = typer.Option(None, help="Folder of the run, gone on in by a later call."),  # noqa: B008
) -> None:
    """Make a model of the zoo again, by the recipe that made the one that is shipped."""
    from leaven.systems.zoo_recipes import make as make_model

    print(f"{make_model(name, work=work or Path('runs') / 'zoo' / name, out=out)} written")
