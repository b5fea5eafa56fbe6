"""What a stage found, in a form that the report puts together.

A stage writes ``findings.json`` beside its files: verdicts, sections of words, tables and figures as in
`report.results`, and the numbers that `sbi-physics run --json` prints.  Figures lie in ``figures/`` of its folder.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict

from sbi_physics.core.errors import StoreError
from sbi_physics.report.html import Kind
from sbi_physics.report.results import FigureItem, ResultSection, TableItem, TextItem, store_figure
from sbi_physics.store.atomic import atomic_path

__all__ = ["FINDINGS_FILE", "Findings", "SectionWriter", "StageFindings", "read_findings", "without_seconds"]

FINDINGS_FILE = "findings.json"


class StageFindings(BaseModel):
    """What a stage found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdicts: list[tuple[Kind, str]] = []
    sections: list[ResultSection] = []
    numbers: dict[str, Any] = {}


class SectionWriter:
    """A section in the making."""

    def __init__(self, title: str, folder: Path, stage: str) -> None:
        self.title, self.items = title, []  # type: str, list[TextItem | TableItem | FigureItem]
        self._folder, self._stage = folder, stage

    def text(self, text: str) -> None:
        """Add paragraphs."""
        self.items.append(TextItem(text=text))

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "", units: Any = None
    ) -> None:
        """Add a table; see `report.html.Section.table`."""
        cells = [[_cell(value) for value in row] for row in rows]
        self.items.append(TableItem(columns=list(columns), rows=cells, caption=caption, units=units))

    def figure(self, figure: Figure, name: str, *, alt: str, caption: str = "") -> None:
        """Write a figure into the folder of the stage, and add it."""
        path = store_figure(figure, self._folder, name)
        self.items.append(FigureItem(file=f"{self._stage}/{path}", alt=alt, caption=caption))


class Findings:
    """What a stage finds, in the making.

    Args:
        folder: where its files go.
        stage: its name.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self._folder, self._stage = folder, stage
        self._verdicts: list[tuple[Kind, str]] = []
        self._sections: list[SectionWriter] = []
        self._numbers: dict[str, Any] = {}

    def verdict(self, kind: Kind, text: str) -> None:
        """Add a verdict."""
        self._verdicts.append((kind, text))

    def section(self, title: str) -> SectionWriter:
        """Begin a section; sections of one title in later stages go on with it."""
        self._sections.append(SectionWriter(title, self._folder, self._stage))
        return self._sections[-1]

    def numbers(self, **values: Any) -> None:
        """Add numbers for programs."""
        self._numbers.update(values)

    def write(self) -> None:
        """Write them, whole or not at all."""
        sections = [ResultSection(title=one.title, items=one.items) for one in self._sections]
        found = StageFindings(verdicts=self._verdicts, sections=sections, numbers=_plain(self._numbers))
        with atomic_path(self._folder / FINDINGS_FILE) as temporary:
            temporary.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_findings(folder: Path) -> StageFindings:
    """What the stage in a folder found; nothing where it wrote nothing.

    Raises:
        StoreError: its file is damaged.
    """
    path = folder / FINDINGS_FILE
    if not path.exists():
        return StageFindings()
    try:
        return StageFindings.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: damaged: {' '.join(str(error).split())}") from error


def without_seconds(value: Any) -> Any:
    """A record of what was done without the times it took: the same work then gives the same bytes."""
    if isinstance(value, Mapping):
        return {key: without_seconds(inner) for key, inner in value.items() if key != "seconds"}
    return [without_seconds(inner) for inner in value] if isinstance(value, list) else value


def _cell(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _plain(values: Any) -> Any:
    """Values in types that JSON knows."""
    return json.loads(json.dumps(values, default=lambda one: one.tolist() if hasattr(one, "tolist") else str(one)))
