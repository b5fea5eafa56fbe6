"""`sbi-physics run`: a whole analysis from one file."""

from pathlib import Path
from typing import Annotated

import typer

from sbi_physics.cli.common import JsonOption, Output, QuietOption, foreign_code

__all__ = ["run"]


def run(
    analysis: Annotated[Path, typer.Argument(help="The analysis: a TOML file.", metavar="ANALYSIS.toml")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Run directory; as the file says, or NAME-run beside it."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Put a value in place of the file's; repeat.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and why; do nothing.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="The same as --set seed=N.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="The same as --set compute.device=NAME.")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run an analysis from its file to a report: what is missing or changed, and nothing twice.

    Kill it, and run it again: it goes on.
    """
    from sbi_physics.run.run import run_analysis

    output = Output(json, quiet)
    overrides = list(set_ or [])
    overrides += [] if seed is None else [f"seed={seed}"]
    overrides += [] if device is None else [f'compute.device="{device}"']
    with foreign_code():
        summary = run_analysis(
            analysis, out, overrides=overrides, dry_run=dry_run, say=output.say, progress=output.progress
        )
    todo = [step.name for step in summary.todo]
    stages = [
        {"name": step.name, "status": step.status, "reason": step.reason, "seconds": step.seconds}
        for step in summary.steps
    ]
    found = {"path": str(summary.path), "job": summary.job, "stages": stages, "made": [] if dry_run else todo}
    if dry_run:
        text = output.table(
            f"{summary.path}: {len(todo)} of {len(stages)} stages to be made",
            ["stage", "status", "why"],
            [[step.name, step.status, step.reason] for step in summary.steps],
        )
        output.result(text, **found)
        return
    report = summary.path / "report.html"
    lines = [f"{kind}: {words}" for kind, words in summary.verdicts]
    if todo:
        last = f"{report}: {len(todo)} of {len(stages)} stages made ({', '.join(todo)})"
    else:
        last = f"{report}: nothing to do, all {len(stages)} stages are done"
    output.result(
        "\n".join([*lines, last]), **found, report=str(report), verdicts=summary.verdicts, results=summary.numbers
    )
