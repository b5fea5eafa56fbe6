r"""Counting experiments: n events where b ± sigma are expected.

The background is known from an auxiliary measurement: a Poisson number m = b² / sigma² that stands for tau b events,
tau = b / sigma² ("gamma", as pyhf's shapesys), a normal one of b ("gaussian") or of ln b ("lognormal").  Two ways to
deal with it, for all windows at once:

* ``"profile"``: the likelihood ratio at the background that fits best for each signal (Li and Ma 1983; Cowan et al.,
  arXiv:1007.1727), in closed form and with its asymptotic distribution; not for "lognormal".  The p-value keeps its
  sign: a deficit has one above one half.
* ``"marginal"``: the distribution of n averaged over the background's posterior (`marginal.py`), right for few events
  too.  For "gamma" this is Z_Bi, the exact test of whether n of n + m events fall on one side (Cousins, Linnemann and
  Tucker, physics/0702156).
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import betainc, ndtr, ndtri_exp, xlogy

from sbi_physics.anomaly.binning import Array
from sbi_physics.anomaly.marginal import Constraint, Counts, Marginal
from sbi_physics.core.checks import as_tensor, finite, known_keys
from sbi_physics.core.errors import ShapeError, UsageError

__all__ = [
    "Treatment",
    "asimov_significance",
    "checked_experiment",
    "checked_treatment",
    "conditional_background",
    "discovery_p_value",
    "discovery_significance",
    "likelihood_loss",
    "p_value_of",
    "significance_of",
]

Treatment = Literal["marginal", "profile"]

_CONSTRAINTS = ("gamma", "gaussian", "lognormal")
_LEAST_SHARE = 1e-6  # of the background, as its uncertainty: below it nothing changes but rounding


def significance_of(p_value: Any) -> Array:
    """Standard deviations of a one-sided p-value ``(*,)``: infinite at 0, 0 at one half, negative above."""
    with np.errstate(divide="ignore"):
        result: Array = -ndtri_exp(np.log(np.asarray(p_value, dtype=np.float64)))
    return result


def p_value_of(significance: Any) -> Array:
    """One-sided p-value ``(*,)`` of so many standard deviations."""
    result: Array = ndtr(-np.asarray(significance, dtype=np.float64))
    return result


def discovery_p_value(
    n: Any,
    background: Any,
    uncertainty: Any = 0.0,
    *,
    method: Treatment = "marginal",
    constraint: Constraint = "gamma",
) -> Array:
    """Probability of at least n events without a signal.

    Args:
        n: ``(*,)`` observed events.
        background: ``(*,)`` expected events, positive.
        uncertainty: ``(*,)`` their standard deviation, in events.
        method: ``"marginal"`` or ``"profile"``, see the module.
        constraint: ``"gamma"``, ``"gaussian"`` or, if marginal, ``"lognormal"``; see the module.

    Returns:
        float64 ``(*,)``.

    Raises:
        ShapeError, NonFiniteError: the shapes do not go together, or a number is NaN or infinite.
        UsageError: a count or an uncertainty is negative, or a background is not positive.
    """
    checked_treatment(method, constraint, ("marginal", "profile"))
    given = checked_experiment(n, background, uncertainty)
    if method == "profile":
        return p_value_of(_signed_root(given, constraint))
    return _marginal_p_value(given, constraint)


def discovery_significance(
    n: Any,
    background: Any,
    uncertainty: Any = 0.0,
    *,
    method: Treatment = "profile",
    constraint: Constraint = "gamma",
) -> Array:
    """The significance of `discovery_p_value`, in standard deviations; arguments and errors are the same."""
    checked_treatment(method, constraint, ("marginal", "profile"))
    if method == "profile":
        return _signed_root(checked_experiment(n, background, uncertainty), constraint)
    return significance_of(discovery_p_value(n, background, uncertainty, method=method, constraint=constraint))


def asimov_significance(
    signal: Any, background: Any, uncertainty: Any = 0.0, *, constraint: Constraint = "gamma"
) -> Array:
    """Median significance that a signal has, by the profile likelihood of its expectation (arXiv:1007.1727, sec. 4).

    Args:
        signal: ``(*,)`` expected signal events.
        background: ``(*,)`` expected background events.
        uncertainty: ``(*,)`` their standard deviation.
        constraint: ``"gamma"`` or ``"gaussian"``.
    """
    expected = np.asarray(signal, dtype=np.float64) + np.asarray(background, dtype=np.float64)
    return discovery_significance(expected, background, uncertainty, constraint=constraint)


def checked_treatment(method: str, constraint: str, methods: Sequence[str]) -> None:
    """Raise `UsageError` unless the method is known, and has this constraint in closed form."""
    known_keys([method], methods, "method")
    known_keys([constraint], _CONSTRAINTS if method == "marginal" else _CONSTRAINTS[:2], f"constraint of {method!r}")


def checked_experiment(n: Any, background: Any, uncertainty: Any) -> Counts:
    """Counts, backgrounds and uncertainties of one shape.

    Raises:
        ShapeError, NonFiniteError, UsageError: see `discovery_p_value`.
    """
    given = [
        finite(as_tensor(value, name, dtype=torch.float64).cpu(), name).numpy()
        for value, name in ((n, "n"), (background, "background"), (uncertainty, "uncertainty"))
    ]
    try:
        counts, expected, spread = (np.asarray(part, dtype=np.float64) for part in np.broadcast_arrays(*given))
    except ValueError as error:
        shapes = ", ".join(str(part.shape) for part in given)
        raise ShapeError(f"n, background, uncertainty: expected shapes that go together, got {shapes}") from error
    if (counts < 0).any():
        raise UsageError(f"n: expected counts of at least 0, got {counts.min():g}")
    if not (expected > 0).all():
        raise UsageError(f"background: expected positive numbers, got {expected.min():g}")
    if (spread < 0).any():
        raise UsageError(f"uncertainty: expected numbers of at least 0, got {spread.min():g}")
    return Counts(counts, expected, np.maximum(spread, _LEAST_SHARE * expected))


def conditional_background(given: Counts, signal: Array, constraint: Constraint) -> Array:
    """The background ``(*,)`` that fits best beside so much signal."""
    n, b, sigma = given
    if constraint == "gamma":
        # (1 + tau) b² + ((1 + tau) s - n - m) b - m s = 0, over 1 + tau.
        tau, m = b / sigma**2, (b / sigma) ** 2
        half, product = 0.5 * (signal - (n + m) / (1 + tau)), m * signal / (1 + tau)
    else:
        # b² + (s - b_0 + sigma²) b + (s (sigma² - b_0) - n sigma²) = 0.
        half, product = 0.5 * (signal - b + sigma**2), (n - signal) * sigma**2 + signal * b
    root = np.sqrt(np.maximum(half**2 + product, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # The larger root, by the form that does not cancel.
        best = np.where(half > 0, product / (half + root), root - half)
    result: Array = np.maximum(np.where(np.isfinite(best), best, 0.0), 0.0)
    return result


def likelihood_loss(given: Counts, signal: Array, background: Array, constraint: Constraint) -> Array:
    """Twice the negative log-likelihood ratio ``(*,)`` to n events expected and a background as measured."""
    n, b, sigma = given
    expected = np.maximum(signal + background, 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        events = expected - n - xlogy(n, expected / np.where(n > 0, n, 1.0))
    if constraint == "gamma":
        off = (background - b) / b
        pull = (b / sigma) ** 2 * (off - np.log1p(np.maximum(off, -1 + 1e-300)))
    else:
        pull = 0.5 * ((background - b) / sigma) ** 2
    result: Array = 2 * (events + pull)
    return result


def _signed_root(given: Counts, constraint: Constraint) -> Array:
    nothing = np.zeros_like(given.n)
    loss = likelihood_loss(given, nothing, conditional_background(given, nothing, constraint), constraint)
    result: Array = np.sign(given.n - given.background) * np.sqrt(np.maximum(loss, 0.0))
    return result


def _marginal_p_value(given: Counts, constraint: Constraint) -> Array:
    n, b, sigma = given
    some = np.where(n > 0, n, 1.0)
    if constraint == "gamma":
        p = betainc(some, (b / sigma) ** 2 + 1, 1 / (1 + b / sigma**2))
    else:
        flat = Counts(*(part.ravel() for part in given))
        p = Marginal(flat, constraint).at_least(some.ravel()).reshape(n.shape)
    result: Array = np.where(n > 0, p, 1.0)
    return result
