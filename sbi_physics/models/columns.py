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
natural   the same, never below zero                         the same; what would be below zero is zero
========  =================================================  ========================================================

Uniform noise makes a density of what is a probability at a point (Uria, Murray and Larochelle 2013, arXiv:1306.0186);
the way back rounds it off, and what was zero is exactly zero.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.store.row_parts import RowParts, Rows, row_parts

__all__ = ["ColumnKind", "Columns"]

# A positive number whose largest value is that many times its median has a logarithm that is easier to learn.
_DECADE = 10.0
# Of the width of the logarithms above the threshold: that of the noise below it.
_NOISE_WIDTH = 1.0
_SMALLEST_WIDTH = 1e-3
# Whether a number ranges over decades is seen in some rows as well as in all.
_FEWEST_FOR_MEDIANS, _NUMBERS_FOR_MEDIANS = 1 << 9, 1 << 22
# Whole numbers above this are as good as real ones.
_LARGEST_COUNT = 1e6


class ColumnKind(IntEnum):
    """What a number of an output is."""

    CONSTANT = 0
    REAL = 1
    POSITIVE = 2
    ZEROS = 3
    COUNT = 4
    NATURAL = 5


@dataclass
class _Seen:
    """What was seen of D columns: extremes ``(D,)``, and booleans ``(D,)`` of what some or all rows have."""

    first: Tensor
    smallest: Tensor
    largest: Tensor
    above: Tensor
    below: Tensor
    zero: Tensor
    whole: Tensor
    constant: Tensor

    @classmethod
    def of(cls, parts: RowParts) -> "_Seen":
        """Look at all rows once; the smallest is of those above zero."""
        seen: _Seen | None = None
        for x in parts:
            one = cls(
                x[0].clone() if seen is None else seen.first,
                torch.where(x > 0, x, torch.inf).amin(0),
                x.amax(0),
                (x > 0).any(0),
                (x < 0).any(0),
                (x == 0).any(0),
                (x == x.round()).all(0),
                (x == (x[0] if seen is None else seen.first)).all(0),
            )
            seen = one if seen is None else seen._with(one)
        if seen is None:
            raise ShapeError("x: expected at least one output, got none")
        return seen

    def _with(self, other: "_Seen") -> "_Seen":
        return _Seen(
            self.first,
            torch.minimum(self.smallest, other.smallest),
            torch.maximum(self.largest, other.largest),
            self.above | other.above,
            self.below | other.below,
            self.zero | other.zero,
            self.whole & other.whole,
            self.constant & other.constant,
        )


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

    def fit(self, x: Rows) -> "Columns":
        """Learn from outputs ``(n, D)``; returns itself.

        Raises:
            UsageError: all columns are constant.
        """
        self._check(x)
        parts = row_parts(x)
        seen = _Seen.of(parts)
        every = max(1, len(parts) // max(_FEWEST_FOR_MEDIANS, _NUMBERS_FOR_MEDIANS // len(self.kinds)))
        median = torch.cat([part[::every].clone() for part in parts]).median(0).values
        counts = seen.whole & (seen.largest < _LARGEST_COUNT)
        self.kinds.fill_(int(ColumnKind.REAL))
        self.kinds[~seen.below & ~seen.zero & (seen.largest > _DECADE * median)] = int(ColumnKind.POSITIVE)
        self.kinds[seen.zero & seen.above & ~seen.below] = int(ColumnKind.ZEROS)
        self.kinds[counts] = int(ColumnKind.COUNT)
        self.kinds[counts & ~seen.below] = int(ColumnKind.NATURAL)
        self.kinds[seen.constant] = int(ColumnKind.CONSTANT)
        self.constant.copy_(seen.first)
        self.threshold.copy_(torch.where(seen.above, seen.smallest, 1.0))
        self.largest.copy_(seen.largest)
        spread = self._spread(parts)
        self.width.copy_(torch.nan_to_num(_NOISE_WIDTH * spread, nan=1.0).clamp(min=_SMALLEST_WIDTH))
        if not bool(self.varies.any()):
            raise UsageError("x: the outputs are the same in all simulations: there is nothing to learn")
        return self

    def _spread(self, parts: RowParts) -> Tensor:
        """Standard deviation of the logarithms of what is above zero, ``(D,)``; NaN where nothing is."""
        count, total, square = torch.zeros(3, len(self.kinds), dtype=torch.float64, device=self.kinds.device)
        for part in parts:
            # From the threshold on, a few units: no precision is lost in the squares.
            logs = torch.where(part > 0, (part / self.threshold).clamp(min=1.0).log(), 0.0).double()
            count += (part > 0).sum(0)
            total += logs.sum(0)
            square += logs.square().sum(0)
        return (square / count - (total / count).square()).clamp(min=0.0).sqrt().float()

    def encode(self, x: Tensor, *, seed: int) -> Tensor:
        """Outputs ``(n, D)`` as events ``(n, D')`` of a density, with noise where they are points."""
        return self.encoded(x, seed=seed).tensor(x.device)

    def encoded(self, x: Rows, *, seed: int) -> RowParts:
        """As `encode`, in parts."""
        self._check(x)
        varies = self.varies
        return row_parts(x).map(lambda part: self._encoded(part)[:, varies], (int(varies.sum()),), seed=seed)

    def _encoded(self, x: Tensor) -> Tensor:
        """All columns of some rows, with noise from the current random stream."""
        noise = torch.rand_like(x)
        logs = (x.clamp(min=0) / self.threshold).log()
        known = torch.where(x > 0, logs, -self.width * noise)
        events = torch.where(self._are(ColumnKind.ZEROS, ColumnKind.POSITIVE), known, x)
        return torch.where(self._are(ColumnKind.COUNT, ColumnKind.NATURAL), x + noise - 0.5, events)

    def decode(self, events: Tensor) -> Tensor:
        """Outputs ``(n, D)`` of events ``(n, D')``."""
        x = self.place(events, self.constant)
        # A draw far in the tail of a logarithm is no output: none of the data is beyond ten times the largest.
        risen = torch.minimum(self.threshold * x.exp(), 10 * self.largest)
        x = torch.where(self._are(ColumnKind.POSITIVE), risen, x)
        x = torch.where(self._are(ColumnKind.ZEROS), torch.where(x < 0, 0.0, risen), x)
        x = torch.where(self._are(ColumnKind.COUNT), x.round(), x)
        return torch.where(self._are(ColumnKind.NATURAL), x.round().clamp(min=0.0), x)

    def place(self, events: Tensor, elsewhere: Tensor | float) -> Tensor:
        """Events ``(n, D')`` in the columns that vary, and in the others what is given, ``(D,)`` or one: ``(n, D)``."""
        # Not through a mask, whose true entries would have to be counted first.
        return torch.where(self.varies, events[:, (self.varies.cumsum(0) - 1).clamp(min=0)], elsewhere)

    def _are(self, *kinds: ColumnKind) -> Tensor:
        return torch.isin(self.kinds, self.kinds.new_tensor([int(kind) for kind in kinds]))

    def _check(self, x: Rows) -> None:
        if len(x.shape) != 2 or x.shape[1] != len(self.kinds):
            raise ShapeError(f"x: expected shape (n, {len(self.kinds)}), got {tuple(x.shape)}")
