r"""The dijet functions, integrated over bins, fitted to many spectra at once.

    $$ dN/dm = p_0 (1 - x)^{p_1} x^{-(p_2 + p_3 \ln x + p_4 \ln^2 x)}, \qquad x = m / \sqrt{s} $$

with the first 2 to 5 parameters (arXiv:1911.03947, Eq. 1, and earlier searches).  The logarithm is linear in ln p_0 and
the other parameters, so this is a Poisson regression with a logarithmic link, up to the integral over each bin:
Fisher scoring needs a handful of steps, and each step is a few matrix products for all spectra together.  Powers of
ln x are almost collinear; the fit uses combinations of them that are orthonormal under a reference spectrum, each made
of itself and those before it, so that a function of k parameters uses the first k.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import xlogy

from sbi_physics.anomaly.binning import Array, Mask

__all__ = ["BinnedFunction", "CountFit", "FallingFunction", "deviance", "fit_counts", "prior_information"]

_NODES = 6
_STEPS = 100
_FARTHEST = 4.0  # in the logarithm of the density, in one step
_SMALLEST_STEP = 1e-6
_CLOSE = 1e-6  # the squared distance to the maximum, in standard deviations
_ROUNDING = 1e-9
_WIDTH = 30.0  # of a normal prior of each shape, in e-folds over the spectrum: for spectra that determine too little
_LOGARITHMS = 80.0


class BinnedFunction(NamedTuple):
    """The functions that make up the logarithm of the density, at the nodes of a quadrature in each bin.

    Attributes:
        values: ``(B, Q, K)``.
        weights: of the quadrature, ``(B, Q)``, in the unit of mass.
    """

    values: Array
    weights: Array

    def of(self, chosen: Mask, order: int) -> "BinnedFunction":
        """Some of the bins, and the first functions."""
        return BinnedFunction(np.ascontiguousarray(self.values[chosen][..., :order]), self.weights[chosen])

    def integrals(self, coefficients: Array) -> tuple[Array, Array]:
        """Expected counts ``(B, T)`` and their derivatives ``(B, K, T)``, for coefficients ``(T, K)``."""
        bins, nodes, order = self.values.shape
        logarithm = self.values.reshape(-1, order) @ coefficients.T
        density = np.exp(np.clip(logarithm, -_LOGARITHMS, _LOGARITHMS)).reshape(bins, nodes, -1)
        density *= self.weights[..., None]
        return density.sum(1), self.values.transpose(0, 2, 1) @ density


@dataclass(frozen=True, eq=False)
class FallingFunction:
    """The combinations of ln(1 - x) and of powers of ln x in which the fit is well conditioned.

    Attributes:
        sqrt_s: energy of the collision, in the unit of mass.
        mixing: upper triangular ``(K, K)``: parameters (ln p_0, p_1, ...) of each coefficient.
    """

    sqrt_s: float
    mixing: Array

    @classmethod
    def orthonormal(cls, edges: Array, counts: Array, order: int, sqrt_s: float) -> "FallingFunction":
        """Combinations that are orthonormal under `counts` ``(B,)``, for functions of up to `order` parameters."""
        plain = cls(sqrt_s, np.eye(order))
        binned = plain.binned(edges)
        # Empty bins count a little, or functions that differ only there would be one.
        share = np.clip(counts, 0, None) + 1e-3 * np.clip(counts, 0, None).mean()
        nodes = np.sqrt(share[:, None] * binned.weights / binned.weights.sum(1, keepdims=True) / share.sum())
        triangle = np.linalg.qr((binned.values * nodes[..., None]).reshape(-1, order), mode="r")
        return cls(sqrt_s, np.linalg.inv(triangle * np.sign(np.diag(triangle))[:, None]))

    def binned(self, edges: Array, nodes: int = _NODES) -> BinnedFunction:
        """The functions at the nodes of a Gauss-Legendre quadrature in each bin of `edges` ``(B + 1,)``."""
        places, weights = np.polynomial.legendre.leggauss(nodes)
        half = 0.5 * np.diff(edges)[:, None]
        x = (0.5 * (edges[1:] + edges[:-1])[:, None] + half * places) / self.sqrt_s
        log = np.log(x)
        plain = np.stack([np.ones_like(x), np.log1p(-x), -log, -(log**2), -(log**3)], -1)
        return BinnedFunction(plain[..., : len(self.mixing)] @ self.mixing, half * weights)

    def parameters(self, coefficients: Array) -> Array:
        """Parameters (ln p_0, p_1, ...) ``(T, k)`` of coefficients ``(T, k)``."""
        order = coefficients.shape[-1]
        result: Array = coefficients @ self.mixing[:order, :order].T
        return result


class CountFit(NamedTuple):
    """Maximum likelihood fits of one function to T spectra.

    Attributes:
        coefficients: ``(T, k)``.
        covariance: inverse of the expected information, ``(T, k, k)``.
        deviance: twice the logarithm of the likelihood ratio to a perfect fit, ``(T,)``.
        converged: ``(T,)``.
    """

    coefficients: Array
    covariance: Array
    deviance: Array
    converged: Mask


def fit_counts(function: BinnedFunction, counts: Array, scale: Array, start: Array | None = None) -> CountFit:
    """Fit by Poisson maximum likelihood, with Fisher scoring and steps that are cut where they do not help.

    Args:
        function: B bins, k coefficients.
        counts: ``(T, B)``.
        scale: events that a count is worth, ``(B,)``, 1 without weights.
        start: coefficients ``(k,)`` or ``(T, k)``; those of a straight regression of ln counts where None.
    """
    spectra, order = len(counts), function.values.shape[-1]
    best = _first_guess(function, counts, scale) if start is None else np.broadcast_to(start, (spectra, order)).copy()
    here = _look_ahead(function, best, counts, scale)
    active = np.flatnonzero(here.distance >= _CLOSE)
    for _ in range(_STEPS):
        if not len(active):
            break
        trial = best[active] + here.step[active, None] * here.move[active]
        new = _look_ahead(function, trial, counts[active], scale)
        better = new.loss <= here.loss[active] + _ROUNDING * (1 + np.abs(here.loss[active]))
        best[active[better]] = trial[better]
        for old, found in zip(here, new, strict=True):
            old[active[better]] = found[better]
        here.step[active[~better]] *= 0.3
        active = active[(here.distance[active] >= _CLOSE) & (here.step[active] > _SMALLEST_STEP)]
    expected, _ = function.integrals(best)
    off = deviance(counts, expected.T, scale).sum(1)
    covariance = np.linalg.inv(here.information).astype(np.float64, copy=False)
    return CountFit(best, covariance, off, here.distance < 100 * _CLOSE)


def deviance(counts: Array, expected: Array, scale: Array) -> Array:
    """What each bin adds to the deviance, for counts and expectation ``(T, B)``; Pearson's for negative counts."""
    safe = np.maximum(expected, 1e-300)
    difference = counts - expected
    poisson = 2 * scale * (xlogy(np.maximum(counts, 0), np.maximum(counts, 1e-300) / safe) - difference)
    return np.where(counts < 0, scale * difference**2 / safe, np.maximum(poisson, 0.0))


