"""The bump hunt beside pyBumpHunter: the same spectra, windows, backgrounds and number of pseudo-experiments.

Ours fits its background beside each window, in each pseudo-experiment again.  pyBumpHunter is told a background: that
of our fit to the whole spectrum, as one would in a search, or the true one, which nobody has.  The bumps are Gaussian,
at random places, and so large that a likelihood ratio which knows background, place and width expects `STRENGTH`
standard deviations.  What that ratio finds is the ceiling; it pays for no place that it did not look at.  The same
ratio with the background fitted beside the bump says how much of the distance is for not knowing the background.
"""

import contextlib
import io
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyBumpHunter import BumpHunter1D
from scipy.optimize import brentq, minimize
from scipy.stats import kstest, norm, poisson

from sbi_physics.anomaly.bump_hunt import BumpHunt, bump_hunt
from sbi_physics.anomaly.counting import significance_of
from sbi_physics.core.random import derive
from sbi_physics.store.cms_dijet import load_cms_dijet

__all__ = ["bumps"]

Array = NDArray[np.float64]

OURS, FITTED, TRUE = "sbi_physics", "pyBumpHunter, our fit", "pyBumpHunter, true background"
KNOWN, SHAPE = "likelihood ratio, all known", "likelihood ratio, background fitted"
WINDOW = "Poisson in the known window, background known"
EVENTS, BINS, RANGE, SQRT_S = 20_000, 24, (2.0, 5.0), 13.0
WIDTHS = (1, 2, 3)
# Bins on both sides in which ours looks for nothing; pyBumpHunter does not see them.
MARGIN = 2
PLACES, WIDTH, STRENGTH = (2.6, 4.4), 0.08, 3.5
LEVEL = 0.05
# Events in a unit of the fitted signal, so that it varies as much as the other parameters.
SCALE = 50.0


class _Found(NamedTuple):
    p_value: float
    significance: float
    window: tuple[float, float]
    local_p_value: float
    seconds: float


