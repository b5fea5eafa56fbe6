"""Observations that a user keeps in a plain file of numbers."""

import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sbi_physics.core.errors import StoreError

__all__ = ["read_array", "read_data", "read_numbers"]


def read_data(path: str | Path) -> Any:
    """Read an observation: an array (see `read_array`), or named ones of an ``.npz`` as a dictionary of arrays.

    Raises:
        StoreError: the file is missing, empty, damaged, or holds no numbers.
    """
    path = Path(path)
    if path.suffix != ".npz" or not path.is_file():
        return read_array(path)
    try:
        # Opened here, as numpy leaves it open where the archive is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise StoreError(f"{path}: expected arrays of numbers in .npz: {' '.join(str(error).split())}") from error


def read_array(path: str | Path) -> np.ndarray[Any, Any]:
    """Read an array of numbers from ``.npy``, or from text between white space, commas or semicolons.

    Raises:
        StoreError: the file is missing, empty, or holds no numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"{path}: no such file")
    if not path.stat().st_size:
        raise StoreError(f"{path}: the file is empty; expected an array of numbers")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        text = path.read_text(encoding="utf-8")
        values = read_numbers(text)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path}: expected an array of numbers in .npy, .csv or .txt: {error}") from error
    if not values.size:
        first = next((line for line in text.splitlines() if line.strip()), "").strip()
        raise StoreError(
            f"{path}: expected an array of numbers, found none; between them are white space, commas or semicolons, "
            f"and a first line that is not all numbers is taken for names: {first[:60]!r}"
        )
    return values[:, 0] if values.shape[1] == 1 else values[0] if len(values) == 1 else values


def read_numbers(text: str) -> np.ndarray[Any, Any]:
    """Numbers in lines ``(lines, k)``, between white space, commas or semicolons; names and comments are skipped.

    Raises:
        ValueError: there is something else, or lines have different lengths.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in lines:
        if {",", ";"} <= set(line) and _numbers(line.replace(",", ".").replace(";", " ").split()):
            raise ValueError(f"decimals are written with a point, got {line.strip()[:60]!r}")
    rows = [words for line in lines if (words := line.replace(",", " ").replace(";", " ").split())]
    if rows and not _numbers(rows[0]):
        rows = rows[1:]
    return np.array([[float(word) for word in row] for row in rows])


def _numbers(words: list[str]) -> bool:
    try:
        [float(word) for word in words]
    except ValueError:
        return False
    return True
