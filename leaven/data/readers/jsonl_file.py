"""Reader of `jsonl:FILE`: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from leaven.data.ledger import Ledger
from leaven.data.readers.rows import Row
from leaven.data.schema import Fields


def read_jsonl(path: Path, ledger: Ledger) -> Iterator[Row]:
    """Rows of the file; a line that is not UTF-8, not JSON or not an object goes to the ledger.

    Blank lines are skipped.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            try:
                value = json.loads(text.decode("utf-8"))
            except UnicodeDecodeError as error:
                ledger.bad(str(path), number, f"not UTF-8 at byte {error.start} of the line")
            except json.JSONDecodeError as error:
                ledger.bad(str(path), number, f"broken JSON: {error.msg} at column {error.colno}")
            except (RecursionError, ValueError) as error:
                ledger.bad(str(path), number, f"unusable JSON: {error}")
            else:
                if isinstance(value, dict):
                    yield Row(str(path), number, Fields(value))
                else:
                    ledger.bad(str(path), number, f"expected a JSON object, found {type(value).__name__}")
