"""`sbi-physics data list|fetch`."""

from typing import TYPE_CHECKING, Annotated

import typer

from sbi_physics.cli.common import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from sbi_physics.store.datasets import Dataset

__all__ = ["app"]

app = typer.Typer(help="Public data sets.", no_args_is_help=True)


@app.command("list")
def list_data(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the data sets, where each is, its licence and what to cite."""
    from sbi_physics.store.datasets import available, location

    output = Output(json, quiet)
    datasets = available()
    lines = [
        f"{d.name} ({location(d)}; {_size(d)})\n  {d.description}\n  licence: {d.licence}\n  cite: {d.citation}"
        for d in datasets
    ]
    rows = [
        {
            "name": d.name,
            "location": location(d),
            "description": d.description,
            "licence": d.licence,
            "citation": d.citation,
            "files": [f.path for f in d.files],
            "bytes": d.size,
        }
        for d in datasets
    ]
    output.result("\n".join(lines), datasets=rows)


@app.command("fetch")
def fetch_data(
    name: Annotated[str, typer.Argument(help="A name of `data list`.")],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make the files of a data set available here, and print their paths."""
    from sbi_physics.store.datasets import fetch

    output = Output(json, quiet)
    paths = fetch(name, progress=output.progress)
    output.result("\n".join(map(str, paths.values())), name=name, files={k: str(v) for k, v in paths.items()})


def _size(dataset: "Dataset") -> str:
    count = len(dataset.files)
    size = f"{dataset.size / 1e6:.1f} MB" if dataset.size >= 1e6 else f"{dataset.size / 1e3:.1f} kB"
    return f"{count} file{'s' if count > 1 else ''}, {size}"
