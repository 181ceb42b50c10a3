"""Reader of `csv:FILE`: comma- or tab-separated with a header line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from leaven.data.ledger import Ledger
from leaven.data.readers.rows import Row
from leaven.data.schema import Fields
from leaven.errors import DataError


class _Lines:
    """Decoded lines for the csv module; undecodable ones go to the ledger. `numbers[i]` is the i-th line's number."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.numbers: list[int] = []
        self._path = path
        self._ledger = ledger

    def __iter__(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    self._ledger.bad(str(self._path), number, f"not UTF-8 at byte {error.start} of the line")
                    continue
                self.numbers.append(number)
                yield text


def _delimiter(path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open("rb") as file:
        header = file.readline().decode("utf-8", errors="replace")
    # A header without a comma but with one of these was written with it.
    return next((mark for mark in "\t;" if "," not in header and mark in header), ",")


def read_csv(path: Path, ledger: Ledger) -> Iterator[Row]:
    """Rows as text by column name; wrong width, bad quoting and lines that are not UTF-8 go to the ledger.

    Raises: DataError when the header is missing, or names a column twice or not at all.
    """
    lines = _Lines(path, ledger)
    reader = csv.reader(lines, delimiter=_delimiter(path), strict=True)
    try:
        header = [name.strip() for name in next(reader)]
    except (StopIteration, csv.Error) as error:
        raise DataError(f"{path}: no readable header line; expected column names in the first line") from error
    if len(set(header)) != len(header) or "" in header:
        raise DataError(f"{path}:1: column names must be given and differ, found {', '.join(map(repr, header))}")
    done = reader.line_num
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lost = max(reader.line_num - done, 1)
            reason = f"bad quoting: {error}" + (f"; {lost} lines lost" if lost > 1 else "")
            ledger.bad(str(path), lines.numbers[min(done, len(lines.numbers) - 1)], reason, count=lost)
            done = reader.line_num
            continue
        number = lines.numbers[done]
        done = reader.line_num
        if not values:
            continue
        if len(values) != len(header):
            ledger.bad(str(path), number, f"{len(values)} columns, expected {len(header)} as in the header")
            continue
        yield Row(str(path), number, Fields(dict(zip(header, values, strict=True)), typed=False))
