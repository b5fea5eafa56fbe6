"""Columns of numbers in text: between commas, semicolons, tabs or white space, whatever the lines have.

Names are in the first line; else, where that has numbers only, in the comment above it (as `numpy.savetxt` writes
them), or those that the user gives.  Lines that begin with ``#`` are comments.
"""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sbi_physics.core.errors import StoreError

__all__ = ["read_text"]

_DELIMITERS = (";", ",", "\t")
_SHOWN = 80


@dataclass(frozen=True)
class _Line:
    number: int
    text: str


def read_text(path: Path, choose: Callable[[Sequence[str]], list[str]], names: Sequence[str] | None) -> dict[str, Any]:
    """Read the columns that are chosen.

    Args:
        path: the file.
        choose: chooses among the names that there are.
        names: of the columns, where the file has none.

    Returns:
        float64 ``(n,)`` by name.

    Raises:
        StoreError: there are no names, or a cell that was asked for is missing or no number; the message says where.
    """
    lines, comment = _lines(path)
    if not lines:
        raise StoreError(f"{path}: there is no line of names in it")
    delimiter = _delimiter(lines)
    header, named = _header(path, lines[0].text, comment, names, delimiter)
    wanted, rows = choose(header), lines[1:] if named else lines
    if not rows:
        return {name: np.empty(0) for name in wanted}
    cells = [header.index(name) for name in wanted]
    if fault := _uneven(path, rows, len(header), delimiter):
        raise StoreError(fault)
    try:
        values = np.loadtxt([row.text for row in rows], delimiter=delimiter, quotechar='"', usecols=cells, ndmin=2)
    except ValueError as error:
        raise StoreError(_fault(path, rows, header, wanted, delimiter) or f"{path}: cannot be read: {error}") from error
    return dict(zip(wanted, values.T, strict=True))


def _lines(path: Path) -> tuple[list[_Line], str]:
    """Lines that are no comments, and the last comment above the first of them."""
    lines: list[_Line] = []
    comment = ""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            if not text.lstrip().startswith("#"):
                lines.append(_Line(number, text))
            elif not lines:
                comment = text.strip().lstrip("#")
    return lines, comment


def _delimiter(lines: Sequence[_Line]) -> str | None:
    """What parts the cells; None for white space."""
    for one in _DELIMITERS:
        if one in lines[0].text:
            return one
    words = _cells(lines[-1].text, None)
    return None if len(words) > 1 and all(map(_is_number, words)) else ","


def _header(
    path: Path, line: str, comment: str, names: Sequence[str] | None, delimiter: str | None
) -> tuple[list[str], bool]:
    """The names of the columns, and whether they are those of the first line."""
    first = _cells(line, delimiter)
    if all(map(_is_number, first)):
        header = list(names) if names is not None else _cells(comment, delimiter)
        if len(header) == len(first) and len(set(header)) == len(header) and not any(map(_is_number, header)):
            return header, False
    elif len(set(first)) == len(first) and not any(map(_is_number, first)):
        return first, True
    raise StoreError(
        f"{path}: expected a line of distinct names first, got {line.strip()[:_SHOWN]!r}; "
        "or name the columns by `names`, one for each"
    )


def _uneven(path: Path, rows: Sequence[_Line], names: int, delimiter: str | None) -> str:
    """The first row with more cells than names, in words: which cell belongs to which name cannot be said."""
    for row in rows:
        # Counted without the reader of quotes first, which takes its time: quotes can only make cells fewer.
        if (len(row.text.split(delimiter)) if delimiter else len(row.text.split())) <= names:
            continue
        cells = _cells(row.text, delimiter)
        if len(cells) > names + (not cells[-1]):
            return f"{path}, line {row.number}: expected {names} cells, one for each name, got {len(cells)}"
    return ""


def _fault(
    path: Path, rows: Sequence[_Line], header: Sequence[str], wanted: Sequence[str], delimiter: str | None
) -> str:
    """The first cell that is no number, in words; nothing where all are."""
    for row in rows:
        cells = _cells(row.text, delimiter)
        for name in wanted:
            i = header.index(name)
            where = f"{path}, line {row.number}: column {name!r}"
            if i >= len(cells):
                return f"{where}: expected {len(header)} cells, one for each name, got {len(cells)}"
            if not _is_number(cells[i]):
                got = repr(cells[i][:_SHOWN]) if cells[i] else "an empty cell"
                hint = "; decimals are written with a point" if _is_number(cells[i].replace(",", ".")) else ""
                return f"{where}: expected a number, got {got}{hint}"
    return ""


def _cells(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None and '"' in line:
        return [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', line)]
    if delimiter is None:
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
