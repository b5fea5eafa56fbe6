"""What all verbs share: the common options, where text goes, and how an error ends the program.

Human text and progress go to standard error, the result to standard output; ``--json`` makes the result one JSON
object.  Exit status: 0 done, 2 wrong use or bad input, 1 a failure while running.
"""

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer

__all__ = ["DeviceOption", "JsonOption", "Output", "QuietOption", "SeedOption"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Integer that decides every random number.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print nothing but the result.")]


@dataclass(frozen=True)
class Output:
    """Where a verb writes.

    Attributes:
        json: whether the result is one JSON object.
        quiet: whether human text is left out.
    """

    json: bool
    quiet: bool

    @property
    def progress(self) -> bool:
        """Whether progress bars are wanted."""
        return not self.quiet

    def say(self, text: str) -> None:
        """Tell a human, on standard error."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def result(self, text: str, **values: Any) -> None:
        """Print the result: `text` for a human, or the values as JSON."""
        print(json.dumps(values, default=str) if self.json else text)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> str:
        """Lay out a table of text with aligned columns."""
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        head = "  ".join(cell.ljust(w) for cell, w in zip(header, widths, strict=True)).rstrip()
        return "\n".join([title, head, "-" * len(head), *lines])
