"""Sample files: named sets of draws in one HDF5 file.

Each group is one `Samples`: a data set ``values`` ``(n, P)``, ``log_weights`` where the draws are weighted, and the
attributes ``names``, ``units``, ``labels``.
"""

from collections.abc import Mapping
from pathlib import Path

import h5py
import torch

from sbi_physics.core.errors import StoreError
from sbi_physics.core.samples import Samples
from sbi_physics.store.atomic import atomic_path

__all__ = ["read_samples", "write_samples"]

FORMAT = "sbi_physics.samples"
SCHEMA = 1


def write_samples(path: str | Path, samples: Mapping[str, Samples]) -> None:
    """Write named samples to one file, whole or not at all.

    Raises:
        StoreError: the file cannot be written.
    """
    with atomic_path(Path(path)) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"], file.attrs["schema"] = FORMAT, SCHEMA
        for name, one in samples.items():
            group = file.create_group(name)
            group.create_dataset("values", data=one.to_numpy())
            if one.log_weights is not None:
                group.create_dataset("log_weights", data=one.log_weights.detach().cpu().numpy())
            for key, words in (("names", one.names), ("units", one.units), ("labels", one.labels)):
                group.attrs[key] = list(words)


def read_samples(path: str | Path) -> dict[str, Samples]:
    """Read what `write_samples` wrote.

    Raises:
        StoreError: the file is missing, damaged, of another format or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise StoreError(f"{path}: expected format {FORMAT!r}, got {file.attrs.get('format')!r}")
            if int(file.attrs["schema"]) > SCHEMA:
                raise StoreError(f"{path}: has schema {file.attrs['schema']}, this version reads up to {SCHEMA}")
            return {name: _read_group(group) for name, group in file.items()}
    except StoreError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise StoreError(f"{path}: damaged, or not a sample file: {' '.join(str(error).split())}") from error


def _read_group(group: h5py.Group) -> Samples:
    names, units, labels = (tuple(map(str, group.attrs[key])) for key in ("names", "units", "labels"))
    weights = torch.as_tensor(group["log_weights"][:]) if "log_weights" in group else None
    return Samples(torch.as_tensor(group["values"][:]), names, units, labels, weights)
