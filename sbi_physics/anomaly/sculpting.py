r"""Does a cut make a bump of its own?

If the score is independent of the mass, a cut keeps the same share e of each bin, and of the n_i events there e n_i
pass with the variance of a binomial number,

$$ \chi^2 = \sum_i \frac{(k_i - e\,n_i)^2}{e\,(1-e)\,n_i}, \qquad e = \sum_i k_i \Big/ \sum_i n_i, $$

with one degree of freedom less than there are bins.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2 as chi2_distribution

from sbi_physics.core.errors import ShapeError, UsageError

__all__ = ["Sculpting", "mass_sculpting"]

Array = NDArray[np.float64]
_FEWEST_EXPECTED = 5.0


@dataclass(frozen=True)
class Sculpting:
    """How much a cut changes the shape of the spectrum.

    Attributes:
        chi2: of the bins after the cut.
        ndf: bins less one.
    """

    chi2: float
    ndf: int

    @property
    def reduced(self) -> float:
        """chi2 over ndf; NaN where there are fewer than two bins."""
        return self.chi2 / self.ndf if self.ndf else float("nan")

    @property
    def p_value(self) -> float:
        """That it is as large by chance."""
        return float(chi2_distribution.sf(self.chi2, self.ndf)) if self.ndf else float("nan")


def mass_sculpting(mass: Any, passed: Any, bins: Any, *, weights: Any = None) -> Sculpting:
    """Compare the spectrum after a cut with that before it.

    Neighbouring bins are joined until at least five events are expected to pass in each.

    Args:
        mass: ``(n,)``.
        passed: whether each event passes, ``(n,)``.
        bins: edges ``(B + 1,)``, or lower and upper edges ``(B, 2)`` of bins that need not touch.
        weights: ``(n,)``, or None.

    Raises:
        ShapeError: the arrays do not have one entry for each event.
        UsageError: no event is in the bins.
    """
    m, keep = np.asarray(mass, dtype=np.float64), np.asarray(passed, dtype=bool)
    w = np.ones_like(m) if weights is None else np.asarray(weights, dtype=np.float64)
    if m.ndim != 1 or keep.shape != m.shape or w.shape != m.shape:
        raise ShapeError(f"passed: expected {m.shape}, one for each mass, got {keep.shape}")
    places = np.asarray(bins, dtype=np.float64)
    places = np.stack([places[:-1], places[1:]], 1) if places.ndim == 1 else places
    rows = [(m >= low) & (m < high) for low, high in places]
    before, squares = (np.array([power[row].sum() for row in rows]) for power in (w, w**2))
    after = np.array([w[row & keep].sum() for row in rows])
    if not before.sum() > 0:
        raise UsageError("bins: expected events in them, got none")
    share = after.sum() / before.sum()
    if not 0 < share < 1:
        return Sculpting(0.0, 0)
    groups = _joined(share * before**2 / np.maximum(squares, 1e-300))
    n, squares, k = (np.add.reduceat(values, groups) for values in (before, squares, after))
    chi2 = float(((k - share * n) ** 2 / (share * (1 - share) * squares)).sum())
    return Sculpting(chi2, len(groups) - 1)


def _joined(expected: Array) -> NDArray[np.intp]:
    """Where groups of neighbouring bins begin that each expect enough events."""
    starts, total = [0], 0.0
    for place, value in enumerate(expected):
        if total >= _FEWEST_EXPECTED:
            starts.append(place)
            total = 0.0
        total += value
    if total < _FEWEST_EXPECTED and len(starts) > 1:
        starts.pop()
    return np.array(starts, dtype=np.intp)
