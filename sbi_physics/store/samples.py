"""Sample files: named sets of draws in one HDF5 file.

Each group is one `Samples`: a data set ``values`` ``(n, P)``, ``log_weights`` where the draws are weighted, ``bounds``
``(P, 2)`` of the prior where they are known, and the attributes ``names``, ``units``, ``labels``.  Data sets carry
checksums, and attributes have text of fixed length, as in files of simulations.
"""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch

from sbi_physics.core.errors import ShapeError, StoreError, UsageError
from sbi_physics.core.samples import Samples
from sbi_physics.store.atomic import atomic_path
from sbi_physics.store.layout import LIBVER, create_checked, opened, read_dataset, read_text, write_text

__all__ = ["holds_samples", "read_samples", "write_samples"]

FORMAT = "sbi_physics.samples"
SCHEMA = 2


def write_samples(path: str | Path, samples: Mapping[str, Samples]) -> None:
    """Write named samples to one file, whole or not at all.

    Raises:
        StoreError: the file cannot be written.
    """
    with atomic_path(Path(path)) as temporary, h5py.File(temporary, "w", libver=LIBVER) as file:
        write_text(file, "format", FORMAT)
        file.attrs["schema"] = SCHEMA
        for name, one in samples.items():
            group = file.create_group(name)
            create_checked(group, "values", one.to_numpy())
            if one.log_weights is not None:
                create_checked(group, "log_weights", one.log_weights.detach().cpu().numpy())
            if one.bounds is not None:
                create_checked(group, "bounds", one.bounds.detach().cpu().numpy())
            if any(one.periodic):
                group.attrs["periodic"] = np.array(one.periodic)
            for key, words in (("names", one.names), ("units", one.units), ("labels", one.labels)):
                encoded = [word.encode() for word in words]
                width = max(1, *map(len, encoded))
                group.attrs.create(key, np.array(encoded, f"S{width}"), dtype=h5py.string_dtype("utf-8", width))


def holds_samples(path: str | Path) -> bool:
    """Whether a file says that it holds samples; what is no HDF5 file does not."""
    try:
        with opened(Path(path)) as file:
            return read_text(file, "format") == FORMAT
    except StoreError:
        return False


def read_samples(path: str | Path) -> dict[str, Samples]:
    """Read what `write_samples` wrote.

    Raises:
        StoreError: the file is missing, damaged, of another format or of a newer version.
    """
    path = Path(path)
    with opened(path, f"samples ({FORMAT})") as file:
        if (found := read_text(file, "format")) != FORMAT:
            raise StoreError(f"{path}: expected format {FORMAT!r}, got {found!r}")
        if int(file.attrs["schema"]) > SCHEMA:
            raise StoreError(f"{path}: has schema {file.attrs['schema']}, this version reads up to {SCHEMA}")
        try:
            return {name: _read_group(group) for name, group in file.items()}
        except (ShapeError, UsageError) as error:
            raise StoreError(f"{path}: damaged, or not a sample file: {error}") from error


def _read_group(group: h5py.Group) -> Samples:
    names, units, labels = (tuple(map(_word, group.attrs[key])) for key in ("names", "units", "labels"))
    weights = torch.as_tensor(read_dataset(group, "log_weights")) if "log_weights" in group else None
    bounds = torch.as_tensor(read_dataset(group, "bounds")) if "bounds" in group else None
    values = torch.as_tensor(read_dataset(group, "values"))
    periodic = tuple(map(bool, group.attrs.get("periodic", ())))
    return Samples(values, names, units, labels, weights, bounds=bounds, periodic=periodic)


def _word(word: str | bytes) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)
