"""The results of a run as files, and the page made of them.

A run directory holds ``results.json`` and, in ``figures/``, the PNG and SVG files that it names::

    {
      "format": "sbi-physics results",
      "version": 1,
      "title": "K2-24",
      "subtitle": "two planets, 32 velocities",
      "verdicts": [["good", "NPE agrees with MCMC: C2ST 0.51 +- 0.01."]],
      "sections": [
        {
          "title": "Posterior",
          "items": [
            {"type": "text", "text": "Words; a blank line parts paragraphs."},
            {"type": "table", "columns": ["parameter", "median"], "units": ["", "day"],
             "rows": [["period", 20.885]], "caption": "Medians."},
            {"type": "figure", "file": "figures/corner.svg", "alt": "Corner plot of ...", "caption": "68 % and 95 %."}
          ]
        }
      ],
      "provenance": {"seed": 0, "versions": {"torch": "2.13.0"}, "analysis": "the TOML text"}
    }

`subtitle`, `units`, `caption`, `verdicts`, `sections` and `provenance` may be left out.  `RunResults` is this layout
as a class: what runs write with it, pages are made from.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.report.embedding import figure_bytes
from sbi_physics.report.html import HTMLReport, Kind
from sbi_physics.store.atomic import atomic_path

__all__ = [
    "RESULTS_FILE",
    "FigureItem",
    "ResultSection",
    "RunResults",
    "TableItem",
    "TextItem",
    "read_results",
    "report_from_directory",
    "report_of",
    "store_figure",
    "write_results",
]

RESULTS_FILE = "results.json"

Cell = bool | int | float | str | None


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextItem(_Part):
    """Words; a blank line parts paragraphs."""

    type: Literal["text"] = "text"
    text: str


class TableItem(_Part):
    """A table: `rows` have one cell for each of `columns`, as have `units` where there are any."""

    type: Literal["table"] = "table"
    columns: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    units: list[str] | None = None


class FigureItem(_Part):
    """A figure: `file` is a PNG or SVG file, relative to the run directory."""

    type: Literal["figure"] = "figure"
    file: str
    alt: str
    caption: str = ""


class ResultSection(_Part):
    """A heading and what stands under it."""

    title: str
    items: list[Annotated[TextItem | TableItem | FigureItem, Field(discriminator="type")]] = []


class RunResults(_Part):
    """All that the page of a run shows, in the order in which it shows it."""

    format: Literal["sbi-physics results"] = "sbi-physics results"
    version: Literal[1] = 1
    title: str = Field(min_length=1)
    subtitle: str = ""
    verdicts: list[tuple[Kind, str]] = []
    sections: list[ResultSection] = []
    provenance: dict[str, Any] = {}


def store_figure(figure: Figure, directory: str | Path, name: str) -> str:
    """Write ``figures/<name>.svg``, or ``.png`` where SVG would be large, and return that path for a `FigureItem`.

    Raises:
        UsageError: `name` is not a plain file name.
        StoreError: the file cannot be written.
    """
    if name in ("", "..") or Path(name).name != name:
        raise UsageError(f"name: expected a file name without a folder, got {name!r}")
    folder = Path(directory) / "figures"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: the folder cannot be made: {error.strerror or error}") from error
    ending, content = figure_bytes(figure)
    with atomic_path(folder / f"{name}.{ending}") as temporary:
        temporary.write_bytes(content)
    return f"figures/{name}.{ending}"


def write_results(results: RunResults, directory: str | Path) -> Path:
    """Write ``results.json`` of a run directory, whole or not at all; numbers that are not finite become null.

    Raises:
        StoreError: it cannot be written.
    """
    path = Path(directory) / RESULTS_FILE
    with atomic_path(path) as temporary:
        temporary.write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path


def read_results(directory: str | Path) -> RunResults:
    """Read ``results.json`` of a run directory.

    Raises:
        StoreError: there is no such file, or its layout is another; the message names the first wrong entry.
    """
    path = Path(directory) / RESULTS_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"{path}: expected the results of a run, but it cannot be read: {reason}") from error
    try:
        return RunResults.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise StoreError(f"{path}: {place}: {first['msg']}") from error


def report_of(results: RunResults, directory: str | Path) -> HTMLReport:
    """The page of results whose figures lie in `directory`.

    Raises:
        StoreError: a figure is missing, damaged or outside the directory, or a table is uneven.
    """
    page = HTMLReport(results.title, results.subtitle)
    for kind, text in results.verdicts:
        page.verdict(kind, text)
    for i, part in enumerate(results.sections):
        section = page.section(part.title)
        for j, item in enumerate(part.items):
            try:
                if isinstance(item, TextItem):
                    section.text(item.text)
                elif isinstance(item, TableItem):
                    section.table(item.columns, item.rows, caption=item.caption, units=item.units)
                else:
                    section.figure(_inside(item.file, Path(directory)), alt=item.alt, caption=item.caption)
            except UsageError as error:
                raise StoreError(f"{Path(directory) / RESULTS_FILE}: sections.{i}.items.{j}: {error}") from error
    page.provenance(results.provenance)
    return page


def report_from_directory(path: str | Path) -> HTMLReport:
    """The page of a run directory (layout: see the module).

    Raises:
        StoreError: ``results.json`` is missing or of another layout, or a figure that it names cannot be shown.
    """
    return report_of(read_results(path), path)


def _inside(file: str, directory: Path) -> Path:
    """The path of a figure, which may not lead out of the run directory."""
    path = (directory / file).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise StoreError(f"{directory / RESULTS_FILE}: expected figures inside the run directory, got {file!r}")
    return path
