"""Observations that a user keeps in a plain file of numbers."""

from pathlib import Path
from typing import Any

import numpy as np

from sbi_physics.core.errors import StoreError

__all__ = ["read_array", "read_numbers"]


def read_array(path: str | Path) -> np.ndarray[Any, Any]:
    """Read an array of numbers from ``.npy``, ``.csv`` or ``.txt``: white space or commas, with or without a header.

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
            f"{path}: expected an array of numbers, found none; between them are white space or commas, and a first "
            f"line that is not all numbers is taken for names: {first[:60]!r}"
        )
    return values[:, 0] if values.shape[1] == 1 else values[0] if len(values) == 1 else values


def read_numbers(text: str) -> np.ndarray[Any, Any]:
    """Numbers in lines ``(lines, k)``, between white space or commas; a first line of names and comments are skipped.

    Raises:
        ValueError: there is something else, or lines have different lengths.
    """
    lines = [line.replace(",", " ").split() for line in text.splitlines()]
    rows = [line for line in lines if line and not line[0].startswith("#")]
    if rows and not _numbers(rows[0]):
        rows = rows[1:]
    return np.array([[float(word) for word in row] for row in rows])


def _numbers(words: list[str]) -> bool:
    try:
        [float(word) for word in words]
    except ValueError:
        return False
    return True
