"""Showers in the format of the Fast Calorimeter Simulation Challenge (arXiv:2410.21611).

=======================  ==========================================================================================
``/incident_energies``   ``(N, 1)``: energy of each particle in MeV, positive
``/showers``             ``(N, voxels)``: energy of each voxel in MeV, not negative; layer after layer, and within a
                         layer as `sbi_physics.core.voxels.VoxelGeometry` numbers them
=======================  ==========================================================================================

    energies, showers = read_showers("dataset_1_photons_1.hdf5", voxels=368)
    for energies, showers in iterate_showers("dataset_1_photons_1.hdf5", size=1000): ...

The published files carry no checksums, so every number is checked when it is read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, positive_integer, same_length
from sbi_physics.core.errors import ShapeError, StoreError, SupportError
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.progress import progress_bar
from sbi_physics.store.atomic import atomic_path
from sbi_physics.store.layout import opened
from sbi_physics.store.simulations import Simulations

__all__ = [
    "convert_simulations",
    "holds_showers",
    "iterate_showers",
    "origin_of",
    "read_showers",
    "read_simulations",
    "write_showers",
]

_ENERGIES, _SHOWERS = "incident_energies", "showers"
_FORMAT = f"showers of the CaloChallenge (/{_ENERGIES} and /{_SHOWERS})"
_RANGE = (2.0**8, 2.0**22)  # MeV: the energies of the first data set
# What a calorimeter sees of the incident energy: MeV for GeV is a thousand.
_RESPONSES = (1 / 100, 30.0)
_CHUNK_ROWS = 256
_BYTES_AT_ONCE = 2**23
_ORIGIN = "sbi_physics_origin"


def holds_showers(path: str | Path) -> bool:
    """Whether a file is of this format, or was meant to be: one of its data sets is enough.

    Raises:
        StoreError: the file is missing or damaged.
    """
    with opened(Path(path), "simulations or showers") as file:
        return _ENERGIES in file or _SHOWERS in file


def read_showers(path: str | Path, *, voxels: int | None = None) -> tuple[Tensor, Tensor]:
    """Read all showers of a file.

    Args:
        path: an HDF5 file.
        voxels: how many voxels a shower must have; any number where None.

    Returns:
        Incident energies ``(N, 1)`` and showers ``(N, voxels)`` in MeV, float32.

    Raises:
        StoreError: the file is missing or damaged, a data set is missing or misshapen, or an energy is NaN, infinite or
            negative; the message names the file, the data set and the first such row.
    """
    path = Path(path)
    with opened(path, _FORMAT) as file:
        rows, _ = _shape(file, voxels)
        return _read(file, slice(0, rows))


def iterate_showers(
    path: str | Path, size: int = 4096, *, voxels: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Stream the showers of a file as `read_showers` gives them, `size` rows at a time.

    Args:
        path: an HDF5 file.
        size: rows to read at once; the last batch may have fewer.
        voxels: how many voxels a shower must have; any number where None.

    Raises:
        StoreError: as for `read_showers`, when the rows in question are read.
    """
    positive_integer(size, "size")
    path = Path(path)
    with opened(path, _FORMAT) as file:
        rows, _ = _shape(file, voxels)
    for start in range(0, rows, size):
        with opened(path, _FORMAT) as file:
            batch = _read(file, slice(start, min(start + size, rows)))
        yield batch


