r"""Poisson counts whose background is uncertain: probabilities averaged over its posterior.

At most n events are seen where a gamma-distributed number G of shape n + 1 exceeds the expectation s + B, so every
probability here is one of G against B.  It is integrated over the narrower of the two, with the distribution function
of the other: that is smooth on the scale of the nodes, whichever dominates.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import gammainc, gammaincc, gammainccinv, gammaincinv, log_ndtr, ndtr, ndtri_exp

from sbi_physics.anomaly.binning import Array, Mask

__all__ = ["Constraint", "Counts", "Marginal"]

Constraint = Literal["gamma", "gaussian", "lognormal"]

_REACH = 8.0  # standard deviations
# Even steps in standard deviations keep the tails, which a quadrature in probability would miss.
_PLACES, _WEIGHTS = np.polynomial.legendre.leggauss(96)
_Z = _REACH * _PLACES
_WEIGHTS = _WEIGHTS * np.exp(-0.5 * _Z**2)
_WEIGHTS /= _WEIGHTS.sum()


class Counts(NamedTuple):
    """What is counted in W windows.

    Attributes:
        n: observed events ``(*,)``; sums of weights need not be whole.
        background: expected events ``(*,)``, positive.
        uncertainty: their standard deviation ``(*,)``, positive.
    """

    n: Array
    background: Array
    uncertainty: Array


class Marginal:
    """Probabilities of counts, averaged over the posterior of the background.

    Args:
        given: W windows, in one dimension; their counts do not matter.
        constraint: the posterior is ``"gamma"`` (of a Poisson measurement, under a flat prior), ``"gaussian"``
            (cut at zero) or ``"lognormal"``.
    """

    def __init__(self, given: Counts, constraint: Constraint) -> None:
        self._background = given.background[:, None]
        self._uncertainty = given.uncertainty[:, None]
        self._constraint = constraint
        self._backgrounds = self._quantile()

    def at_most(self, n: Array) -> Callable[[Array], Array]:
        """Probability of at most n events ``(W,)``, as a function of the signal ``(W,)``."""
        wide = self._uncertainty[:, 0] > np.sqrt(n + 1)
        narrow, events = ~wide, _gamma_quantile(n[wide, None] + 1, _Z)

        def chance(signal: Array) -> Array:
            result = np.empty_like(signal)
            expected = signal[narrow, None] + self._backgrounds[narrow]
            result[narrow] = gammaincc(n[narrow, None] + 1, expected) @ _WEIGHTS
            result[wide] = self._below(wide, events - signal[wide, None], upper=False) @ _WEIGHTS
            return result

        return chance

    def at_least(self, n: Array) -> Array:
        """Probability of at least n events without a signal, ``(W,)``; n is positive."""
        spread, result = self._uncertainty[:, 0], np.empty_like(n)
        if self._constraint == "lognormal":
            spread = spread * np.maximum(n / self._background[:, 0], 1)  # it grows with the background
        wide = spread > np.sqrt(n)
        result[~wide] = gammainc(n[~wide, None], self._backgrounds[~wide]) @ _WEIGHTS
        events = _gamma_quantile(n[wide, None], _Z)
        result[wide] = self._below(wide, events, upper=True) @ _WEIGHTS
        return result

    def _quantile(self) -> Array:
        """Backgrounds ``(W, Q)`` at the nodes."""
        b, sigma = self._background, self._uncertainty
        if self._constraint == "lognormal":
            result: Array = b * np.exp(np.clip(sigma / b * _Z, -300, 300))
        elif self._constraint == "gaussian":
            result = np.maximum(b + sigma * -ndtri_exp(log_ndtr(-_Z) + log_ndtr(b / sigma)), 0)
        else:
            result = _gamma_quantile((b / sigma) ** 2 + 1, _Z) * sigma**2 / b
        return result

    def _below(self, rows: Mask, at: Array, *, upper: bool) -> Array:
        """Probability that the background is below (above where `upper`) the values ``(rows, Q)``."""
        b, sigma = self._background[rows], self._uncertainty[rows]
        sign = -1.0 if upper else 1.0
        inside = np.maximum(at, 1e-300)
        if self._constraint == "lognormal":
            chance: Array = ndtr(sign * np.log(inside / b) * b / sigma)
        elif self._constraint == "gaussian":
            above = ndtr(-(inside - b) / sigma) / ndtr(b / sigma)
            chance = above if upper else 1 - np.minimum(above, 1)
        else:
            chance = (gammaincc if upper else gammainc)((b / sigma) ** 2 + 1, inside * b / sigma**2)
        return np.where(at > 0, chance, float(upper))


def _gamma_quantile(shape: Array, z: Array) -> Array:
    """Quantile of the gamma distribution at the normal probability of z; by Wilson and Hilferty where it is narrow."""
    narrow = shape > 1e6
    cube = shape * (1 - 1 / (9 * shape) + z / (3 * np.sqrt(shape))) ** 3
    usual = np.where(narrow, 1.0, shape)
    exact = np.where(z > 0, gammainccinv(usual, ndtr(-z)), gammaincinv(usual, ndtr(z)))
    result: Array = np.where(narrow, cube, exact)
    return result
