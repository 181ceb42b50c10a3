"""metrics.jsonl: one JSON object a line; what was logged after the checkpoint a run resumes from is taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leaven.training.checkpoint import replaced

Record = dict[str, Any]


class MetricsLog:
    """Records in memory and, where a path is given, appended to a file.

    Args:
        path: the file, or None for memory only. Its folder is made if missing.
        write: False on the processes that must not write.
    """

    def __init__(self, path: Path | None, write: bool = True) -> None:
        self.records: list[Record] = []
        self._path = path if write else None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: Record) -> None:
        """Add a record."""
        self.records.append(record)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")

    def rewind(self, count: int) -> None:
        """Keep the first `count` records, in memory and in the file."""
        del self.records[count:]
        self._rewrite()

    def recover(self, path: Path, count: int, step: int) -> None:
        """Read back the first `count` records of an earlier life of the run, all of steps up to `step`.

        A last line that a crash cut short is dropped with the others; so is anything after a line that is not JSON.
        """
        self.records = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[:count]:
                try:
                    record = json.loads(line)
                except ValueError:
                    break
                if isinstance(record, dict) and record.get("step", 0) <= step:
                    self.records.append(record)
        self._rewrite()

    def _rewrite(self) -> None:
        if self._path is None:
            return
        with replaced(self._path) as draft:
            draft.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")
