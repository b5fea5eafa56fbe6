"""`sbi-physics simulate`."""

from pathlib import Path
from typing import Annotated

import typer

from sbi_physics.cli.common import JsonOption, Output, QuietOption, SeedOption, check_hdf5_name, foreign_code

__all__ = ["simulate"]


def simulate(
    simulator: Annotated[
        str,
        typer.Argument(
            help="A name from `sbi-physics doctor`, path/file.py:Class, path/program.toml or surrogate.safetensors."
        ),
    ],
    n: Annotated[int, typer.Option("-n", help="Number of simulations.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="HDF5 file to write.")],
    workers: Annotated[int | None, typer.Option(help="Processes; all cores for a long run by default.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, as tcp://host:8786.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that one call of the simulator may take.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Simulations in one block.")] = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Simulate from the prior into a file.  Run the same command again to go on after an interruption.

    A simulation that fails is recorded with its error; the exit status is 1 where none succeeds.
    """
    import sbi_physics as sp

    check_hdf5_name(out)
    output, there = Output(json, quiet), out.exists()
    with foreign_code():
        result = sp.simulate(
            simulator,
            n,
            out=out,
            seed=seed,
            workers=workers,
            cluster=cluster,
            timeout=timeout,
            block_size=block_size,
            progress=output.progress,
        )
    counts = result.counts()
    text = ", ".join(f"{count} {status}" for status, count in counts.items())
    words = f"{out}: {len(result)} simulations ({text}){', all there before' if there else ''}"
    if result.errors:
        row, reason = next(iter(result.errors.items()))
        words += f"; the first that failed is row {row}: {reason}"
    output.result(words, path=str(out), simulations=len(result), status=counts)
    if not counts["ok"]:
        raise typer.Exit(1)
