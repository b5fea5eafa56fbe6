r"""How far the histograms of single observables are apart, and how far they would be by chance.

For the shares p and q of real and generated events in common bins, the separation power (Diefenbacher et al. 2020,
arXiv:2009.03796; the measure of the CaloChallenge, arXiv:2410.21611) and the Jensen-Shannon divergence, in bits, are

$$ S = \tfrac12 \sum_k \frac{(p_k - q_k)^2}{p_k + q_k}, \qquad
   J = \tfrac12 \sum_k \left[p_k \log_2 \frac{2 p_k}{p_k + q_k} + q_k \log_2 \frac{2 q_k}{p_k + q_k}\right], $$

both from 0 to 1.  Neither is zero for equal distributions: with n and m events in K bins,
$S \to (1/n + 1/m)\,\chi^2_{K-1} / 4$, and J is the same over $2 \ln 2$.  That gives the expectation, and a p-value.

Bins hold equal shares of real events, the outermost ones are open.  Zero, and any value that fills a bin alone, is a
point mass with a bin of its own, so that 1e-9 is not taken for an exact zero; cut the generated events first if a
threshold belongs to the data.

With weights w the shares are sums of them, their variances follow from the sums of squares, and the p-value is that of
$\chi^2 = \sum_k (p_k - q_k)^2 / (\sigma_{p_k}^2 + \sigma_{q_k}^2)$ (Gagunashvili 2010, arXiv:0905.4221).  A bin
whose negative weights outweigh the others adds nothing to a distance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.random import derive, numpy_generator
from sbi_physics.diagnostics.events import checked_events, checked_weights, effective_number, observable_names
from sbi_physics.diagnostics.uniformity import checked_level

__all__ = ["HistogramDistance", "jensen_shannon", "separation_power"]

Array = np.ndarray[Any, Any]


class _Measure(NamedTuple):
    """A distance of shares in bins, which near zero is `unit` times the separation power."""

    word: str
    of: Callable[[Array, Array], Array]
    unit: float


_REPLICAS = 200
_FEWEST_IN_BIN = 10


@dataclass(frozen=True)
class HistogramDistance:
    """A distance between the histograms of D observables.

    Attributes:
        measure: ``"separation power"`` or ``"Jensen-Shannon divergence in bits"``.
        names: D names.
        value: from 0 to 1, ``(D,)``.
        error: its standard deviation, by bootstrap, ``(D,)``.
        expected: the mean for equal distributions, ``(D,)``.
        expected_error: the standard deviation for equal distributions, ``(D,)``.
        p_values: that equal distributions are as far apart, ``(D,)``.
        bins: in which there are events, ``(D,)``.
        level: the probability that equal distributions flunk, over all observables together.
    """

    measure: str
    names: tuple[str, ...]
    value: Tensor
    error: Tensor
    expected: Tensor
    expected_error: Tensor
    p_values: Tensor
    bins: Tensor
    level: float

    @property
    def excess(self) -> Tensor:
        """The distance less what is expected for equal distributions, ``(D,)``; it may be negative."""
        return self.value - self.expected

    @property
    def passed(self) -> bool:
        """Whether no observable differs significantly."""
        return bool((self.p_values > self.level / len(self.p_values)).all())

    @property
    def verdict(self) -> str:
        """One plain sentence that names the observable that differs most."""
        wrong = self.p_values <= self.level / len(self.p_values)
        excess = torch.where(wrong, self.excess, torch.full_like(self.value, -math.inf))
        i = int(self.p_values.argmin()) if self.passed else int(excess.argmax())
        found = (
            f"{float(self.value[i]):.2g} ± {float(self.error[i]):.1g}, where {float(self.expected[i]):.2g} is chance "
            f"(p-value {float(self.p_values[i]):.2g})"
        )
        if self.passed:
            return f"no observable differs: the largest deviation is in {self.names[i]}, {self.measure} {found}"
        return f"{int(wrong.sum())} of {len(wrong)} observables differ, most {self.names[i]}: {self.measure} {found}"


def separation_power(
    real: Any,
    generated: Any,
    bins: int | Sequence[float] | Tensor = 50,
    *,
    names: Sequence[str] | None = None,
    weights: Any = None,
    generated_weights: Any = None,
    level: float = 0.01,
    seed: int = 0,
) -> HistogramDistance:
    """Separation power between real and generated events, for each observable.

    Args:
        real: ``(n, *event)``, D numbers each, or ``(n,)``.
        generated: ``(m, *event)``.
        bins: how many bins of equal shares of real events (fewer where one would hold less than 10 real events), or
            the rising edges between bins for all observables; what lies beyond them falls in an open bin.
        names: D names of the observables.
        weights: of the real events ``(n,)``, ones where None; negative ones may be among them.
        generated_weights: likewise ``(m,)``.
        level: the probability that equal distributions flunk.
        seed: of the bootstrap.

    Raises:
        ShapeError: the shapes do not fit.
        NonFiniteError: a number is NaN or infinite.
        SupportError: the weights of a set have no sum above zero.
        UsageError: an argument is out of range.
    """
    how = _Measure("separation power", _separation, 1.0)
    return _distance((real, generated), bins, names, (weights, generated_weights), level, seed, how)


def jensen_shannon(
    real: Any,
    generated: Any,
    bins: int | Sequence[float] | Tensor = 50,
    *,
    names: Sequence[str] | None = None,
    weights: Any = None,
    generated_weights: Any = None,
    level: float = 0.01,
    seed: int = 0,
) -> HistogramDistance:
    """Jensen-Shannon divergence in bits between real and generated events, for each observable.

    Args:
        real: ``(n, *event)``, D numbers each, or ``(n,)``.
        generated: ``(m, *event)``.
        bins: as for `separation_power`.
        names: D names of the observables.
        weights: of the real events ``(n,)``, ones where None; negative ones may be among them.
        generated_weights: likewise ``(m,)``.
        level: the probability that equal distributions flunk.
        seed: of the bootstrap.

    Raises:
        ShapeError: the shapes do not fit.
        NonFiniteError: a number is NaN or infinite.
        SupportError: the weights of a set have no sum above zero.
        UsageError: an argument is out of range.
    """
    how = _Measure("Jensen-Shannon divergence in bits", _divergence, 0.5 / math.log(2))
    return _distance((real, generated), bins, names, (weights, generated_weights), level, seed, how)


def _separation(p: Array, q: Array) -> Array:
    both = p + q
    return np.asarray(0.5 * (np.square(p - q) * (both > 0) / np.where(both > 0, both, 1.0)).sum(-1))


def _divergence(p: Array, q: Array) -> Array:
    p, q = np.maximum(p, 0.0), np.maximum(q, 0.0)
    middle = 0.5 * (p + q)
    parts = (share * np.log2(np.where(share > 0, share, 1.0) / np.where(share > 0, middle, 1.0)) for share in (p, q))
    return np.asarray(0.5 * sum(part.sum(-1) for part in parts))


def _distance(
    events: tuple[Any, Any],
    bins: int | Sequence[float] | Tensor,
    names: Sequence[str] | None,
    weights: tuple[Any, Any],
    level: float,
    seed: int,
    measure: _Measure,
) -> HistogramDistance:
    """All numbers of one measure."""
    first, second = (part.cpu().numpy() for part in checked_events(*events))
    labels = observable_names(names, first.shape[1])
    inner = _edges(bins)
    checked_level(level)
    given = [
        checked_weights(some, len(part), name).numpy()
        for some, part, name in zip(weights, (first, second), ("weights", "generated_weights"), strict=True)
    ]
    equal = all((some == 1).all() for some in given)
    rows = []
    for i in range(first.shape[1]):
        random = numpy_generator(derive(seed, "histogram", i))
        filled = _filled(first[:, i], second[:, i], given, inner)
        rows.append(_one(filled, measure, random) if equal else _one_weighted(filled, measure, random))
    value, error, expected, expected_error, p_values, used = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return HistogramDistance(measure.word, labels, value, error, expected, expected_error, p_values, used.long(), level)


def _edges(bins: int | Sequence[float] | Tensor) -> int | Array:
    if isinstance(bins, int | np.integer) or np.ndim(np.asarray(bins)) == 0:
        return positive_integer(bins, "bins")
    edges = np.asarray(bins, dtype=np.float64)
    if edges.ndim != 1 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
        raise ShapeError(f"bins: expected a number of bins or rising edges (K,), got an array of shape {edges.shape}")
    return edges


class _Filled(NamedTuple):
    """Sums of weights, and of their squares, in each bin ``(K,)``."""

    sums: Array
    squares: Array

    @property
    def shares(self) -> Array:
        return np.asarray(self.sums / self.sums.sum())

    @property
    def variances(self) -> Array:
        """Of the shares, whose sum is known."""
        p, total = self.shares, self.sums.sum()
        return np.asarray((self.squares * (1 - 2 * p) + np.square(p) * self.squares.sum()) / total**2)

    @property
    def free_variances(self) -> Array:
        """Of the sums over the sum of all."""
        return np.asarray(self.squares / self.sums.sum() ** 2)


def _filled(real: Array, generated: Array, weights: Sequence[Array], bins: int | Array) -> tuple[_Filled, _Filled]:
    """The common bins that hold any event."""
    points: Array = np.zeros(0)
    if isinstance(bins, int):
        wanted = max(2, min(bins, int(effective_number(torch.from_numpy(weights[0])) + 1e-6) // _FEWEST_IN_BIN))
        points = _point_masses(real, generated, wanted)
        rest = real[~np.isin(real, points)]
        most = max(1, round(wanted * len(rest) / len(real)))
        bins = np.unique(np.quantile(rest, np.arange(1, most) / most)) if len(rest) else np.zeros(0)
    count, filled, some = len(bins) + 1 + len(points), [], np.zeros(1, dtype=bool)
    for values, given in zip((real, generated), weights, strict=True):
        place = np.searchsorted(bins, values, side="right")
        if len(points):
            which = np.minimum(np.searchsorted(points, values), len(points) - 1)
            place = np.where(points[which] == values, len(bins) + 1 + which, place)
        filled.append(_Filled(*(np.bincount(place, weights=x, minlength=count) for x in (given, np.square(given)))))
        some = some | (np.bincount(place, minlength=count) > 0)
    return _Filled(*(part[some] for part in filled[0])), _Filled(*(part[some] for part in filled[1]))


def _point_masses(real: Array, generated: Array, bins: int) -> Array:
    """Values that at least one of `bins` equal bins of real events consists of, and zero if it repeats; rising."""
    values, count = np.unique(real, return_counts=True)
    points = values[count >= max(2, len(real) / bins)]
    zeros = max(int((real == 0).sum()), int((generated == 0).sum()))
    return np.union1d(points, [0.0]) if zeros > 1 else points


def _one(filled: tuple[_Filled, _Filled], measure: _Measure, random: np.random.Generator) -> list[float]:
    """Value, error, expectation and its standard deviation, p-value and number of bins of one observable."""
    from scipy.stats import chi2

    (n, m), used = (round(one.sums.sum()) for one in filled), len(filled[0].sums)
    p, q = (one.shares for one in filled)
    value, scale = float(measure.of(p, q)), measure.unit * (1 / n + 1 / m) / 4
    spread = scale * math.sqrt(2 * (used - 1))
    replicas = measure.of(random.multinomial(n, p, _REPLICAS) / n, random.multinomial(m, q, _REPLICAS) / m)
    statistic = float(_separation(p, q)) * 4 / (1 / n + 1 / m)
    p_value = float(chi2.sf(statistic, used - 1)) if used > 1 else 1.0
    return [value, _error(replicas, spread), scale * (used - 1), spread, p_value, used]


def _one_weighted(filled: tuple[_Filled, _Filled], measure: _Measure, random: np.random.Generator) -> list[float]:
    """As `_one`, of weighted events."""
    from scipy.stats import chi2

    (p, q), used = (one.shares for one in filled), len(filled[0].sums)
    variance, free = (sum(getattr(one, name) for one in filled) for name in ("variances", "free_variances"))
    both = np.where(p + q > 0, p + q, math.inf)
    expected = measure.unit * 0.5 * float((variance / both).sum())
    spread = expected * math.sqrt(2 / max(used - 1, 1))
    draws = [_gamma(one.shares, one.free_variances, random) for one in filled]
    replicas = measure.of(*(draw / draw.sum(1, keepdims=True) for draw in draws))
    statistic = float((np.square(p - q) / np.where(free > 0, free, math.inf)).sum())
    p_value = float(chi2.sf(statistic, used - 1)) if used > 1 else 1.0
    return [float(measure.of(p, q)), _error(replicas, spread), expected, spread, p_value, used]


def _gamma(mean: Array, variance: Array, random: np.random.Generator) -> Array:
    """Draws ``(200, K)`` of numbers that are not negative; zero where the mean is not above zero."""
    some = (mean > 0) & (variance > 0)
    scale = np.where(some, variance, 1.0) / np.where(some, mean, 1.0)
    return np.where(some, random.gamma(np.where(some, mean / scale, 1.0), scale, (_REPLICAS, len(mean))), 0.0)


def _error(replicas: Array, spread: float) -> float:
    """Chance in the counts is in the replicas twice: drawn once, and once as a distance that is not there."""
    return math.sqrt(max(float(replicas.var()) - 2 * spread**2, spread**2))