def read_simulations(
    path: str | Path, parameters: Parameters | None = None, *, voxels: int | None = None
) -> Simulations:
    """Read a file as simulations: theta is the incident energy, x the shower, both in MeV.

    Args:
        path: an HDF5 file.
        parameters: name, unit and prior of the energy; log-uniform from 256 MeV to 4.2 TeV where None.
        voxels: how many voxels a shower must have; any number where None.

    Raises:
        StoreError: as for `read_showers`; or there is no shower, or the two energies are not in the same unit.
        SupportError: an energy is outside the prior.
        ShapeError: the parameters are not one.
    """
    energies, showers = read_showers(path, voxels=voxels)
    if not len(energies):
        raise StoreError(f"{path}: holds no showers")
    parameters = parameters or Parameters([Parameter("energy", LogUniform(*_RANGE), "MeV", "$E$")])
    parameters.check_width(energies)
    parameters.check_within(energies, f"{path}: /{_ENERGIES} in MeV")
    response = float((showers.sum(1, keepdim=True) / energies).median())
    if not _RESPONSES[0] <= response <= _RESPONSES[1]:
        raise StoreError(
            f"{path}: half of the showers hold {'more' if response > 1 else 'less'} than {response:.3g} times the "
            f"incident energy; expected /{_ENERGIES} and /{_SHOWERS} both in MeV"
        )
    return Simulations.from_arrays(energies, showers, parameters, simulator=Path(path).stem)


def write_showers(path: str | Path, incident_energies: Any, showers: Any) -> None:
    """Write a file, whole or not at all; the same showers give the same bytes.

    Args:
        path: the file, replaced where there is one.
        incident_energies: energies of the particles in MeV, ``(N,)`` or ``(N, 1)``.
        showers: energies of the voxels in MeV, ``(N, voxels)``.

    Raises:
        StoreError: the file cannot be written.
        ShapeError: an array has the wrong shape, or the numbers of rows differ.
        SupportError: an energy is NaN, infinite or negative, or an incident energy is zero.
    """
    energies, voxels = (as_tensor(v, n).cpu() for v, n in ((incident_energies, _ENERGIES), (showers, _SHOWERS)))
    energies = energies.unsqueeze(1) if energies.ndim == 1 else energies
    if energies.ndim != 2 or energies.shape[1] != 1:
        raise ShapeError(f"{_ENERGIES}: expected shape (N,) or (N, 1), got {tuple(energies.shape)}")
    if voxels.ndim != 2 or not voxels.shape[1]:
        raise ShapeError(f"{_SHOWERS}: expected shape (N, voxels), got {tuple(voxels.shape)}")
    same_length(**{_ENERGIES: energies, _SHOWERS: voxels})
    arrays = {_ENERGIES: energies.numpy(), _SHOWERS: voxels.numpy()}
    for name, values in arrays.items():
        if complaint := _complaint(name, values):
            raise SupportError(complaint)
    with atomic_path(Path(path)) as temporary, h5py.File(temporary, "w") as file:
        for name, values in arrays.items():
            _create(file, name, values.shape, values.dtype)[...] = values


