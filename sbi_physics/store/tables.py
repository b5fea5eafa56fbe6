"""Tables of events from the formats that physicists keep them in, by the names of their columns.

    table = read_table("events.root", ["m_JJ", "m_J1"], where="events")
    table = read_table("events.npy", ["m_JJ"], names=["m_JJ", "m_J1", "label"])
    table["m_JJ"], table.stack(["m_JJ", "m_J1"])

==========================  =======================================================================================
``.h5 .hdf5 .hdf``          data sets of equal length; or one 2-D data set, or one of records; or what pandas
                            writes in its fixed format
``.npy .npz``               records, or a 2-D array; in an ``.npz`` also 1-D arrays of equal length
``.csv .tsv .txt .dat``     a line of names, then numbers, between commas, semicolons, tabs or white space; lines that
                            begin with ``#`` are comments, and the names where there is no such line
``.parquet .pq``            needs pyarrow
``.root``                   a tree of flat branches, needs uproot
==========================  =======================================================================================

What comes back is finite float64 of equal length, or one `StoreError` that names the file and the column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.store.table_formats import READERS

__all__ = ["Table", "read_table"]


@dataclass(frozen=True)
class Table:
    """Named columns of equal length.

    Attributes:
        columns: float64 ``(n,)`` by name, in the order they were asked for.
    """

    columns: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.columns:
            raise UsageError(f"column: expected one of {', '.join(self.columns)}; got {name!r}")
        return self.columns[name]

    def stack(self, names: Sequence[str] | None = None) -> Tensor:
        """Columns side by side ``(n, k)``; all of them where no names are given.

        Raises:
            UsageError: there is no such column.
        """
        return torch.stack([self[name] for name in (self.names if names is None else names)], -1)


def read_table(
    path: str | Path,
    columns: Sequence[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    where: str | None = None,
    suffix: str | None = None,
) -> Table:
    """Read columns of a file of events; its suffix says the format.

    Args:
        path: the file.
        columns: the names of those to read; all where None.
        names: what to call the columns of a 2-D array, or of a text of numbers alone, which have no names.
        where: the data set or group of an HDF5 file, the array of an ``.npz`` or the tree of a ROOT file; need not be
            said where there is only one.
        suffix: of the format, where that of the file does not say it.

    Returns:
        The columns as finite float64.

    Raises:
        StoreError: the file is missing, empty, damaged or of no known format; a library to read it is not installed; a
            column is missing, of another length than the others, not of numbers, or holds NaN or infinity.
        UsageError: a column is asked for twice, or none at all.
    """
    path = Path(path)
    for what, given in (("columns", columns), ("names", names)):
        if given is not None and (isinstance(given, str) or not given or len(set(given)) < len(given)):
            raise UsageError(f"{what}: expected a list of distinct names, got {given!r}")
    reader = READERS.get(suffix or path.suffix.lower())
    if reader is None:
        raise StoreError(f"{path}: expected a file that ends in {', '.join(READERS)}")
    if not path.is_file():
        raise StoreError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    if not path.stat().st_size:
        raise StoreError(f"{path}: the file is empty")

    def choose(there: Sequence[str]) -> list[str]:
        if missing := [name for name in columns or () if name not in there]:
            raise StoreError(f"{path}: there is no column {missing[0]!r}; there are: {', '.join(there) or 'none'}")
        return list(columns if columns is not None else there)

    found = reader(path, choose, names, where)
    return Table({name: _checked(path, name, values) for name, values in _equally_long(path, found).items()})


def _equally_long(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    if not found:
        raise StoreError(f"{path}: there are no columns in it")
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise StoreError(f"{path}: expected columns of equal length, got {told}")
    if not next(iter(lengths.values())):
        raise StoreError(f"{path}: there are no rows in it")
    return found


def _checked(path: Path, name: str, values: Any) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim != 1:
        got = f"{array.dtype} of shape {array.shape}" if array.ndim != 1 else f"{array.dtype}"
        raise StoreError(
            f"{path}: column {name!r}: expected one number in each row, got {got}; name the columns to read"
        )
    with np.errstate(invalid="ignore"):
        numbers = np.array(array, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise StoreError(
            f"{path}: column {name!r}: expected finite numbers, got {len(bad)} NaN or infinite of {len(numbers)}, "
            f"first in row {bad[0]}"
        )
    return torch.from_numpy(numbers)
