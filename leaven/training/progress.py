"""The progress bar of the loop."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, ClassVar


class ProgressBar:
    """Share of the budget, time left, and the last figures; silent where standard error is no terminal.

    Args:
        label: what is being trained.
        show: False shows nothing in any case.

    `ProgressBar.hidden = True` hides all bars of a process.
    """

    hidden: ClassVar[bool] = False

    def __init__(self, label: str, show: bool) -> None:
        self._bar: Any = None
        if show and not self.hidden and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(label, total=1.0, figures="")

    def update(self, fraction: float, figures: str) -> None:
        """Show the share of the budget that is used, in [0, 1], and a line of figures."""
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction, figures=figures)

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
