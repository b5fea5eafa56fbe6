"""The progress bar of a run: on standard error, and only where that is a terminal."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["RunProgress"]


class RunProgress:
    """Rows done and rows failed, as a bar.

    Args:
        title: what is simulated.
        total: rows in all.
        show: whether there shall be a bar; there is none where standard error is no terminal.
    """

    def __init__(self, title: str, total: int, *, show: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (show and sys.stderr is not None and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task(title, total=total, failures="")
        self._failures = 0

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, rows: int, failures: int = 0) -> None:
        """Count rows that are done, and how many of them failed."""
        self._failures += failures
        text = f"{self._failures} failed" if self._failures else ""
        self._bar.update(self._task, advance=rows, failures=text)
