"""The program `sbi-physics`: its verbs, and the one place where an error becomes an exit status."""

import sys
from typing import Any

import typer

from sbi_physics import __version__
from sbi_physics.cli import (
    anomaly,
    data,
    demo,
    doctor,
    integrate,
    posterior,
    report,
    run,
    simulate,
    store,
    surrogate,
)

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
app.add_typer(surrogate.app, name="surrogate")
app.add_typer(anomaly.app, name="anomaly")
app.command("integrate")(integrate.integrate)
app.add_typer(store.app, name="store")
app.command("run")(run.run)
app.command("report")(report.report)
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
        status = app(arguments, standalone_mode=False, prog_name="sbi-physics")
    except Exception as error:
        status = _exit_status(error)
    except KeyboardInterrupt:
        status = _fail("interrupted", 130)
    sys.exit(status if isinstance(status, int) else 0)


def _exit_status(error: Exception) -> int:
    """Print an expected error as one line and return its exit status; raise an unexpected one."""
    # Deferred, as all heavy imports of the command line: the errors are known where they were raised.
    from sbi_physics.core.errors import (
        NonFiniteError,
        SBIPhysicsError,
        ShapeError,
        StoreError,
        SupportError,
        UsageError,
    )

    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        return _fail("interrupted", 130)
    # What the parser found wrong.  Newer versions of typer carry a click of their own, so it has no one class.
    if callable(getattr(error, "format_message", None)):
        return _usage(error)
    if isinstance(error, SBIPhysicsError):
        wrong_input = isinstance(error, UsageError | ShapeError | NonFiniteError | SupportError | StoreError)
        return _fail(str(error), 2 if wrong_input else 1)
    if isinstance(error, OSError | MemoryError):
        return _fail(str(error) or type(error).__name__, 1)
    raise error


def _usage(error: Any) -> int:
    text = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(text, end="")
        return 2
    text = text.replace("Value error, ", "")
    cause = getattr(error.__cause__, "errors", None)
    if callable(cause) and "Input should be " in text:
        # What typer has checked by pydantic: its message leaves out the value.
        head, _, expected = text.partition("Input should be ")
        text = f"{head}expected {expected.partition(',')[0]}, got {cause()[0]['input']!r}"
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "sbi-physics"
    return _fail(f"{text.rstrip('. ')}. See '{command} --help'.", 2)


def _fail(text: str, status: int) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return status
