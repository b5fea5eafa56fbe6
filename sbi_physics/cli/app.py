"""The program `sbi-physics`: its verbs, and the one place where an error becomes an exit status."""

import sys

import typer

from sbi_physics import __version__
from sbi_physics.cli import data, demo, doctor, posterior, simulate

__all__ = ["app", "main"]

app = typer.Typer(
    name="sbi-physics",
    help="Simulation-based inference for physicists.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("simulate")(simulate.simulate)
app.add_typer(posterior.app, name="posterior")
app.add_typer(data.app, name="data")
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sbi-physics {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    """Simulation-based inference for physicists."""


def main(arguments: list[str] | None = None) -> None:
    """Run the program; errors that the package raises on purpose become one line and an exit status."""
    try:
        status = app(arguments, standalone_mode=False)
    except Exception as error:
        status = _exit_status(error)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status if isinstance(status, int) else 0)


def _exit_status(error: Exception) -> int:
    """Print an expected error as one line and return its exit status; raise an unexpected one."""
    # Deferred, as all heavy imports of the command line: the errors are known where they were raised.
    from click.exceptions import ClickException, Exit

    from sbi_physics.core.errors import (
        NonFiniteError,
        SBIPhysicsError,
        ShapeError,
        StoreError,
        SupportError,
        UsageError,
    )

    if isinstance(error, Exit):
        return error.exit_code
    if isinstance(error, ClickException):
        error.show(file=sys.stderr)
        return 2
    if isinstance(error, SBIPhysicsError):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        wrong_input = isinstance(error, UsageError | ShapeError | NonFiniteError | SupportError | StoreError)
        return 2 if wrong_input else 1
    raise error
