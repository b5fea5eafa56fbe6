"""`sbi-physics report DIR`: one HTML page of a run directory."""

from pathlib import Path
from typing import Annotated

import typer

from sbi_physics.cli.common import JsonOption, Output, QuietOption

__all__ = ["report"]


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory: results.json and its figures.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The page; DIR/report.html by default.")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make the page of a run: one HTML file with verdicts, tables, figures and provenance.

    The file holds everything, asks nobody for anything, and prints.
    """
    from sbi_physics.cli.common import check_writable
    from sbi_physics.report.results import read_results, report_of

    output = Output(json, quiet)
    path = out or directory / "report.html"
    results = read_results(directory)
    check_writable(path)
    report_of(results, directory).write(path)
    output.say("\n".join(f"{kind}: {text}" for kind, text in results.verdicts))
    output.result(str(path), report=str(path), verdicts=results.verdicts)
