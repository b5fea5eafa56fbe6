"""Pictures of a resonance search: mass spectra with their fits and pulls, and local p-values against mass."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import chi2, norm

from sbi_physics.anomaly.binning import Array, Mask
from sbi_physics.anomaly.bump_hunt import BumpHunt
from sbi_physics.anomaly.spectrum import SpectrumFit
from sbi_physics.report.style import BAND, COLOURS, events_per, headline, with_unit

__all__ = ["p_value_figure", "spectrum_figure"]

_SMALL = 8
_WIDTH = 6.4
_MOST_LINES = 6
_FARTHEST = 32.0  # standard deviations that are drawn
_SIGMAS = 3.5  # as far as the pulls are drawn, if none is farther


def spectrum_figure(
    fits: SpectrumFit | Mapping[str, SpectrumFit], *, mass: str = "mass", unit: str = "", title: str = ""
) -> Figure:
    """Draw spectra with their fits, what the fits leave uncertain, and the pulls of each below.

    Args:
        fits: one, or several by the words that name them, such as "all events" and "after the cut".
        mass: name of the axis.
        unit: of the mass, where it is known.
        title: a sentence above; that of the fit where there is one alone.
    """
    named = {"": fits} if isinstance(fits, SpectrumFit) else dict(fits)
    rows = len(named)
    figure = Figure(figsize=(_WIDTH, 3.3 + 1.05 * rows), layout="constrained")
    axes = figure.subplots(rows + 1, 1, sharex=True, height_ratios=[3.2, *[1.0] * rows], squeeze=False)[:, 0]
    for i, (name, fit) in enumerate(named.items()):
        colour = COLOURS[i % len(COLOURS)]
        _spectrum(axes[0], fit, colour, name)
        _pulls(axes[i + 1], fit, colour)
    for fit in named.values():
        if fit.window is not None:
            for axis in axes:
                axis.axvspan(*fit.window, color=BAND, zorder=0, linewidth=0)
    axes[0].set_yscale("log")
    axes[0].set_ylabel(events_per(unit))
    axes[0].legend(frameon=False, fontsize=_SMALL, loc="upper right")
    edges = np.concatenate([fit.edges for fit in named.values()])
    axes[-1].set(xlabel=with_unit(mass, unit), xlim=(edges.min(), edges.max()))
    figure.align_ylabels(axes.tolist())
    headline(figure, title or (str(fits) if isinstance(fits, SpectrumFit) else ""))
    return figure


def p_value_figure(found: BumpHunt, *, mass: str = "mass", unit: str = "") -> Figure:
    """Draw the local p-value of each window against mass, with lines at whole standard deviations.

    Args:
        found: of `bump_hunt`.
        mass: name of the axis.
        unit: of the mass, where it is known.
    """
    figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
    axis = figure.subplots()
    shown = np.maximum(found.local_p_values, norm.sf(_FARTHEST))
    low, high = found.fit.edges[[0, -1]]
    deepest = max(3, int(np.ceil(norm.isf(shown.min()) + 0.3)))
    stride = -(-deepest // _MOST_LINES)
    for sigmas in range(stride, deepest + 1, stride):
        axis.axhline(norm.sf(sigmas), color="0.75", linewidth=0.8, linestyle="--", zorder=0)
        axis.text(high, norm.sf(sigmas), f" {sigmas} σ", va="center", fontsize=_SMALL, clip_on=False)
    inside = (found.fit.edges[:-1] >= found.windows[:, :1] - 1e-9) & (
        found.fit.edges[1:] <= found.windows[:, 1:] + 1e-9
    )
    bins = inside.sum(1)
    for i, count in enumerate(np.unique(bins)):
        _steps(
            axis, found, shown, bins == count, COLOURS[i % len(COLOURS)], f"{count} bin{'s' if count > 1 else ''} wide"
        )
    axis.plot(np.mean(found.best_window), shown[found.best], "o", mfc="none", mec="black", markersize=9)
    axis.set_yscale("log")
    axis.set(
        xlim=(low, high),
        ylim=(norm.sf(deepest + 0.1 * deepest + 0.3), 1.6),
        xlabel=with_unit(mass, unit),
        ylabel="local p-value",
    )
    axis.yaxis.set_major_locator(LogLocator(numticks=8))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.legend(frameon=False, fontsize=_SMALL, loc="lower left", ncols=3)
    headline(figure, found.verdict)
    return figure


def _spectrum(axis: Axes, fit: SpectrumFit, colour: str, name: str) -> None:
    width, middle = np.diff(fit.edges), 0.5 * (fit.edges[1:] + fit.edges[:-1])
    events = fit.counts * fit.scale
    # Central Poisson intervals (Garwood), in units of effective events.
    low = np.where(events > 0, 0.5 * chi2.ppf(norm.sf(1), 2 * np.maximum(events, 1e-9)), 0.0)
    high = 0.5 * chi2.isf(norm.sf(1), 2 * np.maximum(events, 0) + 2)
    errors = np.abs(np.stack([events - low, high - events])) / fit.scale / width
    seen = fit.counts > 0
    axis.errorbar(
        middle[seen],
        (fit.counts / width)[seen],
        errors[:, seen],
        fmt="o",
        color="black" if not name else colour,
        markersize=2.5,
        linewidth=0.9,
        label=name or "events",
    )
    fine = np.linspace(fit.edges[0], fit.edges[-1], 301)
    expected = fit.predict(fine)
    density, steps = expected.counts / np.diff(fine), 0.5 * (fine[1:] + fine[:-1])
    error = np.sqrt(np.diag(expected.covariance)) / np.diff(fine)
    label = f"fit, {fit.order} parameters, χ² / ndf = {fit.chi2:.1f} / {fit.ndf}"
    axis.plot(steps, density, color=colour, linewidth=1.2, label=label)
    axis.fill_between(
        steps, np.maximum(density - error, 1e-300), density + error, color=colour, alpha=0.25, linewidth=0
    )
    lowest = (fit.counts[seen] / width[seen]).min() / 5
    bottom, top = axis.get_ylim() if axis.get_yscale() == "log" else (np.inf, 0.0)
    axis.set_yscale("log")
    axis.set_ylim(min(bottom, lowest), max(top, 8 * (fit.counts / width).max()))


def _pulls(axis: Axes, fit: SpectrumFit, colour: str) -> None:
    reach = max(_SIGMAS, 1.1 * float(np.abs(fit.pulls).max()))
    axis.stairs(fit.pulls, fit.edges, fill=True, color=colour, alpha=0.8)
    for height in (-2, 2):
        axis.axhline(height, color="0.75", linewidth=0.8, linestyle="--")
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set(ylim=(-reach, reach), ylabel="pull [σ]")


def _steps(axis: Axes, found: BumpHunt, shown: Array, chosen: Mask, colour: str, label: str) -> None:
    """Windows of one width as bars, with a thin line from middle to middle."""
    windows, p = found.windows[chosen], shown[chosen]
    order = np.argsort(windows[:, 0])
    axis.plot(windows[order].mean(1), p[order], color=colour, linewidth=0.8, alpha=0.6)
    axis.hlines(p, windows[:, 0], windows[:, 1], color=colour, linewidth=1.6, label=label)
