"""Masses in bins: what a spectrum is made of, and the windows that are looked at.

A spectrum is B + 1 increasing `edges` and B `counts`; where events carry weights, their sums with the sums of the
squared weights as `variances`.  A weighted bin counts as $s n$ events with $s = n / v$: the scaled Poisson distribution
of Bohm and Zech (arXiv:1309.1287), which has the mean and the variance of the weighted sum.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sbi_physics.core.checks import as_tensor, finite, positive_integer
from sbi_physics.core.errors import ShapeError, SupportError, UsageError

__all__ = [
    "Array",
    "Mask",
    "checked_counts",
    "checked_edges",
    "count_events",
    "events_per_weight",
    "overlapping_bins",
    "sliding_windows",
    "window_bins",
]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_ENOUGH_EVENTS = 10.0
_SAME_EDGE = 1e-9


def count_events(mass: Any, edges: Any, weights: Any = None) -> tuple[Array, Array | None]:
    """Counts of events in bins, with their variances where the events carry weights.

    Args:
        mass: ``(n,)`` masses; those outside the bins are left out.
        edges: ``(B + 1,)`` increasing edges, in the unit of the masses.
        weights: ``(n,)`` weights, negative ones included, or None.

    Returns:
        Counts ``(B,)``, and variances ``(B,)`` or None.

    Raises:
        ShapeError: weights are not as many as masses.
        NonFiniteError: a mass or a weight is NaN or infinite.
        UsageError: the edges do not increase, no event is in the bins, or the weights there sum to zero or less.
    """
    bounds, values = checked_edges(edges), _numbers(mass, "mass")
    inside = (values >= bounds[0]) & (values <= bounds[-1])
    if not inside.any():
        raise UsageError(
            f"mass: expected events between the edges {bounds[0]:g} and {bounds[-1]:g}, got none of {len(values)}"
        )
    if weights is None:
        return np.histogram(values, bounds)[0].astype(np.float64), None
    given = _numbers(weights, "weights")
    if len(given) != len(values):
        raise ShapeError(f"weights: expected {len(values)}, one for each mass, got {len(given)}")
    if not given[inside].sum() > 0:
        raise UsageError(f"weights: expected a positive sum within the edges, got {given[inside].sum():g}")
    return np.histogram(values, bounds, weights=given)[0], np.histogram(values, bounds, weights=given**2)[0]


def checked_edges(edges: Any, sqrt_s: float = np.inf) -> Array:
    """Edges ``(B + 1,)`` as float64.

    Raises:
        NonFiniteError: an edge is NaN or infinite.
        UsageError: they do not increase, or are not masses between 0 and `sqrt_s`.
    """
    values = _numbers(edges, "edges")
    if len(values) < 2 or not (np.diff(values) > 0).all():
        raise UsageError(f"edges: expected at least 2 numbers that increase, got {_some(values)}")
    if sqrt_s < np.inf and not 0 < values[0] < values[-1] < sqrt_s:
        raise SupportError(
            f"edges: expected masses above 0 and below sqrt_s = {sqrt_s:g} (in one unit), "
            f"got {values[0]:g} to {values[-1]:g}"
        )
    return values


def checked_counts(counts: Any, bins: int, variances: Any = None) -> tuple[Array, Array | None]:
    """Counts ``(B,)`` and variances ``(B,)`` as float64; without variances counts may not be negative.

    Raises:
        ShapeError: they are not one for each bin.
        NonFiniteError: a number is NaN or infinite.
        UsageError: a count is negative, a variance is negative or missing, or all counts together are not positive.
    """
    values = _numbers(counts, "counts")
    if len(values) != bins:
        raise ShapeError(f"counts: expected {bins}, one for each bin, got {len(values)}")
    if variances is None and (values < 0).any():
        first = int(np.argmax(values < 0))
        raise UsageError(
            f"counts: expected none below 0 (weighted ones need variances), got {values[first]:g} in bin {first}"
        )
    if not values.sum() > 0:
        raise UsageError(f"counts: expected events in the spectrum, got a sum of {values.sum():g}")
    if variances is None:
        return values, None
    spread = _numbers(variances, "variances")
    if len(spread) != bins:
        raise ShapeError(f"variances: expected {bins}, one for each bin, got {len(spread)}")
    bad = (spread < 0) | ((spread == 0) & (values != 0))
    if bad.any():
        first = int(np.argmax(bad))
        raise UsageError(
            f"variances: expected positive numbers where there are counts, got {spread[first]:g} for "
            f"{values[first]:g} in bin {first}"
        )
    return values, spread


def events_per_weight(counts: Array, variances: Array | None) -> Array:
    """How many unweighted events a unit of weight is worth, $s = n / v$: ``(B,)``, 1 without weights.

    Bins of fewer than ten effective events take the ratio of all such bins together, of which their own fluctuation is
    a small part; if that is not positive, the ratio of the whole spectrum.
    """
    if variances is None:
        return np.ones_like(counts)
    overall = float(counts.sum() / variances.sum())
    filled = (counts > 0) & (counts**2 >= _ENOUGH_EVENTS * variances)
    sparse = counts[~filled].sum() / max(variances[~filled].sum(), 1e-300)
    ratio = np.full_like(counts, sparse if sparse > 0 else overall)
    ratio[filled] = counts[filled] / variances[filled]
    return ratio


def overlapping_bins(edges: Array, window: tuple[float, float]) -> Mask:
    """Which bins ``(B,)`` share mass with the window.

    Raises:
        UsageError: the window is not an interval, or none of it is within the edges.
    """
    low, high = checked_window(window)
    slack = _SAME_EDGE * (edges[-1] - edges[0])
    if low < edges[0] - slack or high > edges[-1] + slack:
        raise UsageError(
            f"window: expected an interval within the edges {edges[0]:g} and {edges[-1]:g}, got {low:g} to {high:g}"
        )
    chosen: Mask = (edges[1:] > low + slack) & (edges[:-1] < high - slack)
    return chosen


def checked_window(window: tuple[float, float]) -> tuple[float, float]:
    """The ends of a window as floats; raises `UsageError` where it is no interval."""
    try:
        low, high = (float(end) for end in window)
    except (TypeError, ValueError) as error:
        raise UsageError(f"window: expected two masses (low, high), got {window!r}") from error
    if not -np.inf < low < high < np.inf:
        raise UsageError(f"window: expected two masses (low, high) that increase, got {window!r}")
    return low, high


def window_bins(edges: Array, window: tuple[float, float]) -> Mask:
    """Which bins ``(B,)`` make up the window, whose ends are edges.

    Raises:
        UsageError: an end is not an edge, or outside of them.
    """
    chosen = overlapping_bins(edges, window)
    first, last = np.flatnonzero(chosen)[[0, -1]]
    if not np.allclose((edges[first], edges[last + 1]), window, rtol=0, atol=_SAME_EDGE * (edges[-1] - edges[0])):
        raise UsageError(
            f"window: expected ends that are edges of bins, got {window[0]:g} to {window[1]:g}; the bins there go from "
            f"{edges[first]:g} to {edges[last + 1]:g}"
        )
    return chosen


def sliding_windows(edges: Any, widths: Sequence[int] = (1, 2, 3), *, step: int = 1, margin: int = 2) -> Array:
    """Windows of some bins each, at all places.

    Args:
        edges: ``(B + 1,)`` increasing edges.
        widths: how many bins a window has.
        step: bins from one window to the next of the same width.
        margin: bins that are left on either side, so that no background is extrapolated far.

    Returns:
        Windows ``(W, 2)``, lower and upper mass.

    Raises:
        UsageError: no window has room.
    """
    bounds = checked_edges(edges)
    last, stride = len(bounds) - 1 - margin, positive_integer(step, "step")
    sizes = [positive_integer(width, "widths") for width in widths]
    found = [(bounds[i], bounds[i + n]) for n in sizes for i in range(margin, last - n + 1, stride)]
    if not found:
        raise UsageError(
            f"widths: expected windows that leave {margin} bins on both sides of {len(bounds) - 1}, got {sizes}"
        )
    return np.array(found)


def _numbers(value: Any, name: str) -> Array:
    tensor = as_tensor(value, name, dtype=torch.float64).cpu()
    if tensor.ndim != 1:
        raise ShapeError(f"{name}: expected shape (n,), got {tuple(tensor.shape)}")
    numbers: Array = finite(tensor, name).numpy()
    return numbers


def _some(values: Array) -> str:
    text = ", ".join(f"{value:g}" for value in values[:5])
    return f"[{text}{', ...' if len(values) > 5 else ''}]"
