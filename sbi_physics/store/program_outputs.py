"""What programs leave behind, as arrays of numbers.

===========  ======================  =========================================================================
format       suffixes                what is read
===========  ======================  =========================================================================
``text``     ``.txt .dat``           numbers between white space or commas, a line of names is skipped
``npy``      ``.npy``                the array
``npz``      ``.npz``                the array `where`, or the only one
``hdf5``     ``.h5 .hdf5 .hdf``      the data set `where`, or the only one
``csv``      ``.csv``                columns, by their names
``parquet``  ``.parquet .pq``        columns, needs pyarrow
``root``     ``.root``               branches of the tree `where`, or the only one; needs uproot
``lhe``      ``.lhe .lhe.gz``        fields of the particles that go out of each event ``(events, particles, k)``;
                                     `where` = "weights" ``(events,)`` or "cross-section" ``()`` in pb; needs pylhe
===========  ======================  =========================================================================

Columns are ``(rows, k)``.  A single row or column, of text too, is one axis less.  Where columns are named, ``npy``,
``npz`` and ``hdf5`` are read as tables, too (`tables`).
"""

import gzip
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sbi_physics.core.errors import StoreError
from sbi_physics.store.layout import opened
from sbi_physics.store.observation import read_numbers
from sbi_physics.store.table_formats import damage
from sbi_physics.store.tables import read_table

__all__ = ["FORMATS", "format_of", "read_output"]

FORMATS = {
    "text": (".txt", ".dat"),
    "npy": (".npy",),
    "npz": (".npz",),
    "hdf5": (".h5", ".hdf5", ".hdf"),
    "csv": (".csv",),
    "parquet": (".parquet", ".pq"),
    "root": (".root",),
    "lhe": (".lhe", ".lhe.gz"),
}
_TABLES = ("csv", "parquet", "root")
_FIELDS = ("px", "py", "pz", "e")
_OUTGOING = 1


def format_of(name: str) -> str | None:
    """The format that the suffix of a file says; None where it says none."""
    return next((key for key, suffixes in FORMATS.items() if name.lower().endswith(suffixes)), None)


def read_output(
    path: Path, format: str, *, where: str | None = None, columns: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """Read numbers from a file.

    Args:
        path: the file.
        format: one of `FORMATS`.
        where: the place inside the file.
        columns: names of columns, or of the fields of particles; all columns, or px, py, pz and e, where None.

    Raises:
        StoreError: the file is missing, empty or damaged, or does not hold what is asked for.
    """
    if not path.is_file():
        raise StoreError(f"{path}: no such file")
    if format == "lhe":
        return _lhe(path, where, columns or _FIELDS)
    if format in _TABLES or (columns is not None and format != "text"):
        table = read_table(path, columns, where=where, suffix=FORMATS[format][0])
        return _squeezed(table.stack().numpy())
    if not path.stat().st_size:
        raise StoreError(f"{path}: the file is empty")
    values = {"text": _text, "npy": _npy, "npz": _npz, "hdf5": _hdf5}[format](path, where)
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise StoreError(f"{path}: expected numbers, got {array.dtype}")
    return array.astype(np.float64)


def _squeezed(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim != 2:
        return values
    return values[0] if len(values) == 1 else values[:, 0] if values.shape[1] == 1 else values


def _text(path: Path, where: str | None) -> NDArray[Any]:
    with damage(path):
        values = read_numbers(path.read_text(encoding="utf-8", errors="replace"))
    if not values.size:
        raise StoreError(f"{path}: there are no numbers in it")
    return _squeezed(values)


def _npy(path: Path, where: str | None) -> NDArray[Any]:
    with damage(path):
        return np.asarray(np.load(path, allow_pickle=False))


def _npz(path: Path, where: str | None) -> NDArray[Any]:
    with damage(path), path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return np.asarray(archive[_only(path, archive.files, where)])


def _hdf5(path: Path, where: str | None) -> NDArray[Any]:
    with opened(path, "numbers") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return np.asarray(file[_only(path, names, where)][()])


def _only(path: Path, names: Sequence[str], where: str | None) -> str:
    if where is not None and where.strip("/") in names:
        return where.strip("/")
    if where is None and len(names) == 1:
        return names[0]
    asked = "say where" if where is None else f"there is no {where!r}"
    raise StoreError(f"{path}: {asked}; there are: {', '.join(names) or 'none'}")


def _lhe(path: Path, where: str | None, fields: Sequence[str]) -> NDArray[np.float64]:
    try:
        pylhe: Any = import_module("pylhe")
    except ImportError as error:
        raise StoreError(f"{path}: needs pylhe, which is not installed: pip install 'sbi-physics[hep]'") from error
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with damage(path), opener(path, "rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # so it tells of a file that is cut short
        file = pylhe.LHEFile.frombuffer(stream, generator=False)
        if where == "cross-section":
            return np.array(sum(process.xSection for process in file.init.procInfo), dtype=np.float64)
        if where == "weights":
            return np.array([event.eventinfo.weight for event in file.events], dtype=np.float64)
        outgoing = [[particle for particle in event.particles if _goes_out(particle)] for event in file.events]
        events = [[[float(getattr(one, field)) for field in fields] for one in particles] for particles in outgoing]
    sizes = {len(event) for event in events}
    if len(sizes) != 1:
        raise StoreError(f"{path}: expected events of equally many outgoing particles, got {sorted(sizes) or 'none'}")
    return np.array(events, dtype=np.float64).reshape(len(events), sizes.pop(), len(fields))


def _goes_out(particle: Any) -> bool:
    return int(particle.status) == _OUTGOING
