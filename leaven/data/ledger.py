"""The account of what was read: how many rows, which were bad and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from leaven.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be used. `line` is 1-based, 0 where the whole file is meant."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


class Ledger:
    """Counts good and bad rows of one source.

    Args:
        source: name used in messages.
        max_bad_share: share of bad rows, in [0, 1], above which `check` raises.
        keep: how many bad rows are kept with their reasons; all are counted.

    Raises: ConfigError for a share outside [0, 1].
    """

    def __init__(self, source: str, max_bad_share: float = 0.05, keep: int = 1000) -> None:
        if not 0.0 <= max_bad_share <= 1.0:
            raise ConfigError(f"max_bad_share is {max_bad_share}, expected a share from 0 to 1 such as 0.05")
        self.source = source
        self.max_bad_share = max_bad_share
        self.good_count = 0
        self.bad_count = 0
        self.bad_rows: list[BadRow] = []
        self._keep = keep

    def good(self, count: int = 1) -> None:
        """Count usable rows."""
        self.good_count += count

    def bad(self, file: str, line: int, reason: str, count: int = 1) -> None:
        """Record an unusable row, or `count` of them lost for one reason."""
        self.bad_count += count
        if len(self.bad_rows) < self._keep:
            self.bad_rows.append(BadRow(file, line, reason))

    @property
    def read_count(self) -> int:
        """Rows read, good and bad."""
        return self.good_count + self.bad_count

    @property
    def bad_share(self) -> float:
        """Bad rows among those read, in [0, 1]."""
        return self.bad_count / self.read_count if self.read_count else 0.0

    @property
    def ok(self) -> bool:
        """Whether `check` would pass."""
        return self.good_count > 0 and self.bad_share <= self.max_bad_share

    def check(self) -> None:
        """Raises: DataError when nothing usable was read or the share of bad rows is over the limit."""
        if self.ok:
            return
        first = "".join(f"\n  {row}" for row in self.bad_rows[:5])
        if self.bad_count > 5:
            first += f"\n  ... and {self.bad_count - 5} more"
        if not self.good_count:
            what = f"none of {self.read_count} rows can be used" if self.read_count else "there are no rows in it"
            raise DataError(f"{self.source}: {what}{':' if first else ''}{first}")
        raise DataError(
            f"{self.source}: {self.bad_count} of {self.read_count} rows are bad ({self.bad_share:.1%}), more than the "
            f"allowed {self.max_bad_share:.1%}; repair them, or raise max_bad_share if they may be left out:{first}"
        )

    def table(self, rows: int = 20) -> str:
        """Plain text: the counts, then up to `rows` bad rows with file, line and reason."""
        head = f"{self.source}: {self.read_count} rows read, {self.good_count} good, {self.bad_count} bad"
        shown = [f"  {row}" for row in self.bad_rows[:rows]]
        if self.bad_count > len(shown):
            shown.append(f"  ... and {self.bad_count - len(shown)} more")
        return "\n".join([head, *shown])

    def to_json(self) -> dict[str, object]:
        """The same as plain data."""
        return {
            "source": self.source,
            "read": self.read_count,
            "good": self.good_count,
            "bad": self.bad_count,
            "bad_share": self.bad_share,
            "max_bad_share": self.max_bad_share,
            "ok": self.ok,
            "bad_rows": [asdict(row) for row in self.bad_rows],
        }
