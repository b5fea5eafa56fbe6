"""`bump_hunt`: is there a bump anywhere in a falling spectrum, all places that were looked at counted?

In each window the background is a fit to the rest of the spectrum (`spectrum.py`), and the local p-value is that of a
counting experiment whose background is as uncertain as the fit leaves it, normally in its logarithm (`counting.py`).
The smallest local p-value of all windows is small somewhere by chance; how often, pseudo-experiments say: spectra are
drawn from the fit to the whole spectrum, and go through the same fits, choice of order included, in the same windows.
The share of them with a smallest local p-value as small is the global p-value (the trials factor of Gross and Vitells,
arXiv:1005.1891, by brute force; the statistic is that of BumpHunter, arXiv:1101.0390, with the background refitted each
time).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sbi_physics.anomaly.binning import (
    Array,
    Mask,
    checked_counts,
    checked_edges,
    checked_window,
    events_per_weight,
    sliding_windows,
    window_bins,
)
from sbi_physics.anomaly.counting import discovery_p_value, significance_of
from sbi_physics.anomaly.falling import BinnedFunction, FallingFunction
from sbi_physics.anomaly.orders import OrderTest, checked_orders, fit_orders, usable_orders
from sbi_physics.anomaly.spectrum import SpectrumFit, fitted
from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.core.errors import BudgetError, ShapeError, UsageError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive, numpy_generator
from sbi_physics.diagnostics.uniformity import checked_level

__all__ = ["BumpHunt", "bump_hunt"]

_TOYS_AT_ONCE = 250
_LEAST_BACKGROUND = 1e-9


@dataclass(frozen=True, eq=False)
class BumpHunt:
    """The result of a search in W windows with T pseudo-experiments.

    Attributes:
        windows: ``(W, 2)`` lower and upper mass.
        observed: ``(W,)`` counts.
        expected: ``(W,)`` background, from the fit outside each window.
        uncertainty: ``(W,)`` its standard deviation.
        local_p_values: ``(W,)``.
        orders: ``(W,)`` numbers of parameters of the fits.
        fit: to the whole spectrum, from which pseudo-experiments are drawn.
        toy_p_values: ``(T,)`` the smallest local p-value of each pseudo-experiment.
        unconverged: share of the pseudo-experiments' fits that did not reach their maximum.
        seconds: what it took.
    """

    windows: Array
    observed: Array
    expected: Array
    uncertainty: Array
    local_p_values: Array
    orders: NDArray[np.intp]
    fit: SpectrumFit
    toy_p_values: Array
    unconverged: float
    seconds: float

    @property
    def best(self) -> int:
        """The window with the smallest local p-value; of those too small for a number, that with the largest pull."""
        pull = (self.observed - self.expected) / np.sqrt(np.maximum(self.expected, 1e-300) + self.uncertainty**2)
        return int(np.lexsort((-pull, self.local_p_values))[0])

    @property
    def best_window(self) -> tuple[float, float]:
        """Its lower and upper mass."""
        low, high = self.windows[self.best]
        return float(low), float(high)

    @property
    def local_significances(self) -> Array:
        """Of each window, in standard deviations, ``(W,)``."""
        return significance_of(self.local_p_values)

    @property
    def exceeding(self) -> int:
        """Pseudo-experiments whose smallest local p-value is no larger than that of the spectrum."""
        return int((self.toy_p_values <= self.local_p_values.min() * (1 + 1e-9)).sum())

    @property
    def global_p_value(self) -> float:
        """Probability of a smallest local p-value as small by chance: (k + 1) / (T + 1), never below the truth."""
        return (self.exceeding + 1) / (len(self.toy_p_values) + 1)

    @property
    def global_p_error(self) -> float:
        """Binomial standard deviation of the global p-value."""
        p, n = self.global_p_value, len(self.toy_p_values)
        return float(np.sqrt(p * (1 - p) / max(n, 1)))

    @property
    def global_significance(self) -> float:
        """Of the global p-value, in standard deviations: a lower limit where no pseudo-experiment exceeds."""
        return float(significance_of(self.global_p_value))

    @property
    def verdict(self) -> str:
        """What was found, in one sentence."""
        low, high = self.best_window
        where = f"largest excess from {low:g} to {high:g}: {self.observed[self.best]:g} where "
        what = f"{self.expected[self.best]:.4g} ± {self.uncertainty[self.best]:.2g} are expected"
        local = f"local significance {self.local_significances[self.best]:.1f}"
        if not len(self.toy_p_values):
            return f"{where}{what}, {local}"
        bound = "" if self.exceeding else "at least "
        p = f"p < {self.global_p_value:.2g}"
        if self.exceeding:
            p = f"p = {self.global_p_value:.2g} ± {self.global_p_error:.1g}"
        return f"{where}{what}, {local}, global {bound}{self.global_significance:.1f} ({p})"

    def table(self) -> list[dict[str, float]]:
        """A row for each window: its ends, counts, background, uncertainty, p-value, significance and order."""
        columns = {
            "low": self.windows[:, 0],
            "high": self.windows[:, 1],
            "observed": self.observed,
            "expected": self.expected,
            "uncertainty": self.uncertainty,
            "local_p_value": self.local_p_values,
            "local_significance": self.local_significances,
            "order": self.orders,
        }
        return [{name: column[i].item() for name, column in columns.items()} for i in range(len(self.windows))]


class _Window(NamedTuple):
    """A window, the functions outside and inside of it, and the events that a count in it is worth."""

    inside: Mask
    outside: BinnedFunction
    within: BinnedFunction
    orders: tuple[int, ...]
    worth: float


class _Scan(NamedTuple):
    """What all windows found in T spectra, each ``(T, W)``."""

    observed: Array
    expected: Array
    uncertainty: Array
    p_values: Array
    orders: NDArray[np.intp]
    converged: Mask


def bump_hunt(
    edges: Any,
    counts: Any,
    *,
    windows: Any = None,
    widths: Sequence[int] = (1, 2, 3),
    variances: Any = None,
    orders: Sequence[int] = (3, 4, 5),
    level: float = 0.05,
    test: OrderTest = "likelihood-ratio",
    sqrt_s: float = 13.0,
    toys: int = 1000,
    seed: int = 0,
    max_seconds: float | None = None,
    progress: bool = True,
) -> BumpHunt:
    """Search a spectrum for an excess in any of some windows.

    Args:
        edges: ``(B + 1,)`` increasing edges, in the unit of `sqrt_s`.
        counts: ``(B,)`` events, or sums of weights.
        windows: ``(W, 2)`` lower and upper masses that are edges, a pair for one window alone; None takes
            `sliding_windows`.
        widths: of those, in bins.
        variances: ``(B,)`` sums of squared weights, where events carry weights.
        orders: numbers of parameters to choose from, 2 to 5.
        level: the probability of taking a longer function than is needed.
        test: by which the number of parameters is chosen.
        sqrt_s: energy of the collision: 13 where masses are in TeV, 13000 where they are in GeV.
        toys: pseudo-experiments; 0 leaves the global p-value at 1.
        seed: of the pseudo-experiments.
        max_seconds: wall-clock budget; fewer pseudo-experiments are made where it ends.
        progress: whether to show a progress bar.

    Raises:
        ShapeError, NonFiniteError: counts are not one for each bin, or are NaN.
        SupportError: masses are not between 0 and `sqrt_s`.
        UsageError: the spectrum is empty, a count is negative, a window is outside or between edges, or too few bins
            have events outside of one.
        BudgetError: the budget allows no pseudo-experiment.
    """
    began = time.monotonic()
    bounds = checked_edges(edges, sqrt_s)
    values, spread = checked_counts(counts, len(bounds) - 1, variances)
    checked_level(level)
    known_keys([test], ["likelihood-ratio", "F"], "test")
    wanted = 0 if toys == 0 else positive_integer(toys, "toys")
    intervals = sliding_windows(bounds, widths) if windows is None else _checked_windows(windows)
    every, scale = checked_orders(orders), events_per_weight(values, spread)
    usable = usable_orders(values, every, "")
    function = FallingFunction.orthonormal(bounds, values, usable[-1], sqrt_s)
    binned = function.binned(bounds)
    places = [_place(bounds, values, scale, (low, high), binned, usable) for low, high in intervals]
    whole = np.ones(len(values), dtype=bool)
    fit = fitted(bounds, values, scale, whole, function, usable, level, test, None)
    start = np.pad(fit.coefficients, (0, usable[-1] - fit.order))
    found = _scan(places, values[None], scale, level, test, start)
    smallest, converged = _toys(places, fit, level, test, start, wanted, seed, began, max_seconds, progress)
    return BumpHunt(
        intervals,
        found.observed[0],
        found.expected[0],
        found.uncertainty[0],
        found.p_values[0],
        found.orders[0],
        fit,
        smallest,
        1 - converged,
        time.monotonic() - began,
    )


def _checked_windows(windows: Any) -> Array:
    try:
        given = np.atleast_2d(np.asarray(windows, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise UsageError(f"windows: expected pairs of masses (low, high), got {windows!r}") from error
    if given.ndim != 2 or given.shape[1] != 2 or not len(given):
        raise ShapeError(f"windows: expected shape (W, 2), got {given.shape}")
    return np.array([checked_window((low, high)) for low, high in given])


def _place(
    edges: Array,
    counts: Array,
    scale: Array,
    window: tuple[float, float],
    binned: BinnedFunction,
    orders: Sequence[int],
) -> _Window:
    inside = window_bins(edges, window)
    usable = usable_orders(counts[~inside], orders, f"outside the window {window[0]:g} to {window[1]:g}")
    held, variance = counts[inside].sum(), (counts / scale)[inside].sum()
    worth = float(held / variance) if held > 0 and variance > 0 else float(scale[inside].mean())
    return _Window(inside, binned.of(~inside, usable[-1]), binned.of(inside, usable[-1]), usable, worth)


def _scan(places: Sequence[_Window], counts: Array, scale: Array, level: float, test: OrderTest, start: Array) -> _Scan:
    """Local p-values of counts ``(T, B)`` in all windows."""
    found = [_look(place, counts, scale, level, test, start) for place in places]
    return _Scan(*(np.stack(part, -1) for part in zip(*found, strict=True)))


def _look(place: _Window, counts: Array, scale: Array, level: float, test: OrderTest, start: Array) -> tuple[Any, ...]:
    outside = ~place.inside
    fits = fit_orders(
        place.outside, counts[:, outside], scale[outside], place.orders, level=level, test=test, start=start
    )
    rows, bins = np.arange(len(counts)), np.ones(int(place.inside.sum()), dtype=bool)
    expected, variance = np.empty(len(counts)), np.empty(len(counts))
    converged = np.empty(len(counts), dtype=bool)
    for i, (order, fit) in enumerate(zip(fits.orders, fits.fits, strict=True)):
        mine = rows[fits.chosen == i]
        inside, slope = place.within.of(bins, order).integrals(fit.coefficients[mine])
        total = slope.sum(0)
        expected[mine] = inside.sum(0)
        variance[mine] = np.einsum("kt,tkl,lt->t", total, fit.covariance[mine], total, optimize=True)
        converged[mine] = fit.converged[mine]
    observed = counts[:, place.inside].sum(1)
    uncertainty = np.sqrt(np.maximum(variance, 0))
    p_values = discovery_p_value(
        place.worth * np.maximum(observed, 0),
        place.worth * np.maximum(expected, _LEAST_BACKGROUND),
        place.worth * uncertainty,
        constraint="lognormal",
    )
    return observed, expected, uncertainty, p_values, np.array(fits.orders)[fits.chosen], converged


def _toys(
    places: Sequence[_Window],
    fit: SpectrumFit,
    level: float,
    test: OrderTest,
    start: Array,
    wanted: int,
    seed: int,
    began: float,
    max_seconds: float | None,
    progress: bool,
) -> tuple[Array, float]:
    """The smallest local p-value of each pseudo-experiment, and the share of fits that converged."""
    smallest: list[Array] = []
    converged: list[float] = []
    expected, done = fit.expected, 0
    with progress_bar(wanted, "pseudo-experiments", enabled=progress) as advance:
        while done < wanted and (max_seconds is None or time.monotonic() - began < max_seconds):
            rows = min(_TOYS_AT_ONCE, wanted - done)
            random = numpy_generator(derive(seed, "toys", done))
            counts = random.poisson(fit.scale * expected, size=(rows, len(expected))) / fit.scale
            found = _scan(places, counts, fit.scale, level, test, start)
            smallest.append(found.p_values.min(1))
            converged.append(float(found.converged.mean()) * rows)
            done += rows
            advance(rows)
    if wanted and not done:
        raise BudgetError(f"bump hunt: the budget allows no pseudo-experiment (max_seconds={max_seconds})")
    return (np.concatenate(smallest) if smallest else np.empty(0)), (sum(converged) / done if done else 1.0)
