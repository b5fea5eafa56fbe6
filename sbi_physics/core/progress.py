"""Progress bars: on standard error, only where someone is looking at a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Advance", "progress_bar"]


class Advance(Protocol):
    """Report that work was done: ``advance(steps, note)``."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Add `steps` to the bar and show `note` beside it."""


@contextmanager
def progress_bar(total: int, description: str, *, enabled: bool = True) -> Iterator[Advance]:
    """Show a bar of `total` steps with the time left; yields the function that advances it.

    Args:
        total: the number of steps.
        description: the words in front of the bar.
        enabled: False shows nothing, and so does a standard error that is no terminal.
    """
    if not (enabled and sys.stderr is not None and sys.stderr.isatty()):
        yield lambda steps=1, note="": None
        return
    # Deferred: rich takes a tenth of a second that a quiet run need not pay.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield advance
