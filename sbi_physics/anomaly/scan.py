r"""Searches in many windows of mass, and searches for signals that were put in.

`scan_regions` makes a whole search in each window.  Windows are many chances: if W of them were independent, the global
p-value of the smallest would be $1 - (1 - p)^W$ (Šidák 1967, doi:10.1080/01621459.1967.10482935); where they overlap
they are alike, and it is less: the number is an upper bound.  `inject` adds signal events to data and searches, several
times for each number of them: the significance that is to be expected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sbi_physics.anomaly.counting import significance_of
from sbi_physics.anomaly.events import checked_events
from sbi_physics.anomaly.search import EFFICIENCIES, ResonantSearch
from sbi_physics.anomaly.search_result import SearchResult
from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import check_seed, derive, seeded

__all__ = ["Injection", "RegionScan", "inject", "scan_regions"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RegionScan:
    """Searches in several windows.

    Attributes:
        results: in the order of the windows.
    """

    results: tuple[SearchResult, ...]

    @property
    def windows(self) -> Array:
        """``(W, 2)``."""
        return np.array([[one.region.low, one.region.high] for one in self.results])

    @property
    def p_values(self) -> Array:
        """Of each window, over all its cuts, ``(W,)``; where no pseudo-experiment was as extreme, what one would be."""
        return np.array([max(one.global_p_value, 1 / (one.toys + 1)) for one in self.results])

    @property
    def best(self) -> SearchResult:
        """The window with the smallest p-value."""
        return self.results[int(self.p_values.argmin())]

    @property
    def global_p_value(self) -> float:
        """Of the smallest p-value in all windows: an upper bound where they overlap."""
        return float(-np.expm1(len(self.results) * np.log1p(-self.p_values.min())))

    @property
    def significance(self) -> float:
        """The global p-value in standard deviations."""
        return float(significance_of(self.global_p_value))

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        region, there = self.best.region, float(significance_of(self.p_values.min()))
        bound = "more than " if self.best.beyond_toys else ""
        return (
            f"of {len(self.results)} windows {region.low:g} to {region.high:g} is the least like background: "
            f"{bound}{there:.1f} standard deviations there, {bound}{self.significance:.1f} in all"
        )


@dataclass(frozen=True, eq=False)
class Injection:
    """Searches for signals that were put in.

    Attributes:
        numbers: signal events put in at all masses, ``(k,)``.
        local: local significances ``(k, draws)`` of the best cut.
        overall: significances over all cuts ``(k, draws)``.
        without_cut: significances of the whole signal region ``(k, draws)``.
    """

    numbers: tuple[int, ...]
    local: Array
    overall: Array
    without_cut: Array

    def bands(self, which: str = "overall") -> Array:
        """The 16, 50 and 84 % quantiles over the draws, ``(k, 3)``."""
        result: Array = np.quantile(getattr(self, which), [0.16, 0.5, 0.84], axis=1).T
        return result


def scan_regions(
    features: Any,
    mass: Any,
    windows: Sequence[Sequence[float]],
    *,
    weights: Any = None,
    efficiencies: Sequence[float] = EFFICIENCIES,
    toys: int = 20_000,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> RegionScan:
    """Search in each window of mass, all others being its control region.

    Args:
        features: ``(n, D)``.
        mass: ``(n,)``.
        windows: lowest and highest mass of each.
        weights: ``(n,)``, or None.
        efficiencies: shares of the background that the cuts keep.
        toys: pseudo-experiments in each window.
        seed: of everything random.
        progress: whether to show progress bars.
        **options: of `ResonantSearch`.

    Raises:
        UsageError: there are no windows; and what `ResonantSearch` raises.
    """
    if not len(windows):
        raise UsageError("windows: expected at least one, got none")
    events = checked_events(features, mass, weights)
    searches = [ResonantSearch(tuple(window), **options) for window in windows]
    results = []
    with progress_bar(len(searches), "windows", enabled=progress) as advance:
        for k, search in enumerate(searches):
            search.fit(events.features, events.mass, weights=events.weights, seed=derive(seed, k), progress=False)
            results.append(search.search(efficiencies=efficiencies, toys=toys, seed=derive(seed, "toys", k)))
            advance(1)
    return RegionScan(tuple(results))


def inject(
    search: ResonantSearch,
    features: Any,
    mass: Any,
    signal_features: Any,
    signal_mass: Any,
    numbers: Sequence[int],
    *,
    weights: Any = None,
    draws: int = 3,
    efficiencies: Sequence[float] = EFFICIENCIES,
    seed: int = 0,
    progress: bool = True,
) -> Injection:
    """Add signal events to data, and search.

    Args:
        search: is fitted anew each time.
        features: of the data ``(n, D)``.
        mass: of the data ``(n,)``.
        signal_features: ``(m, D)``.
        signal_mass: ``(m,)``.
        numbers: how many signal events to add, at most m.
        weights: of the data ``(n,)``, or None.
        draws: searches for each number, with other signal events.
        efficiencies: shares of the background that the cuts keep.
        seed: of everything random.
        progress: whether to show a progress bar.

    Raises:
        UsageError: more signal events are asked for than there are; and what `ResonantSearch.fit` raises.
    """
    check_seed(seed)
    data = checked_events(features, mass, weights)
    signal = checked_events(signal_features, signal_mass, None, name="signal ", columns=data.features.shape[1])
    wanted, repeats = [int(number) for number in numbers], positive_integer(draws, "draws")
    if not wanted or min(wanted) < 0 or max(wanted) > len(signal.mass):
        raise UsageError(f"numbers: expected numbers from 0 to {len(signal.mass)}, as there are, got {list(numbers)}")
    found = np.zeros((3, len(wanted), repeats))
    with progress_bar(len(wanted) * repeats, "injections", enabled=progress) as advance:
        for i, number in enumerate(wanted):
            for j in range(repeats):
                with seeded(derive(seed, "signal", i, j)):
                    rows = torch.randperm(len(signal.mass))[:number]
                mixed = [torch.cat([a, b[rows]]) for a, b in zip(data, signal, strict=True)]
                search.fit(mixed[0], mixed[1], weights=mixed[2], seed=derive(seed, "search", i, j), progress=False)
                result = search.search(efficiencies=efficiencies, seed=derive(seed, "toys", i, j))
                found[:, i, j] = result.best.fit.significance, result.significance, result.before[1].significance
                advance(1)
    return Injection(tuple(wanted), found[0], found[1], found[2])