def bumps(spectra: int, injected: int, toys: int, seed: int) -> dict[str, Any]:
    """Both on the spectrum of CMS, on spectra without a signal, and on spectra with one."""
    return {
        "cms": _cms(5 * toys, seed),
        "null": _null(spectra, toys // 2, seed),
        "injected": _injected(injected, toys, seed),
    }


def _cms(toys: int, seed: int) -> dict[str, Any]:
    spectrum = load_cms_dijet()
    ours, hunt = _ours(spectrum.edges.numpy(), spectrum.counts.numpy(), toys, seed)
    theirs = _theirs(spectrum.edges.numpy(), spectrum.counts.numpy(), hunt.fit.expected, toys, seed)
    return {"toys": toys, "windows": len(hunt.windows), OURS: ours._asdict(), FITTED: theirs._asdict()}


def _null(spectra: int, toys: int, seed: int) -> dict[str, Any]:
    edges, expected = _background()
    random = np.random.default_rng(derive(seed, "null"))
    found: dict[str, list[_Found]] = {OURS: [], FITTED: [], TRUE: []}
    for i, counts in enumerate(random.poisson(expected, size=(spectra, BINS))):
        for method, one in _all(edges, counts, expected, toys, derive(seed, "null", i)).items():
            found[method].append(one)
    rows = {}
    for method, ones in found.items():
        p = [one.p_value for one in ones]
        rows[method] = {
            "uniform_p_value": float(kstest(p, "uniform").pvalue),
            "mean": float(np.mean(p)),
            "below_level": int(np.sum(np.array(p) <= LEVEL)),
            "p_values": p,
        }
    return {"spectra": spectra, "toys": toys, "methods": rows}


def _injected(spectra: int, toys: int, seed: int) -> dict[str, Any]:
    edges, expected = _background()
    random = np.random.default_rng(derive(seed, "injected"))
    found: dict[str, list[_Found]] = {OURS: [], FITTED: [], TRUE: []}
    errors: dict[str, list[float]] = {method: [] for method in found}
    signals: list[float] = []
    known: dict[str, list[float]] = {KNOWN: [], SHAPE: [], WINDOW: []}
    for i, place in enumerate(random.uniform(*PLACES, spectra)):
        shape = np.diff(norm.cdf(edges, place, WIDTH))
        events = brentq(lambda s, at=shape: _ratio(expected + s * at, expected, at) - STRENGTH, 1, EVENTS)
        counts = random.poisson(expected + events * shape)
        signals.append(events)
        known[KNOWN].append(_ratio(counts, expected, shape))
        known[SHAPE].append(_fitted_ratio(edges, counts, shape))
        known[WINDOW].append(_known_window(edges, counts, expected, place))
        for method, one in _all(edges, counts, expected, toys, derive(seed, "injected", i)).items():
            found[method].append(one)
            errors[method].append(abs(sum(one.window) / 2 - place))
    rows = {
        method: {
            "significance": _quartiles([one.significance for one in ones]),
            "power": float(np.mean([one.p_value <= LEVEL for one in ones])),
            "place_error": float(np.median(errors[method])),
            "seconds": float(np.median([one.seconds for one in ones])),
        }
        for method, ones in found.items()
    }
    exact = {
        name: {"significance": _quartiles(z), "power": float(np.mean(significance_of(LEVEL) <= np.array(z)))}
        for name, z in known.items()
    }
    return {
        "spectra": spectra,
        "toys": toys,
        "level": LEVEL,
        "strength": STRENGTH,
        "signal": [float(min(signals)), float(max(signals))],
        "exact": exact,
        "methods": rows,
    }


def _all(edges: Array, counts: Array, expected: Array, toys: int, seed: int) -> dict[str, _Found]:
    ours, hunt = _ours(edges, counts, toys, seed)
    return {
        OURS: ours,
        FITTED: _theirs(edges, counts, hunt.fit.expected, toys, seed),
        TRUE: _theirs(edges, counts, expected, toys, seed),
    }


def _ours(edges: Array, counts: Array, toys: int, seed: int) -> tuple[_Found, BumpHunt]:
    began = time.process_time()
    hunt = bump_hunt(edges, counts, widths=WIDTHS, sqrt_s=SQRT_S, toys=toys, seed=seed, progress=False)
    seconds = time.process_time() - began
    local = float(hunt.local_p_values.min())
    return _Found(hunt.global_p_value, hunt.global_significance, hunt.best_window, local, seconds), hunt


def _theirs(edges: Array, counts: Array, expected: Array, toys: int, seed: int) -> _Found:
    inner = slice(MARGIN, -MARGIN)
    bins = edges[inner]
    began = time.process_time()
    hunter = BumpHunter1D(
        rang=[bins[0], bins[-1]],
        width_min=WIDTHS[0],
        width_max=WIDTHS[-1],
        npe=toys,
        nworker=1,
        bins=bins,
        seed=seed % 2**32,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        hunter.bump_scan(counts[inner], expected[inner], is_hist=True)
    seconds = time.process_time() - began
    first, local = int(hunter.min_loc_ar[0]), float(hunter.min_Pval_ar[0])
    window = float(bins[first]), float(bins[first + int(hunter.min_width_ar[0])])
    return _Found(float(hunter.global_Pval), float(hunter.significance), window, local, seconds)


def _background() -> tuple[Array, Array]:
    """Edges [TeV] and expected counts of a dijet function of three parameters."""
    edges = np.linspace(*RANGE, BINS + 1)
    fine = np.linspace(*RANGE, 200 * BINS + 1)
    x = 0.5 * (fine[1:] + fine[:-1]) / SQRT_S
    share = ((1 - x) ** 8 * x**-5.2).reshape(BINS, -1).sum(1)
    return edges, EVENTS * share / share.sum()


def _ratio(counts: Array, expected: Array, shape: Array) -> float:
    """Root of the likelihood ratio of s times the shape above the background, s of 0 or more, to s = 0."""

    def slope(s: float) -> float:
        return float((shape * (counts / (expected + s * shape) - 1)).sum())

    if slope(0.0) <= 0:
        return 0.0
    s = brentq(slope, 0.0, 10 * counts.sum())
    return float(np.sqrt(2 * (counts * np.log1p(s * shape / expected) - s * shape).sum()))


def _fitted_ratio(edges: Array, counts: Array, shape: Array) -> float:
    """The same root where the background is the dijet function of three parameters that fits best beside each s."""
    fine = np.linspace(*RANGE, 200 * BINS + 1)
    x = 0.5 * (fine[1:] + fine[:-1]) / SQRT_S
    basis = np.linalg.qr(np.stack([np.ones_like(x), np.log(x), np.log1p(-x)], -1))[0] * len(x) ** 0.5
    bins = np.arange(0, len(x), len(x) // BINS)

    def loss(place: Array) -> tuple[float, Array]:
        density = np.exp(basis @ place[:3]) / len(x)
        inside = np.add.reduceat(density[:, None] * np.column_stack([np.ones_like(x), basis]), bins)
        total = inside[:, 0] + place[3] * SCALE * shape
        pull = 1 - counts / total
        gradient = np.append(pull @ inside[:, 1:], SCALE * pull @ shape)
        return float((total - counts * np.log(total)).sum()), gradient

    slopes = np.polynomial.polynomial.polyfit(0.5 * (edges[1:] + edges[:-1]), np.log(np.maximum(counts, 0.5)), 2)
    start = np.linalg.lstsq(basis, np.polynomial.polynomial.polyval(x * SQRT_S, slopes) + np.log(BINS), rcond=None)[0]
    options = {"maxiter": 500, "ftol": 1e-15, "gtol": 1e-6}
    best = [
        minimize(
            loss,
            np.append(start, 0.0),
            jac=True,
            method="L-BFGS-B",
            bounds=[(None, None)] * 3 + [(0.0, most)],
            options=options,
        ).fun
        for most in (0.0, None)
    ]
    return float(np.sqrt(max(2 * (best[0] - best[1]), 0.0)))


def _known_window(edges: Array, counts: Array, expected: Array, place: float) -> float:
    """Significance of the count in the two bins next to the place of the bump, of the true background."""
    first = int(np.clip(np.rint((place - edges[0]) / (edges[1] - edges[0])) - 1, 0, BINS - 2))
    window = slice(first, first + 2)
    return float(significance_of(poisson.sf(counts[window].sum() - 1, expected[window].sum())))


def _quartiles(values: list[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, [0.25, 0.5, 0.75])]
