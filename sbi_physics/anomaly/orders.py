r"""How many parameters a falling spectrum needs, for many spectra at once.

The function of fewest parameters is taken that no longer one improves upon: the deviance of each longer function must
not be smaller by more than chance would have it, by the likelihood ratio (a chi-square with as many degrees of freedom
as there are further parameters) or by Fisher's test, which divides by the deviance that the longer function leaves and
so asks for more where neither describes the spectrum.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2
from scipy.stats import f as fisher

from sbi_physics.anomaly.binning import Array
from sbi_physics.anomaly.falling import BinnedFunction, CountFit, fit_counts
from sbi_physics.core.errors import UsageError

__all__ = ["OrderFits", "OrderTest", "checked_orders", "fit_orders", "usable_orders"]

OrderTest = Literal["likelihood-ratio", "F"]

_MOST = 5


class OrderFits(NamedTuple):
    """Fits of several functions to T spectra.

    Attributes:
        orders: numbers of parameters, ascending.
        fits: one for each.
        chosen: place in `orders` of the function that is taken, ``(T,)``.
        p_values: that the function improves upon no shorter one but by chance, ``(T, orders)``: the smallest over those
            that are longer; 1 for the longest.
    """

    orders: tuple[int, ...]
    fits: tuple[CountFit, ...]
    chosen: NDArray[np.intp]
    p_values: Array


def checked_orders(orders: Sequence[int]) -> tuple[int, ...]:
    """Orders that are sorted and known, else `UsageError`."""
    known = range(2, _MOST + 1)
    try:
        given = tuple(sorted(set(orders)))
    except TypeError as error:
        raise UsageError(f"orders: expected numbers of parameters such as (3, 4, 5), got {orders!r}") from error
    if not given or any(isinstance(k, bool) or k not in known for k in given):
        raise UsageError(f"orders: expected numbers of parameters from 2 to {_MOST}, got {orders!r}")
    return tuple(int(k) for k in given)


def usable_orders(counts: Array, orders: Sequence[int], where: str) -> tuple[int, ...]:
    """Those orders for which the bins with events ``(B,)`` are more than the parameters.

    Raises:
        UsageError: there are none.
    """
    filled = int((counts > 0).sum())
    usable = tuple(k for k in orders if k < filled)
    if not usable:
        raise UsageError(
            f"counts: expected more than {min(orders)} bins with events {where} to fit {min(orders)} parameters, "
            f"got {filled}; use more bins or more of the spectrum"
        )
    return usable


def fit_orders(
    function: BinnedFunction,
    counts: Array,
    scale: Array,
    orders: Sequence[int],
    *,
    level: float,
    test: OrderTest,
    start: Array | None = None,
) -> OrderFits:
    """Fit functions of all `orders` to counts ``(T, B)`` and choose one for each spectrum.

    Args:
        function: of B bins, with the coefficients of the longest.
        counts: ``(T, B)``.
        scale: events that a count is worth, ``(B,)``.
        orders: numbers of parameters, ascending.
        level: the probability of taking a longer function than is needed, for each that is longer.
        test: ``"likelihood-ratio"`` or ``"F"``.
        start: coefficients ``(K,)`` from which the fits start, or None.
    """
    everything = np.ones(len(function.values), dtype=bool)
    fits = tuple(
        fit_counts(function.of(everything, k), counts, scale, None if start is None else start[:k]) for k in orders
    )
    left = np.stack([fit.deviance for fit in fits], -1)
    p_values = np.ones_like(left)
    for i, short in enumerate(orders):
        for j, long in enumerate(orders[i + 1 :], i + 1):
            gain = np.maximum(left[:, i] - left[:, j], 0)
            if test == "F":
                rest = counts.shape[1] - long
                p = fisher.sf(gain / (long - short) * rest / np.maximum(left[:, j], 1e-300), long - short, rest)
            else:
                p = chi2.sf(gain, long - short)
            p_values[:, i] = np.minimum(p_values[:, i], p)
    return OrderFits(tuple(orders), fits, np.argmax(p_values > level, axis=-1), p_values)
