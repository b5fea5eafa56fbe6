"""Reading a pulsar of a NANOGrav data release: an HDF5 file of derivatives, and the dictionary of white noise.

The HDF5 format calls itself `derivative_file` and describes itself in its data set README: barycentred arrival times
and residuals in seconds, the design matrix, flags of each arrival time (`f` names front and back end together).  The
dictionary is a JSON file with the keys ``<pulsar>_<receiver>_efac``, ``..._log10_t2equad`` and ``..._log10_ecorr``.
Sources: Agazie et al. 2023 (arXiv:2306.16217, data), (arXiv:2306.16213, analysis).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import finite
from sbi_physics.core.errors import ShapeError, StoreError, UsageError
from simulators.white_noise import WhiteNoise

__all__ = ["PulsarFile", "read_pulsar", "read_white_noise"]

_COLUMNS = ("TOAs in seconds", "TOA uncertainties", "Residuals", "Radio frequencies")


@dataclass(frozen=True)
class PulsarFile:
    """What a file holds of one pulsar.

    Attributes:
        name: of the pulsar.
        position: unit vector ``(3,)``, equatorial.
        toas: barycentred, days (MJD), float64 ``(T,)``.
        uncertainties: seconds ``(T,)``.
        residuals: seconds ``(T,)``.
        frequencies: MHz ``(T,)``, infinite where not known.
        design_matrix: ``(T, M)``.
        receivers: T names.
    """

    name: str
    position: Tensor
    toas: Tensor
    uncertainties: Tensor
    residuals: Tensor
    frequencies: Tensor
    design_matrix: Tensor
    receivers: tuple[str, ...]


def read_pulsar(path: str | Path, *, flag: str = "f") -> PulsarFile:
    """Read and check a pulsar.

    Args:
        path: an HDF5 file of the format `derivative_file`.
        flag: the flag of the arrival times that names the receiver.

    Raises:
        StoreError: the file is missing, is no HDF5 file, or lacks a data set.
        ShapeError: data sets differ in length.
        NonFiniteError: a number is NaN or infinite.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"{path}: there is no such file")
    try:
        with h5py.File(path) as file:
            return _read(file, path, flag)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: expected an HDF5 file ({error})") from error


def read_white_noise(path: str | Path, name: str, receivers: Iterable[str]) -> dict[str, WhiteNoise]:
    """Read the white noise of a pulsar; EQUAD and ECORR that the file does not list are zero.

    Args:
        path: a JSON dictionary.
        name: of the pulsar.
        receivers: for which noise is needed.

    Raises:
        StoreError: the file is missing or no JSON dictionary.
        UsageError: a receiver has no EFAC, or its EQUAD is of another convention.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"{path}: there is no such file")
    try:
        table = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: expected a JSON dictionary ({error})") from error
    if not isinstance(table, dict):
        raise StoreError(f"{path}: expected a JSON dictionary, got a {type(table).__name__}")
    return {receiver: _noise_of(table, f"{name}_{receiver}", path) for receiver in dict.fromkeys(receivers)}


def _noise_of(table: dict[str, Any], stem: str, path: Path) -> WhiteNoise:
    keys = {"efac": f"{stem}_efac", "log10_equad": f"{stem}_log10_t2equad", "log10_ecorr": f"{stem}_log10_ecorr"}
    if keys["efac"] not in table:
        raise UsageError(f"{path}: expected the key {keys['efac']!r}, which is not there")
    if keys["log10_equad"] not in table and any(f"{stem}_log10_{old}" in table for old in ("equad", "tnequad")):
        raise UsageError(
            f"{path}: expected {keys['log10_equad']!r} (convention t2equad); EQUAD is of another convention"
        )
    found = {field: table[key] for field, key in keys.items() if key in table}
    for field, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise UsageError(f"{path}: {keys[field]}: expected a finite number, got {value!r}")
    return WhiteNoise(**{field: float(value) for field, value in found.items()})


def _read(file: h5py.File, path: Path, flag: str) -> PulsarFile:
    toas, uncertainties, residuals, frequencies = (_numbers(file, name, path, 1) for name in _COLUMNS)
    design = _numbers(file, "Design matrix", path, 2)
    receivers = _words(file, f"Flags/{flag}", path)
    lengths = {
        **dict(zip(_COLUMNS, map(len, (toas, uncertainties, residuals, frequencies)), strict=True)),
        "Design matrix": len(design),
        f"Flags/{flag}": len(receivers),
    }
    if len(set(lengths.values())) > 1:
        raise ShapeError(
            f"{path}: expected equally many rows, got {', '.join(f'{k}: {v}' for k, v in lengths.items())}"
        )
    position = _numbers(file, "Pulsar sky position", path, 1)
    if position.shape != (3,):
        raise ShapeError(f"{path}: Pulsar sky position: expected shape (3,), got {tuple(position.shape)}")
    checked = [
        finite(values, f"{path}: {name}")
        for name, values in [
            ("Pulsar sky position", position),
            ("TOAs in seconds", toas),
            ("TOA uncertainties", uncertainties),
            ("Residuals", residuals),
            ("Design matrix", design),
        ]
    ]
    return PulsarFile(
        name="".join(_words(file, "Name", path)),
        position=checked[0],
        toas=checked[1] / 86400.0,
        uncertainties=checked[2],
        residuals=checked[3],
        frequencies=frequencies,
        design_matrix=checked[4],
        receivers=receivers,
    )


def _dataset(file: h5py.File, name: str, path: Path) -> Any:
    entry = file.get(name)
    if not isinstance(entry, h5py.Dataset):
        raise StoreError(f"{path}: expected a data set {name!r}; there are: {', '.join(sorted(file))}")
    return entry[()]


def _numbers(file: h5py.File, name: str, path: Path, axes: int) -> Tensor:
    values = np.asarray(_dataset(file, name, path))
    if values.dtype.kind not in "fiu":
        raise StoreError(f"{path}: {name}: expected numbers, got {values.dtype}")
    if values.ndim != axes:
        raise ShapeError(f"{path}: {name}: expected {axes} axes, got shape {values.shape}")
    return torch.from_numpy(values.astype(np.float64))


def _words(file: h5py.File, name: str, path: Path) -> tuple[str, ...]:
    values = np.atleast_1d(np.asarray(_dataset(file, name, path)))
    if values.dtype.kind not in "SOU":
        raise StoreError(f"{path}: {name}: expected words, got {values.dtype}")
    return tuple(word.decode() if isinstance(word, bytes) else str(word) for word in values.tolist())
