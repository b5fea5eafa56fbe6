r"""Features with values that many events share, as multiplicities, tags and defaults, made continuous for a density.

A column all of whose values are shared is replaced by the number of its value, plus uniform noise on (0, 1); in a
column of real numbers with a few spikes a gap opens at each, into which its events are spread.  The way back restores
the values.  A density of what has ties would be infinite at them, and its draws, which have none, would be told from
data by that alone.  See Uria, Murray and Larochelle 2013 (arXiv:1306.0186) for the noise; here it is a function of the
event, so that an event is at the same place whenever it is looked at.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Dequantise"]

# A value that so many events share, in part and in number, counts as a spike.
_SHARE, _FEWEST = 0.005, 10
# A column of which so much is spikes is one of few values, if there are not more than so many.
_DISCRETE = 0.9
_MOST_VALUES = 1000

Array = NDArray[np.float64]


class Dequantise:
    """A map of each feature, and back."""

    def fit(self, features: Tensor) -> Self:
        """Find the columns of features ``(n, D)`` with values that many events share."""
        self._columns = [_column(column) for column in features.double().numpy().T]
        return self

    @property
    def unchanged(self) -> list[int]:
        """The columns that stay as they are."""
        return [i for i, column in enumerate(self._columns) if column is None]

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(n, D)``, float64, as a density can have them."""
        rows = features.double().numpy()
        result = rows.copy()
        for i, column in enumerate(self._columns):
            if column is not None:
                result[:, i] = column.forward(rows[:, i], _noise(rows, i))
        return torch.as_tensor(result)

    def inverse(self, made: Tensor) -> Tensor:
        """The features ``(n, D)`` of what `forward` makes."""
        result = made.double().numpy().copy()
        for i, column in enumerate(self._columns):
            if column is not None:
                result[:, i] = column.inverse(result[:, i])
        return torch.as_tensor(result)


@dataclass(frozen=True)
class _Discrete:
    """A column of K values."""

    values: Array

    def forward(self, x: Array, noise: Array) -> Array:
        after = np.searchsorted(self.values, x).clip(1, len(self.values) - 1)
        nearest = after - (x - self.values[after - 1] < self.values[after] - x)
        return nearest + noise

    def inverse(self, made: Array) -> Array:
        return self.values[np.floor(made).clip(0, len(self.values) - 1).astype(int)]


@dataclass(frozen=True)
class _Spiked:
    """A column of real numbers with spikes at some values, at each of which a gap of some width opens."""

    values: Array
    widths: Array

    def forward(self, x: Array, noise: Array) -> Array:
        before = np.concatenate([[0.0], np.cumsum(self.widths)])
        place = np.searchsorted(self.values, x)
        spike = self.values[place.clip(max=len(self.values) - 1)] == x
        inside = np.where(spike, noise * self.widths[place.clip(max=len(self.widths) - 1)], 0.0)
        return x + before[place] + inside

    def inverse(self, made: Array) -> Array:
        before = np.concatenate([[0.0], np.cumsum(self.widths)])
        starts, ends = self.values + before[:-1], self.values + before[1:]
        gap = np.searchsorted(starts, made, side="right") - 1
        at = gap.clip(min=0)
        inside = (gap >= 0) & (made <= ends[at])
        return np.where(inside, self.values[at], made - before[gap + 1])


def _column(x: Array) -> _Discrete | _Spiked | None:
    values, counts = np.unique(x, return_counts=True)
    share = counts / len(x)
    shared = (share >= _SHARE) & (counts >= _FEWEST)
    if not shared.any() or len(values) < 2:
        return None
    if share[shared].sum() >= _DISCRETE and len(values) <= _MOST_VALUES:
        return _Discrete(values)
    rest = x[~np.isin(x, values[shared])]
    spread = float(np.subtract(*np.quantile(rest, [0.95, 0.05]))) if len(rest) else 0.0
    # As dense in the gap as about it.
    widths = share[shared] * (spread or float(np.ptp(x))) / 0.9
    return _Spiked(values[shared], widths)


def _noise(rows: Array, column: int) -> Array:
    """Numbers in (0, 1), one for each row ``(n, D)`` and made of it (SplitMix64: Steele, Lea and Flood 2014)."""
    state = np.full(len(rows), column + 1, np.uint64)
    with np.errstate(over="ignore"):
        for entry in np.ascontiguousarray(rows).view(np.uint64).T:
            state = (state ^ entry) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
