"""How columns are read from each format of file; `read_table` is the front door.

Every reader takes the path, a function that chooses among the names it finds, the names for a 2-D array and the place
inside the file, and returns the columns that were chosen, unchecked.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbi_physics.core.errors import SBIPhysicsError, StoreError
from sbi_physics.store.layout import opened
from sbi_physics.store.text_tables import read_text

__all__ = ["READERS", "damage"]

Columns = dict[str, Any]
Choose = Callable[[Sequence[str]], list[str]]
Reader = Callable[[Path, Choose, Sequence[str] | None, str | None], Columns]


def _hdf5(path: Path, choose: Choose, names: Sequence[str] | None, where: str | None) -> Columns:
    with opened(path, "a table of columns") as file:
        if where is not None and where not in file:
            raise StoreError(f"{path}: there is no {where!r}; there are: {', '.join(file) or 'none'}")
        place = file[where] if where is not None else file
        if where is None and len(file) == 1:
            place = next(iter(file.values()))
            # The only data set may also be the only column.
            place = file if isinstance(place, h5py.Dataset) and place.ndim == 1 and not place.dtype.names else place
        if isinstance(place, h5py.Dataset):
            return _array(path, place, choose, names)
        if "block0_items" in place:
            return _pandas(place, choose)
        return {name: place[name][()] for name in choose([n for n, v in place.items() if isinstance(v, h5py.Dataset)])}


def _pandas(group: h5py.Group, choose: Choose) -> Columns:
    """The fixed format of pandas: for each type of number its names, and a block of values ``(n, k)``."""
    blocks: dict[str, tuple[h5py.Dataset, int]] = {}
    for key in sorted(name for name in group if name.startswith("block") and name.endswith("_items")):
        values = group[key.replace("_items", "_values")]
        for column, item in enumerate(group[key][()]):
            blocks[item.decode() if isinstance(item, bytes) else str(item)] = (values, column)
    order = [item.decode() if isinstance(item, bytes) else str(item) for item in group["axis0"][()]]
    return {name: blocks[name][0][:, blocks[name][1]] for name in choose(order)}


def _npy(path: Path, choose: Choose, names: Sequence[str] | None, where: str | None) -> Columns:
    with damage(path):
        return _array(path, np.load(path, mmap_mode="r", allow_pickle=False), choose, names)


def _npz(path: Path, choose: Choose, names: Sequence[str] | None, where: str | None) -> Columns:
    # Opened here, as numpy leaves it open where the archive is damaged.
    with damage(path), path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        if where is not None and where not in archive.files:
            raise StoreError(f"{path}: there is no {where!r}; there are: {', '.join(archive.files)}")
        name = where if where is not None else (archive.files[0] if len(archive.files) == 1 else None)
        if name is not None:
            array = archive[name]
            if where is not None or array.ndim != 1 or array.dtype.names:
                return _array(path, array, choose, names)
        return {column: archive[column] for column in choose(archive.files)}


def _array(path: Path, array: Any, choose: Choose, names: Sequence[str] | None) -> Columns:
    """Columns of records, or of a 2-D array of which the names are given."""
    if array.dtype.names:
        return {name: array[name] for name in choose(array.dtype.names)}
    if array.ndim != 2:
        raise StoreError(
            f"{path}: expected records or a 2-D array of numbers, got {array.dtype} of shape {array.shape}"
        )
    if names is None or len(names) != array.shape[1]:
        got = "none" if names is None else f"{len(names)}: {', '.join(names)}"
        raise StoreError(f"{path}: an array of shape {array.shape} needs {array.shape[1]} names of columns, got {got}")
    return {name: array[:, list(names).index(name)] for name in choose(names)}


def _text(path: Path, choose: Choose, names: Sequence[str] | None, where: str | None) -> Columns:
    with damage(path):
        return read_text(path, choose, names)


def _parquet(path: Path, choose: Choose, names: Sequence[str] | None, where: str | None) -> Columns:
    parquet = _library(path, "pyarrow.parquet", "pyarrow")
    with damage(path):
        file = parquet.ParquetFile(path)
        table = file.read(columns=choose(file.schema_arrow.names))
        return {name: table[name].to_numpy() for name in table.column_names}


def _root(path: Path, choose: Choose, names: Sequence[str] | None, where: str | None) -> Columns:
    uproot = _library(path, "uproot", "uproot")
    with damage(path), uproot.open(path) as file:
        trees = sorted(
            {key for key, kind in file.classnames(cycle=False).items() if kind in ("TTree", "ROOT::RNTuple")}
        )
        tree = where if where is not None else (trees[0] if len(trees) == 1 else None)
        if tree not in trees:
            asked = "say where" if where is None else f"there is no tree {where!r}"
            raise StoreError(f"{path}: {asked}; the trees are: {', '.join(trees) or 'none'}")
        branches = file[tree]
        return {name: branches[name].array(library="np") for name in choose(branches.keys(recursive=False))}


def _library(path: Path, module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise StoreError(
            f"{path}: needs {package}, which is not installed: pip install 'sbi-physics[tables]'"
        ) from error


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Whatever a library finds wrong with a file is one `StoreError` naming it."""
    try:
        yield
    except SBIPhysicsError:
        raise
    except Exception as error:  # zlib, struct and uproot raise what is of no common kind
        raise StoreError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from error


READERS: dict[str, Reader] = {
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".hdf": _hdf5,
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _text,
    ".txt": _text,
    ".dat": _text,
    ".tsv": _text,
    ".parquet": _parquet,
    ".pq": _parquet,
    ".root": _root,
}