class _Ahead(NamedTuple):
    """Where T fits stand and where they go next."""

    loss: Array  # (T,)
    move: Array  # (T, k)
    step: Array  # (T,) the share of the move to try
    distance: Array  # (T,) squared length of the move, in standard deviations
    information: Array  # (T, k, k)


def _look_ahead(function: BinnedFunction, at: Array, counts: Array, scale: Array) -> _Ahead:
    expected, slope = function.integrals(at)
    expected = np.maximum(expected, 1e-300)
    weight, ridge = scale[:, None] / expected, prior_information(at.shape[1])
    score = np.einsum("bkt,bt->tk", slope, weight * (counts.T - expected)) - ridge * at
    information = np.einsum("bkt,blt->tkl", slope * weight[:, None], slope) + np.diag(ridge)
    move = np.linalg.solve(information, score[..., None])[..., 0]
    perfect = np.maximum(counts.T, 0)
    # The likelihood relative to that of a perfect fit keeps its digits where counts are millions.
    terms = expected - perfect - xlogy(counts.T, expected / np.where(perfect > 0, perfect, 1.0))
    loss = (scale[:, None] * terms).sum(0) + 0.5 * at**2 @ ridge
    change = np.abs(function.values[:, [0, -1]] @ move.T).max(1)
    # What is next to nothing may grow to something, and not be cut before.
    allowed = _FARTHEST + np.maximum(-np.log(expected), 0)
    step = np.minimum(1.0, (allowed / np.maximum(change, 1e-300)).min(0))
    return _Ahead(loss, move, step, (move * score).sum(1), information)


def prior_information(order: int) -> Array:
    """Information ``(k,)`` of the weak prior; the normalisation, the first coefficient, has next to none."""
    return np.array([1e-9, *[_WIDTH**-2] * (order - 1)])


def _first_guess(function: BinnedFunction, counts: Array, scale: Array) -> Array:
    """Weighted least squares of the logarithm of the counts, half an event added."""
    width = function.weights.sum(1)
    events = np.maximum(scale * counts, 0) + 0.5
    middle = function.values.mean(1)
    information = np.einsum("tb,bk,bl->tkl", events, middle, middle, optimize=True) + np.diag(
        prior_information(middle.shape[1])
    )
    logarithm = np.log(events / scale / width)
    right = (events * logarithm) @ middle
    guess: Array = np.linalg.solve(information, right[..., None])[..., 0]
    return guess
