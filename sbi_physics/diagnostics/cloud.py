r"""The cloud of simulations in the space of their observables, and how far from it a point lies.

The Mahalanobis distance $\sqrt{z^T \Sigma^{-1} z}$ of standardised observables z uses the covariance

$$ \Sigma = (1 - \rho)\,S + \rho\,\mu\,I, \quad \mu = \mathrm{tr} S / F $$

where S is that of the sample and rho the oracle-approximating shrinkage of Chen et al. 2010 (arXiv:0907.4698), so that
it is invertible however many observables there are.  Missing entries (NaN) count as the mean, and the square of the
distance is scaled up by the share of entries that are there.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Cloud", "differs", "fit_cloud", "most_rows"]

Array = np.ndarray[Any, Any]

_LEAST_SHRINKAGE = 1e-6
_NUMBERS_AT_ONCE = 1 << 24


def differs(values: Array, constant: Array) -> Array:
    """Whether values ``(*, F)`` differ from constants ``(F,)`` by more than single precision; missing ones do not."""
    with np.errstate(invalid="ignore"):
        return np.abs(values - constant) > 1e-6 * np.abs(constant)


@dataclass(frozen=True)
class Cloud:
    """Mean and covariance of rows of F observables.

    Attributes:
        mean: ``(F,)``.
        deviation: ``(F,)``; one for observables that never vary.
        constant: which never vary, ``(F,)``.
        basis: orthonormal directions of the sample covariance, ``(r, F)``.
        variance: of Sigma along them, ``(r,)``.
        rest: variance of Sigma in all other directions.
    """

    mean: Array
    deviation: Array
    constant: Array
    basis: Array
    variance: Array
    rest: float

    def standardise(self, rows: Array) -> tuple[Array, Array]:
        """Rows ``(m, F)`` in standard deviations from the mean, zero where missing, and the share that is there."""
        there = ~np.isnan(rows)
        z = np.where(there & ~self.constant, (rows - self.mean) / self.deviation, 0.0)
        return z, np.maximum(there.mean(1), 1 / rows.shape[1])

    def distance(self, rows: Array) -> Array:
        """Mahalanobis distance ``(m,)`` of rows ``(m, F)``; infinite where a constant observable differs."""
        z, share = self.standardise(rows)
        along = z @ self.basis.T
        across = np.maximum(np.square(z).sum(1) - np.square(along).sum(1), 0.0)
        square = (np.square(along) / self.variance).sum(1) + across / self.rest
        return np.where(self._impossible(rows).any(1), np.inf, np.sqrt(square / share))

    def neighbour_distance(self, rows: Array, members: Array, k: int) -> Array:
        """Distance ``(m,)`` of rows to the k-th nearest of `members`, in standard deviations of each observable."""
        (z, share), (others, other_share) = self.standardise(rows), self.standardise(members)
        square = np.square(z).sum(1)[:, None] + np.square(others).sum(1) - 2 * z @ others.T
        square = np.maximum(square, 0.0) / np.minimum(share[:, None], other_share)
        nearest = np.partition(square, k - 1, axis=1)[:, k - 1]
        return np.where(self._impossible(rows).any(1), np.inf, np.sqrt(nearest))

    def residuals(self, rows: Array) -> Array:
        """How many standard deviations each entry ``(m, F)`` is from what the other entries of its row let expect.

        NaN where it is missing, infinite where a constant observable differs.
        """
        z, _ = self.standardise(rows)
        excess = 1 / self.variance - 1 / self.rest
        force = (z @ self.basis.T * excess) @ self.basis + z / self.rest
        precision = np.square(self.basis).T @ excess + 1 / self.rest
        result = np.where(np.isnan(rows), np.nan, force / np.sqrt(precision))
        return np.where(self._impossible(rows), np.copysign(np.inf, rows - self.mean), result)

    def _impossible(self, rows: Array) -> Array:
        return self.constant & differs(rows, self.mean)


def most_rows(features: int) -> int:
    """Rows of that many observables that fit in a bounded memory."""
    return max(100, _NUMBERS_AT_ONCE // max(features, 1))


def fit_cloud(rows: Array, every: Array | None = None, *, correlated: bool = True) -> Cloud:
    """The cloud of rows ``(n, F)``; deviations, and what is constant, are taken from `every` ``(N, F)`` if given.

    Without correlations, Sigma is the identity.
    """
    mean, deviation, constant = _moments(rows if every is None else every)
    if not correlated:
        return Cloud(mean, deviation, constant, np.zeros((0, len(mean))), np.zeros(0), 1.0)
    z = np.where(np.isnan(rows) | constant, 0.0, (rows - mean) / deviation)
    shift = z.mean(0)
    mean, z = mean + shift * deviation, z - shift
    n, dims = z.shape
    variance, basis = _principal(z)
    trace, squares = variance.sum(), np.square(variance).sum()
    spread = (n + 1 - 2 / dims) * (squares - trace**2 / dims)
    shrinkage = 1.0 if spread <= 0 else min(1.0, ((1 - 2 / dims) * squares + trace**2) / spread)
    shrinkage = max(shrinkage, _LEAST_SHRINKAGE)
    rest = shrinkage * max(trace / dims, 1e-12)
    return Cloud(mean, deviation, constant, basis, (1 - shrinkage) * variance + rest, float(rest))


def _moments(rows: Array) -> tuple[Array, Array, Array]:
    there = ~np.isnan(rows)
    count = np.maximum(there.sum(0), 1)
    mean = np.where(there, rows, 0.0).sum(0) / count
    centred = np.where(there, rows - mean, 0.0)
    deviation = np.sqrt(np.square(centred).sum(0) / count)
    constant = np.abs(centred).max(0) <= 1e-12 * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation), constant


def _principal(z: Array) -> tuple[Array, Array]:
    """Variances ``(r,)`` above zero and directions ``(r, F)`` of centred rows ``(n, F)``, from the smaller product."""
    n, dims = z.shape
    if dims <= n:
        variance, vectors = np.linalg.eigh(z.T @ z / n)
        keep = variance > 1e-12 * max(variance[-1], 1e-300)
        return variance[keep], vectors[:, keep].T
    variance, vectors = np.linalg.eigh(z @ z.T / n)
    keep = variance > 1e-12 * max(variance[-1], 1e-300)
    return variance[keep], (z.T @ (vectors[:, keep] / np.sqrt(n * variance[keep]))).T
