r"""Upper limits on the number of signal events, by CLs, for many windows at once.

$CL_s = p_{s+b} / p_b$: a signal is excluded where it is below 1 - level (Read 2002).  Its two probabilities come

* ``"asymptotic"``: from the profile likelihood ratio with its asymptotic distribution (arXiv:1007.1727, sec. 3.6, as
  pyhf computes it), with the expected limits from the Asimov spectrum;
* ``"marginal"``: from the distribution of n, averaged over the background's posterior (Cousins and Highland 1992),
  right for few events too; expected limits are those at quantiles of n without a signal.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import log_ndtr, ndtr

from sbi_physics.anomaly.binning import Array
from sbi_physics.anomaly.counting import (
    checked_experiment,
    checked_treatment,
    conditional_background,
    likelihood_loss,
)
from sbi_physics.anomaly.marginal import Constraint, Counts, Marginal
from sbi_physics.core.errors import UsageError

__all__ = ["UpperLimit", "upper_limit"]

_BANDS = (-2.0, -1.0, 0.0, 1.0, 2.0)
_BISECTIONS = 60
_SECANTS = 60
_CLOSE = 1e-9
_DOUBLINGS = 60
_LEAST = 1e-250  # the probability of so few events without a signal, below which no ratio can be taken


class UpperLimit(NamedTuple):
    """Limits on the signal events of W windows.

    Attributes:
        observed: ``(*,)``; NaN where the background alone excludes so few events by more than 30 standard deviations.
        expected: ``(*, 5)`` without a signal: at -2, -1, 0, 1 and 2 standard deviations; ``(*, 0)`` if not asked for.
        level: of confidence.
    """

    observed: Array
    expected: Array
    level: float


def upper_limit(
    n: Any,
    background: Any,
    uncertainty: Any = 0.0,
    *,
    level: float = 0.95,
    efficiency: Any = 1.0,
    method: Literal["marginal", "asymptotic"] = "marginal",
    constraint: Constraint = "gamma",
    bands: bool = True,
) -> UpperLimit:
    """Upper limit on the signal events before a selection of the given efficiency.

    Args:
        n: ``(*,)`` observed events.
        background: ``(*,)`` expected events, positive.
        uncertainty: ``(*,)`` their standard deviation, in events.
        level: of confidence.
        efficiency: ``(*,)`` the share of the signal that is counted; with the luminosity multiplied in, the limit is
            one on the cross section.
        method: ``"marginal"`` or ``"asymptotic"``, see the module.
        constraint: of the background: ``"gamma"``, ``"gaussian"`` or, if marginal, ``"lognormal"``; see `counting`.
        bands: whether to give the expected limits as well.

    Raises:
        ShapeError, NonFiniteError: the shapes do not go together, or a number is NaN or infinite.
        UsageError: a count or an uncertainty is negative, a background or an efficiency is not positive, or `level` is
            no probability.
    """
    checked_treatment(method, constraint, ("marginal", "asymptotic"))
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability between 0 and 1, got {level!r}")
    given = checked_experiment(n, background, uncertainty)
    share = np.asarray(efficiency, dtype=np.float64)
    if not (np.isfinite(share) & (share > 0)).all():
        raise UsageError(f"efficiency: expected positive numbers, got {share.min():g}")
    solve = _marginal if method == "marginal" else _asymptotic
    flat, shape = Counts(*(part.ravel() for part in given)), given.n.shape
    observed, expected = solve(flat, 1 - level, constraint, _BANDS if bands else ())
    ladder = np.array(expected).T.reshape(*shape, len(expected))
    return UpperLimit(observed.reshape(shape) / share, ladder / share[..., None], level)


def _marginal(given: Counts, alpha: float, constraint: Constraint, bands: Sequence[float]) -> tuple[Array, list[Array]]:
    chances = Marginal(given, constraint)
    nothing = np.zeros_like(given.n)

    def limit(n: Array) -> Array:
        few = chances.at_most(n)
        alone = few(nothing)
        found = _falls_below(lambda s: np.log(np.maximum(few(s) / np.maximum(alone, _LEAST), 1e-300)), alpha, given)
        return np.where(alone > _LEAST, found, np.nan)

    counts = [_least_count(lambda n: chances.at_most(n)(nothing), ndtr(band), given) for band in bands]
    return limit(given.n), [limit(n) for n in counts]


def _asymptotic(
    given: Counts, alpha: float, constraint: Constraint, bands: Sequence[float]
) -> tuple[Array, list[Array]]:
    nothing = np.zeros_like(given.n)
    alone = conditional_background(given, nothing, constraint)
    # Where the fit leaves no background at all, the Asimov spectrum would be empty.
    alone = np.maximum(alone, 1e-9 * given.background)
    spread = given.uncertainty * (np.sqrt(alone / given.background) if constraint == "gamma" else 1.0)
    asimov = Counts(alone, alone, spread)
    best = np.maximum(given.n - given.background, 0.0)
    loss_of_best = np.where(best > 0, 0.0, likelihood_loss(given, nothing, alone, constraint))

    def root(experiment: Counts, signal: Array, least: Array | float) -> Array:
        at = conditional_background(experiment, signal, constraint)
        return np.sqrt(np.maximum(likelihood_loss(experiment, signal, at, constraint) - least, 0.0))

    def observed(signal: Array) -> Array:
        q = np.where(signal > best, root(given, signal, loss_of_best), 0.0)
        expected = np.maximum(root(asimov, signal, 0.0), 1e-12)
        shift = np.where(q <= expected, q - expected, (q**2 - expected**2) / (2 * expected))
        result: Array = log_ndtr(-shift - expected) - log_ndtr(-shift)
        return result

    def band(place: float) -> Array:
        def expected(signal: Array) -> Array:
            result: Array = log_ndtr(place - root(asimov, signal, 0.0)) - log_ndtr(place)
            return result

        return _falls_below(expected, alpha, given)

    return _falls_below(observed, alpha, given), [band(place) for place in bands]


def _falls_below(logarithm: Callable[[Array], Array], alpha: float, given: Counts) -> Array:
    """The signal ``(*,)`` at which a share, whose logarithm falls with it, reaches alpha."""

    def above(signal: Array) -> Array:
        return logarithm(signal) - np.log(alpha)

    low, high = np.zeros_like(given.n), 3 + np.sqrt(given.n + given.background) + given.uncertainty
    at_low, at_high = above(low), above(high)
    for _ in range(_DOUBLINGS):
        beyond = at_high > 0
        if not beyond.any():
            break
        low, at_low = np.where(beyond, high, low), np.where(beyond, at_high, at_low)
        high = np.where(beyond, 2 * high, high)
        at_high = above(high)
    before = np.zeros(low.shape, dtype=bool)
    for _ in range(_SECANTS):
        middle = np.clip((low * at_high - high * at_low) / np.minimum(at_high - at_low, -1e-300), low, high)
        value = above(middle)
        left = value > 0
        # The Illinois form of regula falsi: an end that stays twice counts half, so that it moves too.
        half = np.where(left == before, 0.5, 1.0)
        at_low, at_high = np.where(left, value, half * at_low), np.where(left, half * at_high, value)
        low, high, before = np.where(left, middle, low), np.where(left, high, middle), left
        if (np.abs(value) < _CLOSE).all() or (high - low <= _CLOSE * high).all():
            break
    return middle


def _least_count(at_most: Callable[[Array], Array], probability: float, given: Counts) -> Array:
    """The smallest whole number ``(*,)`` that is not exceeded with the probability."""
    low = np.full_like(given.background, -1.0)
    high = np.ceil(20 + given.background + 10 * np.sqrt(given.background + given.uncertainty**2))
    for _ in range(_DOUBLINGS):
        beyond = at_most(high) < probability
        if not beyond.any():
            break
        low, high = np.where(beyond, high, low), np.where(beyond, 2 * high, high)
    for _ in range(_BISECTIONS):
        middle = np.maximum(np.floor(0.5 * (low + high)), 0)
        enough = at_most(middle) >= probability
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        if (high - low <= 1).all():
            break
    return high
