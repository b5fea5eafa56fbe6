"""One pulsar of a timing array: where it is, when it was observed, how well, and with which timing model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.coordinates import SkyCoord
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite
from sbi_physics.core.errors import ShapeError, UsageError
from simulators.pulsar_file import read_pulsar, read_white_noise
from simulators.timing_model import design_matrix
from simulators.white_noise import WhiteCovariance, WhiteNoise, epochs_of, white_covariance

__all__ = ["AveragedEpochs", "Pulsar", "averaged"]


@dataclass(frozen=True, eq=False)
class Pulsar:
    """T pulse arrival times of one pulsar.

    Attributes:
        name: of the pulsar.
        position: a unit vector ``(3,)``, equatorial; an `astropy.coordinates.SkyCoord` is turned into one.
        toas: arrival times at the barycentre in days (MJD), float64 ``(T,)``.
        uncertainties: measured standard deviations in seconds ``(T,)``.
        receivers: name of the receiver (front and back end) of each time; one name stands for all.
        noise: white noise of each receiver; that of a receiver not named is its uncertainties alone where empty.
        matrix: design matrix ``(T, M)``, or None for that of `simulators.timing_model.design_matrix`.
        residuals: measured residuals in seconds ``(T,)``, or None.
        frequencies: radio frequencies in MHz ``(T,)``, or None.
        epoch_window: times of one receiver within so many seconds of the first are one epoch, and share its ECORR;
            one second, as in the program enterprise, joins the bands of one observation.
        smallest_epoch: epochs of fewer times have no ECORR: 2 as in enterprise, with which published values were found.
        epochs: number of the epoch of each time ``(T,)``, found from the times.

    Raises:
        ShapeError: lengths differ.
        NonFiniteError: a number is NaN or infinite.
        UsageError: an uncertainty is not positive, or a receiver has no noise.
    """

    name: str
    position: Any
    toas: Any
    uncertainties: Any
    receivers: Sequence[str] | str = "receiver"
    noise: Mapping[str, WhiteNoise] = field(default_factory=dict)
    matrix: Any = None
    residuals: Any = None
    frequencies: Any = None
    epoch_window: float = 1.0
    smallest_epoch: int = 2
    epochs: Tensor = field(init=False)

    def __post_init__(self) -> None:
        toas = _column(self.toas, "toas", None)
        given = {"position": _unit_vector(self.position), "toas": toas}
        given["uncertainties"] = _column(self.uncertainties, "uncertainties", len(toas))
        if not bool((given["uncertainties"] > 0).all()):
            least = float(given["uncertainties"].min())
            raise UsageError(f"{self.name}: uncertainties: expected positive numbers, got {least:g}")
        receivers = (self.receivers,) * len(toas) if isinstance(self.receivers, str) else tuple(self.receivers)
        if len(receivers) != len(toas):
            raise ShapeError(f"{self.name}: receivers: expected {len(toas)}, one for each time, got {len(receivers)}")
        if self.residuals is not None:
            given["residuals"] = _column(self.residuals, "residuals", len(toas))
        if self.frequencies is not None:
            given["frequencies"] = as_tensor(self.frequencies, "frequencies", dtype=torch.float64)
        given["matrix"] = design_matrix(toas) if self.matrix is None else _matrix(self.matrix, self.name, len(toas))
        for name, value in given.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "receivers", receivers)
        object.__setattr__(self, "noise", dict(self.noise) or dict.fromkeys(receivers, WhiteNoise()))
        object.__setattr__(self, "epochs", epochs_of(toas, receivers, self.epoch_window))
        missing = sorted(set(receivers) - set(self.noise))
        if missing:
            raise UsageError(f"{self.name}: noise: expected one for each receiver; none for {', '.join(missing)}")

    @classmethod
    def from_file(cls, path: str | Path, *, noise: str | Path | Mapping[str, WhiteNoise], **fields: Any) -> "Pulsar":
        """Read a pulsar of a NANOGrav release (see `simulators.pulsar_file`).

        Args:
            path: the HDF5 file.
            noise: the JSON dictionary of white noise, or the white noise of each receiver.
            **fields: `epoch_window` and `smallest_epoch`.

        Raises:
            StoreError: a file is missing, damaged, or lacks a data set.
            ShapeError: data sets differ in length.
            NonFiniteError: a number is NaN or infinite.
            UsageError: a receiver has no white noise.
        """
        rows = read_pulsar(path)
        white = noise if isinstance(noise, Mapping) else read_white_noise(noise, rows.name, rows.receivers)
        return cls(
            name=rows.name,
            position=rows.position,
            toas=rows.toas,
            uncertainties=rows.uncertainties,
            receivers=rows.receivers,
            noise=white,
            matrix=rows.design_matrix,
            residuals=rows.residuals,
            frequencies=rows.frequencies,
            **fields,
        )

    def __len__(self) -> int:
        return len(self.toas)

    @cached_property
    def white_covariance(self) -> WhiteCovariance:
        """Covariance of the white noise in microseconds squared."""
        return white_covariance(
            self.uncertainties, self.receivers, self.epochs, self.noise, smallest_epoch=self.smallest_epoch
        )

    def with_residuals(self, residuals: Any) -> "Pulsar":
        """The same pulsar with other residuals, in seconds ``(T,)``."""
        return replace(self, residuals=residuals)


@dataclass(frozen=True)
class AveragedEpochs:
    """Weighted means of the arrival times of each epoch.

    Attributes:
        weights: ``(E, T)``; each row holds the inverse variances (EFAC, EQUAD) of the times of an epoch.
        toas: mean time in days ``(E,)``.
        uncertainties: standard deviation of the mean with ECORR, in seconds ``(E,)``.
        receivers: E names.
    """

    weights: Tensor
    toas: Tensor
    uncertainties: Tensor
    receivers: tuple[str, ...]

    def mean(self, x: Tensor) -> Tensor:
        """Weighted means of values ``(*, T)``, some of which may be NaN: ``(*, E)``, NaN where an epoch has none."""
        weights = self.weights.to(x.device, x.dtype)
        there = torch.isfinite(x).to(x.dtype)
        return (torch.nan_to_num(x) @ weights.T) / (there @ weights.T)


def averaged(pulsar: Pulsar) -> AveragedEpochs:
    """Average the arrival times of each epoch of each receiver, in the order of time."""
    epochs = pulsar.epochs
    variance = torch.empty_like(pulsar.uncertainties)
    for receiver, noise in pulsar.noise.items():
        rows = torch.tensor([name == receiver for name in pulsar.receivers])
        variance[rows] = noise.variance(pulsar.uncertainties[rows])
    weights = torch.nn.functional.one_hot(epochs).T.to(torch.float64) / variance
    total = weights.sum(1)
    toas = (weights @ pulsar.toas) / total
    order = torch.argsort(toas, stable=True)
    first = [int(torch.nonzero(epochs == e)[0, 0]) for e in range(len(total))]
    size = torch.bincount(epochs)
    ecorr = torch.tensor([pulsar.noise[pulsar.receivers[i]].ecorr for i in first], dtype=torch.float64)
    ecorr = torch.where(size < pulsar.smallest_epoch, 0.0, ecorr)
    return AveragedEpochs(
        weights=weights[order],
        toas=toas[order],
        uncertainties=torch.sqrt(1 / total + ecorr**2)[order],
        receivers=tuple(pulsar.receivers[first[e]] for e in order.tolist()),
    )


def _unit_vector(position: Any) -> Tensor:
    if isinstance(position, SkyCoord):
        position = np.asarray(position.icrs.cartesian.xyz.value)
    vector = finite(as_tensor(position, "position", dtype=torch.float64), "position")
    if vector.shape != (3,):
        raise ShapeError(f"position: expected shape (3,) or an astropy SkyCoord, got {tuple(vector.shape)}")
    if float(vector.norm()) == 0:
        raise UsageError("position: expected a direction, got the zero vector")
    return vector / vector.norm()


def _column(values: Any, name: str, length: int | None) -> Tensor:
    column = finite(as_tensor(values, name, dtype=torch.float64), name)
    if column.ndim != 1 or len(column) == 0:
        raise ShapeError(f"{name}: expected shape (T,), got {tuple(column.shape)}")
    if length is not None and len(column) != length:
        raise ShapeError(f"{name}: expected {length} numbers, one for each time, got {len(column)}")
    return column


def _matrix(values: Any, name: str, length: int) -> Tensor:
    matrix = finite(as_tensor(values, f"{name}: matrix", dtype=torch.float64), f"{name}: matrix")
    if matrix.ndim != 2 or len(matrix) != length:
        raise ShapeError(f"{name}: matrix: expected shape ({length}, M), got {tuple(matrix.shape)}")
    return matrix
