"""`sbi-physics store merge|split|inspect|verify`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sbi_physics.cli.common import JsonOption, Output, QuietOption, make_folder

__all__ = ["app"]

app = typer.Typer(help="Files of simulations.", no_args_is_help=True)


@app.command("merge")
def merge_files(
    files: Annotated[list[Path], typer.Argument(help="Files of simulations.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="HDF5 file to write.")],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Join files of simulations to one, in this order.  All pieces of a split file give that file again."""
    from sbi_physics.store.combine import merge

    rows = merge(files, out)
    Output(json, quiet).result(f"{out}: {rows} simulations of {len(files)} files", path=str(out), simulations=rows)


@app.command("split")
def split_file(
    file: Annotated[Path, typer.Argument(help="A file of simulations.")],
    rows: Annotated[int, typer.Option("--rows", help="Simulations in each piece; the last may have fewer.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Cut a file of simulations into pieces."""
    from sbi_physics.store.combine import split

    make_folder(out)
    pieces = split(file, rows, out)
    Output(json, quiet).result("\n".join(map(str, pieces)), files=[str(piece) for piece in pieces])


@app.command("inspect")
def inspect_file(
    file: Annotated[Path, typer.Argument(help="A file of simulations, or what is to become one.")],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what is in a file of simulations, or how far the run is that makes it."""
    from sbi_physics.simulation.parts import parts_folder, progress_of

    output = Output(json, quiet)
    if file.exists() or not parts_folder(file).is_dir():
        _finished(file, output)
        return
    found = progress_of(file)
    status = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    state = "running" if found.running else "interrupted; the same command goes on"
    total = "an unknown number" if found.rows is None else found.rows
    text = f"{file}: {found.done} of {total} simulations ({status}); {state}"
    output.result(
        text,
        path=str(file),
        complete=False,
        running=found.running,
        simulations=found.rows,
        done=found.done,
        status=found.counts,
        simulator=found.identity.get("simulator"),
        seed=found.identity.get("seed"),
    )


def _finished(file: Path, output: Output) -> None:
    from sbi_physics.store.simulations import Simulations

    found = Simulations.open(file)
    header, counts, parameters = found.header, found.counts(), found.parameters
    rows = [
        [name, unit or "-", f"{low:g}", f"{high:g}"]
        for name, unit, (low, high) in zip(parameters.names, parameters.units, parameters.bounds.tolist(), strict=True)
    ]
    shapes: dict[str, Any] = {name: list(shape) for name, shape in header.shapes.items()}
    status = ", ".join(f"{count} {name}" for name, count in counts.items())
    title = (
        f"{file}: {len(found)} simulations ({status})\nsimulator {header.simulator or 'unknown'}, seed {header.seed}, "
        f"theta: {header.theta}\n" + "\n".join(f"output {name}: float32 {tuple(s)}" for name, s in shapes.items())
    )
    output.result(
        output.table(title, ["parameter", "unit", "from", "to"], rows),
        path=str(file),
        complete=True,
        simulations=len(found),
        status=counts,
        simulator=header.simulator,
        seed=header.seed,
        theta=header.theta,
        parameters=parameters.to_dict(),
        outputs=shapes,
        bytes=file.stat().st_size,
    )


@app.command("verify")
def verify_files(
    files: Annotated[list[Path], typer.Argument(help="Files of simulations.")],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read files of simulations through and name every damaged part; the exit status is 1 where there is one."""
    from sbi_physics.core.errors import StoreError
    from sbi_physics.store.combine import verify

    results: dict[str, dict[str, Any]] = {}
    lines = []
    for file in files:
        try:
            found = verify(file)
            results[str(file)] = {"simulations": found.rows, "damaged": list(found.damaged)}
        except StoreError as error:
            results[str(file)] = {"simulations": None, "damaged": [str(error).removeprefix(f"{file}: ")]}
        bad = results[str(file)]["damaged"]
        lines += [f"{file}: {part}" for part in bad] or [
            f"{file}: whole, {results[str(file)]['simulations']} simulations"
        ]
    damaged = sum(bool(result["damaged"]) for result in results.values())
    Output(json, quiet).result("\n".join(lines), whole=not damaged, files=results)
    if damaged:
        raise typer.Exit(1)
