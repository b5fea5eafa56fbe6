r"""`Columns`: numbers that a simulator gives, as numbers that a density can have.

Each number of an output is of one of five kinds, found from the data:

========  =================================================  ========================================================
kind      what it is                                         what a model sees
========  =================================================  ========================================================
constant  the same in all simulations                        nothing
real      anything else                                      itself
positive  above zero, over more than a decade                its logarithm
zeros     zero, or above a threshold: what is read out       :math:`\ln(x/t)`, and noise on (-1, 0) where x is zero
count     a whole number                                     itself, with noise on (-1/2, 1/2)
========  =================================================  ========================================================

Uniform noise makes a density of what is a probability at a point (Uria, Murray and Larochelle 2013, arXiv:1306.0186);
the way back rounds it off, and what was zero is exactly zero.
"""

from enum import IntEnum

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import seeded

__all__ = ["ColumnKind", "Columns"]

# A positive number whose largest value is that many times its median has a logarithm that is easier to learn.
_DECADE = 10.0
# Of the width of the logarithms above the threshold: that of the noise below it.
_NOISE_WIDTH = 1.0
_SMALLEST_WIDTH = 1e-3
_COLUMNS_AT_ONCE = 32
_ROWS_AT_ONCE = 1 << 14
# Whole numbers above this are as good as real ones.
_LARGEST_COUNT = 1e6


class ColumnKind(IntEnum):
    """What a number of an output is."""

    CONSTANT = 0
    REAL = 1
    POSITIVE = 2
    ZEROS = 3
    COUNT = 4


class Columns(nn.Module):
    """The kinds of the D numbers of an output, learned once from data.

    Args:
        columns: D.
    """

    kinds: Tensor
    constant: Tensor
    threshold: Tensor
    largest: Tensor
    width: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("kinds", torch.full((columns,), int(ColumnKind.REAL)))
        for name in ("constant", "threshold", "largest", "width"):
            self.register_buffer(name, torch.ones(columns))

    @property
    def varies(self) -> Tensor:
        """Which columns a model sees: boolean ``(D,)``."""
        return self.kinds != int(ColumnKind.CONSTANT)

    @property
    def varying(self) -> int:
        """How many those are."""
        return int(self.varies.sum())

    def fit(self, x: Tensor) -> "Columns":
        """Learn from outputs ``(n, D)``; returns itself.

        Raises:
            UsageError: all columns are constant.
        """
        self._check(x)
        for start in range(0, x.shape[1], _COLUMNS_AT_ONCE):
            part = slice(start, start + _COLUMNS_AT_ONCE)
            self._learn(part, x[:, part])
        if not bool(self.varies.any()):
            raise UsageError("x: the outputs are the same in all simulations: there is nothing to learn")
        return self

    def _learn(self, part: slice, x: Tensor) -> None:
        """Learn from some columns ``(n, D')``: of all at once there would be several copies."""
        positive = torch.where(x > 0, x, torch.inf)
        smallest, largest = positive.amin(0), x.amax(0)
        above, below = (x > 0).any(0), (x < 0).any(0)
        zeros = (x == 0).any(0) & above & ~below
        whole = (x == x.round()).all(0) & (largest < _LARGEST_COUNT)
        spans = largest > _DECADE * x.median(0).values
        kinds = torch.full_like(self.kinds[part], int(ColumnKind.REAL))
        kinds[~below & (x != 0).all(0) & spans] = int(ColumnKind.POSITIVE)
        kinds[zeros] = int(ColumnKind.ZEROS)
        kinds[whole] = int(ColumnKind.COUNT)
        kinds[(x == x[0]).all(0)] = int(ColumnKind.CONSTANT)
        self.kinds[part] = kinds
        self.constant[part] = x[0]
        self.threshold[part] = torch.where(above, smallest, 1.0)
        self.largest[part] = largest
        logs = torch.where(x > 0, (x / self.threshold[part]).clamp(min=1.0).log(), torch.nan)
        mean = logs.nanmean(0)
        spread = (logs - mean).square().nanmean(0).sqrt()
        self.width[part] = torch.nan_to_num(_NOISE_WIDTH * spread, nan=1.0).clamp(min=_SMALLEST_WIDTH)

    def encode(self, x: Tensor, *, seed: int) -> Tensor:
        """Outputs ``(n, D)`` as events ``(n, D')`` of a density, with noise where they are points."""
        self._check(x)
        varies = self.varies
        events = x.new_empty(len(x), int(varies.sum()))
        with seeded(seed, x.device):
            for start in range(0, len(x), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                events[part] = self._encoded(x[part])[:, varies]
        return events

    def _encoded(self, x: Tensor) -> Tensor:
        """All columns of some rows, with noise from the current random stream."""
        noise = torch.rand_like(x)
        logs = (x.clamp(min=0) / self.threshold).log()
        known = torch.where(x > 0, logs, -self.width * noise)
        events = torch.where(self._are(ColumnKind.ZEROS, ColumnKind.POSITIVE), known, x)
        return torch.where(self._are(ColumnKind.COUNT), x + noise - 0.5, events)

    def decode(self, events: Tensor) -> Tensor:
        """Outputs ``(n, D)`` of events ``(n, D')``."""
        x = self.place(events, self.constant)
        # A draw far in the tail of a logarithm is no output: none of the data is beyond ten times the largest.
        risen = torch.minimum(self.threshold * x.exp(), 10 * self.largest)
        x = torch.where(self._are(ColumnKind.POSITIVE), risen, x)
        x = torch.where(self._are(ColumnKind.ZEROS), torch.where(x < 0, 0.0, risen), x)
        return torch.where(self._are(ColumnKind.COUNT), x.round(), x)

    def place(self, events: Tensor, elsewhere: Tensor | float) -> Tensor:
        """Events ``(n, D')`` in the columns that vary, and in the others what is given, ``(D,)`` or one: ``(n, D)``."""
        # Not through a mask, whose true entries would have to be counted first.
        return torch.where(self.varies, events[:, (self.varies.cumsum(0) - 1).clamp(min=0)], elsewhere)

    def _are(self, *kinds: ColumnKind) -> Tensor:
        return torch.isin(self.kinds, self.kinds.new_tensor([int(kind) for kind in kinds]))

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != len(self.kinds):
            raise ShapeError(f"x: expected shape (n, {len(self.kinds)}), got {tuple(x.shape)}")
