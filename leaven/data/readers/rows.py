"""What every row reader yields."""

from __future__ import annotations

from typing import NamedTuple

from leaven.data.schema import Fields


class Row(NamedTuple):
    """A row and where it stands; `line` is 1-based (row number in formats without lines)."""

    file: str
    line: int
    fields: Fields
