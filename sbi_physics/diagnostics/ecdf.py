r"""Bands that the empirical distribution function of N uniform numbers leaves with a given probability.

At a point z the number of N uniform values at or below z is binomial, so that a central binomial interval holds the
empirical distribution function F(z) with probability $1 - \gamma$.  A band made of such intervals at K points is left
somewhere far more often than that.  Säilynoja, Bürkner & Vehtari 2022 (arXiv:2103.10522) choose gamma such that the
whole curve stays inside with probability 1 - level.  That probability is exact: given the number n_k at z_k, the number
of values between z_k and z_{k+1} is binomial with N - n_k trials, so that the probabilities of the counts inside the
band go from point to point by a sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.diagnostics.uniformity import checked_level

__all__ = ["EcdfBands", "ecdf_bands"]

Array = np.ndarray[Any, Any]

_BISECTIONS = 24
_MOST_POINTS = 100


@dataclass(frozen=True)
class EcdfBands:
    """A band around the empirical distribution function of N uniform numbers, minus z.

    Attributes:
        n: how many numbers, N.
        z: points in (0, 1), ``(K,)``.
        lower: lower end of the band of F(z) - z, ``(K,)``.
        upper: upper end, ``(K,)``.
        pointwise_level: gamma, the probability to lie outside at one point.
        level: the probability to leave the band anywhere.
    """

    n: int
    z: Tensor
    lower: Tensor
    upper: Tensor
    pointwise_level: float
    level: float

    def difference(self, uniform: Any) -> Tensor:
        """F(z) - z of numbers ``(n, *)`` in [0, 1): float64 ``(K, *)``.

        Raises:
            ShapeError: another number of values than the bands are for.
        """
        values = as_tensor(uniform, "uniform", dtype=torch.float64).cpu()
        if values.ndim == 0 or len(values) != self.n:
            raise ShapeError(f"uniform: expected {self.n} numbers, got shape {tuple(values.shape)}")
        rows = values.reshape(self.n, -1).T.contiguous().sort(1).values
        # Not at z itself: a rank of k among L draws is one of the numbers from k / (L + 1) on.
        below = torch.searchsorted(rows, self.z.expand(len(rows), -1).contiguous())
        return (below.double() / self.n - self.z).T.reshape(len(self.z), *values.shape[1:])

    def inside(self, difference: Tensor) -> Tensor:
        """Whether each curve ``(K, *)`` of differences stays in the band at all points: boolean ``(*,)``."""
        shape = (-1, *[1] * (difference.ndim - 1))
        rounding = 1e-9
        low, high = self.lower.reshape(shape) - rounding, self.upper.reshape(shape) + rounding
        return ((difference >= low) & (difference <= high)).all(0)


def ecdf_bands(n: int, points: int | Sequence[float] = _MOST_POINTS, *, level: float = 0.01) -> EcdfBands:
    """The band that the empirical distribution function of n uniform numbers leaves with probability `level`.

    The numbers of counts are whole, so that the true probability is `level` or a little less.

    Args:
        n: how many numbers.
        points: K, for points k / (K + 1); or the points themselves, increasing, in (0, 1).  For ranks among L draws
            take points from k / (L + 1), where the distribution of the ranks is exactly that of uniform numbers.
        level: the probability to leave the band anywhere.

    Raises:
        UsageError: points are not increasing in (0, 1), or `level` is no probability.
    """
    positive_integer(n, "n")
    checked_level(level)
    z = _points(points)
    low, high = math.log(level / (2 * len(z))), math.log(level)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        inside = _probability_inside(n, z, *_intervals(n, z, math.exp(middle)))
        low, high = (middle, high) if 1 - inside <= level else (low, middle)
    first, last = _intervals(n, z, math.exp(low))
    lower, upper = torch.as_tensor(first / n - z), torch.as_tensor(last / n - z)
    return EcdfBands(n, torch.as_tensor(z), lower, upper, math.exp(low), level)


def _points(points: int | Sequence[float]) -> Array:
    if isinstance(points, int):
        k = positive_integer(points, "points")
        return np.arange(1, k + 1) / (k + 1)
    z = np.asarray(points, dtype=np.float64).reshape(-1)
    if not len(z) or not (z[0] > 0 and z[-1] < 1 and (np.diff(z) > 0).all()):
        raise UsageError(f"points: expected increasing numbers in (0, 1), got {list(points)}")
    return z


def _intervals(n: int, z: Array, gamma: float) -> tuple[Array, Array]:
    """Central binomial intervals of the counts: at most gamma / 2 of the probability lies on each side."""
    from scipy.stats import binom

    return binom.ppf(gamma / 2, n, z).astype(int), binom.isf(gamma / 2, n, z).astype(int)


def _probability_inside(n: int, z: Array, first: Array, last: Array) -> float:
    """Probability that the count at every point z_k is from first_k to last_k."""
    from scipy.special import gammaln

    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    before, weight = np.zeros(1, dtype=int), np.ones(1)
    for k, point in enumerate(z):
        previous = z[k - 1] if k else 0.0
        share = (point - previous) / (1 - previous)
        now = np.arange(first[k], last[k] + 1)
        step, left = now[:, None] - before, n - before
        possible = step >= 0
        step = np.where(possible, step, 0)
        rest = np.maximum(left - step, 0)
        log = log_factorial[left] - log_factorial[step] - log_factorial[rest]
        log = log + step * math.log(share) + rest * math.log1p(-share)
        weight = np.where(possible, np.exp(log), 0.0) @ weight
        before = now
    return float(weight.sum())
