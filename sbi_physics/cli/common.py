"""What all verbs share: the common options, where text goes, and how an error ends the program.

Human text and progress go to standard error, the result to standard output; ``--json`` makes the result one JSON
object, in which a number that is not finite (a Pareto k of a set of weights too small to fit, say) is ``null``.
Exit status: 0 done, 2 wrong use or bad input, 1 a failure while running.
"""

import ctypes
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sbi_physics.posterior.posterior import Posterior

__all__ = [
    "DeviceOption",
    "JsonOption",
    "Output",
    "QuietOption",
    "SeedOption",
    "check_figure",
    "check_hdf5_name",
    "check_model_name",
    "check_writable",
    "foreign_code",
    "kind_of",
    "load_posterior",
    "make_folder",
    "to_json",
]

_OTHER_FORMATS = (
    ".csv", ".txt", ".dat", ".npy", ".npz", ".json", ".fits", ".ecsv", ".parquet", ".root", ".lhe", ".safetensors",
)  # fmt: skip

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
        print(to_json(values) if self.json else text)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> str:
        """Lay out a table of text with aligned columns."""
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        head = "  ".join(cell.ljust(w) for cell, w in zip(header, widths, strict=True)).rstrip()
        return "\n".join([title, head, "-" * len(head), *lines])


def to_json(values: Any, *, indent: int | None = None) -> str:
    """Write values as JSON by the letter of RFC 8259: numbers that are not finite become null."""
    return json.dumps(_finite(values), default=str, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


@contextmanager
def foreign_code() -> Iterator[None]:
    """Send what a simulator prints, compiled libraries and programs included, to standard error.

    Standard output then holds the result alone.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        with suppress(OSError, TypeError, AttributeError):
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def make_folder(path: Path) -> None:
    """Make a folder for results.

    Raises:
        StoreError: it cannot be made.
    """
    from sbi_physics.core.errors import StoreError

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: the folder cannot be made: {error.strerror}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Make a folder for results before the work; one that was made for nothing, as the work failed, goes again.

    Raises:
        StoreError: it cannot be made.
    """
    known = path.exists()
    make_folder(path)
    try:
        yield
    except BaseException:
        if not known and not any(path.iterdir()):
            path.rmdir()
        raise


def check_hdf5_name(path: Path) -> None:
    """Refuse a name that promises another format than HDF5.

    Raises:
        UsageError: it ends as files of another format do.
    """
    from sbi_physics.core.errors import UsageError

    if path.suffix.lower() in _OTHER_FORMATS:
        raise UsageError(f"{path}: HDF5 is written here; expected a name that ends with .h5, got {path.suffix}")


def check_model_name(path: Path) -> None:
    """Refuse a name that promises another format than that of models.

    Raises:
        UsageError: it ends as files of another format do.
    """
    from sbi_physics.core.errors import UsageError

    if path.suffix.lower() in (".h5", ".hdf5", *_OTHER_FORMATS) and path.suffix.lower() != ".safetensors":
        raise UsageError(
            f"{path}: a model is written here; expected a name that ends in .safetensors, got {path.suffix}"
        )
    check_writable(path)


def check_figure(path: Path | None) -> None:
    """Find out before the work that a figure, if one is wanted, has a name and a place.

    Raises:
        UsageError, StoreError: it has not.
    """
    if path is not None:
        from sbi_physics.report.figures import check_ending

        check_ending(path)
        check_writable(path)


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, that a file has nowhere to go.

    Raises:
        StoreError: the folder of the file is missing, or the file is a folder.
    """
    from sbi_physics.core.errors import StoreError

    if not path.parent.is_dir():
        raise StoreError(f"{path}: cannot be written, the folder {path.parent} does not exist")
    if path.is_dir():
        raise StoreError(f"{path}: cannot be written, it is a folder")


def kind_of(loaded: Any) -> str:
    """What was in a file, in words."""
    import sbi_physics as sp

    if isinstance(loaded, sp.Simulations):
        return "simulations"
    return "a posterior" if isinstance(loaded, sp.Posterior) else "a surrogate"


def load_posterior(path: Path, device: str) -> "Posterior":
    """The posterior of a file.

    Raises:
        UsageError: there is something else in it.
    """
    import sbi_physics as sp

    loaded = sp.load(path, device=device)
    if not isinstance(loaded, sp.Posterior):
        raise sp.UsageError(f"{path}: expected a posterior, got {kind_of(loaded)}")
    return loaded