def convert_simulations(simulations: Simulations, path: str | Path, *, origin: str = "", progress: bool = True) -> int:
    """Stream simulations of showers into a file, a few megabytes at a time; those that failed are left out.

    Args:
        simulations: theta is the incident energy and x the shower, both in MeV.
        path: the file, replaced where there is one.
        origin: a text to be found again by `origin_of`.
        progress: whether to show a bar where standard error is a terminal.

    Returns:
        How many showers were written.

    Raises:
        StoreError: the file cannot be written, or the simulations are damaged.
        ShapeError: theta is not one number, or x not one vector.
        SupportError: an energy is negative, or an incident energy zero.
    """
    shape, rows = simulations.x_shape, simulations.counts()["ok"]
    if isinstance(shape, dict) or len(shape) != 1 or len(simulations.parameters) != 1:
        raise ShapeError(
            f"simulations: expected an incident energy and a shower (voxels,), got {simulations.parameters.names} and "
            f"{shape if isinstance(shape, dict) else tuple(shape)}"
        )
    size = max(1, _BYTES_AT_ONCE // (4 * shape[0]) // _CHUNK_ROWS) * _CHUNK_ROWS
    name = f"writing {Path(path).name}"
    with (
        progress_bar(rows, name, enabled=progress) as advance,
        # One name, so that a run that goes on after a kill writes over what the killed one has left.
        atomic_path(Path(path), temporary=Path(path).with_name(f".{Path(path).name}.tmp")) as temporary,
        h5py.File(temporary, "w") as file,
    ):
        if origin:
            file.attrs[_ORIGIN] = origin
        sets = {key: _create(file, key, (rows, n), np.float32) for key, n in ((_ENERGIES, 1), (_SHOWERS, shape[0]))}
        start = 0
        for theta, x in simulations.batches(size):
            for key, values in ((_ENERGIES, theta), (_SHOWERS, x)):
                array = as_tensor(values, key).numpy()
                if complaint := _complaint(key, array, start):
                    raise SupportError(complaint)
                sets[key][start : start + len(array)] = array
            start += len(theta)
            advance(len(theta))
    return rows


def origin_of(path: str | Path) -> str:
    """The text that `convert_simulations` was given; empty for other files.

    Raises:
        StoreError: the file is missing or damaged.
    """
    with opened(Path(path), _FORMAT) as file:
        return str(file.attrs.get(_ORIGIN, ""))


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    if not shape[0]:
        return file.create_dataset(name, shape, dtype)
    chunks = (min(_CHUNK_ROWS, shape[0]), *shape[1:])
    # Half of the voxels are zero: without shuffling their bytes, the fastest compression is also the best.
    return file.create_dataset(name, shape, dtype, chunks=chunks, compression="gzip", compression_opts=1)


def _shape(file: h5py.File, voxels: int | None) -> tuple[int, int]:
    """Rows and voxels of an opened file, its structure checked."""
    for name in (_ENERGIES, _SHOWERS):
        found = file.get(name)
        if not isinstance(found, h5py.Dataset):
            raise StoreError(f"{file.filename}: the data set /{name} is missing; expected {_FORMAT}")
        if found.dtype.kind not in "fiu":
            raise StoreError(f"{file.filename}: /{name}: expected numbers, got {found.dtype}")
    energies, showers = file[_ENERGIES].shape, file[_SHOWERS].shape
    if len(energies) not in (1, 2) or energies[1:] not in ((), (1,)):
        raise StoreError(f"{file.filename}: /{_ENERGIES}: expected shape (N, 1), got {energies}")
    if len(showers) != 2 or not showers[1] or (voxels is not None and showers[1] != voxels):
        raise StoreError(f"{file.filename}: /{_SHOWERS}: expected shape (N, {voxels or 'voxels'}), got {showers}")
    if energies[0] != showers[0]:
        raise StoreError(
            f"{file.filename}: expected equally many rows, got {energies[0]} in /{_ENERGIES} and {showers[0]} in "
            f"/{_SHOWERS}: row {min(energies[0], showers[0])} is in one alone"
        )
    return int(showers[0]), int(showers[1])


def _read(file: h5py.File, rows: slice) -> tuple[Tensor, Tensor]:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is named below
        arrays = {name: np.asarray(file[name][rows], dtype=np.float32) for name in (_ENERGIES, _SHOWERS)}
    arrays[_ENERGIES] = arrays[_ENERGIES].reshape(-1, 1)
    for name, values in arrays.items():
        if complaint := _complaint(name, values, rows.start):
            raise StoreError(f"{file.filename}: /{complaint}")
    return torch.from_numpy(arrays[_ENERGIES]), torch.from_numpy(arrays[_SHOWERS])


def _complaint(name: str, values: np.ndarray[Any, Any], start: int = 0) -> str:
    """What is wrong with the first bad row of energies ``(N, m)``; empty where nothing is."""
    good = np.isfinite(values) & ((values > 0) if name == _ENERGIES else (values >= 0))
    if good.all():
        return ""
    row, column = (int(index) for index in np.argwhere(~good)[0])
    if name == _ENERGIES:
        return f"{name}: expected positive finite energies, got {values[row, column]:g} in row {start + row}"
    return (
        f"{name}: expected finite energies that are not negative, got {values[row, column]:g} in row {start + row}, "
        f"voxel {column}"
    )
