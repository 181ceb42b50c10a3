"""Writing results: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

# A table that goes into a file or a pipe keeps its lines whole.
PIPE_WIDTH = 260
SHORT = 20


def print_json(value: object) -> None:
    """Write plain data as JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, wrap: bool = False) -> None:
    """Write a table on stdout. In a narrow terminal the last column is cut, or long columns wrapped with `wrap`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    last = len(columns) - 1
    for place, name in enumerate(columns):
        width = max(len(str(cells[place])) for cells in [columns, *rows])
        if place == last or (wrap and width > SHORT):
            table.add_column(name, overflow="fold")
        else:
            # Without a minimum rich would squeeze these to nothing before it cuts the long ones.
            table.add_column(name, no_wrap=True, min_width=width)
    for row in rows:
        # Text, because a plain string could hold what rich reads as markup.
        cells = [Text(str(cell)) for cell in row]
        if not wrap:
            cells[last].no_wrap, cells[last].overflow = True, "ellipsis"
        table.add_row(*cells)
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    console.print(table)
