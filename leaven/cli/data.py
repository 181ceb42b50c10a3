"""`leaven data`: which sources there are, and whether one can be used."""

from __future__ import annotations

import difflib
from dataclasses import asdict

import typer

from leaven.cli.listing import AsJson
from leaven.cli.output import print_json, print_table
from leaven.errors import ConfigError

# A refusal already quotes this many bad rows.
IN_MESSAGE = 5


def list_data(as_json: bool = AsJson) -> None:
    """Show every source that a name or scheme can open."""
    from leaven.data.sources import list_sources

    found = list_sources()
    if as_json:
        print_json([asdict(one) for one in found])
        return
    rows = [
        (one.name, one.tier, ", ".join(one.kinds), "yes" if one.available else "no", f"{one.what} ({one.where})")
        for one in found
    ]
    print_table(("source", "tier", "kinds", "usable", "what"), rows, wrap=True)


def check(
    spec: str = typer.Argument(help="A source, such as stdlib-code, code:DIR or jsonl:FILE."),
    kind: str | None = typer.Option(None, help="What the rows are to be; by default what their fields say."),
    max_bad_share: float = typer.Option(0.05, help="Share of bad rows, 0 to 1, over which the source is refused."),
    as_json: bool = AsJson,
) -> None:
    """Read a source from end to end and list bad rows with file, line and reason."""
    from leaven.data.examples import KINDS
    from leaven.data.sources import check_source

    if kind is not None and kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no kind {kind!r} of examples: there are {', '.join(KINDS)}.{hint}")
    ledger = check_source(spec, KINDS[kind] if kind is not None else None, max_bad_share=max_bad_share)
    if as_json:
        print_json(ledger.to_json())
    elif ledger.ok or ledger.bad_count > IN_MESSAGE:
        print(ledger.table())
    ledger.check()
