"""The page of a resonance search: spectra, template against data, what the cuts found, and how good they are."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sbi_physics.anomaly.binning import Array
from sbi_physics.anomaly.events import Events
from sbi_physics.anomaly.scan import Injection, RegionScan
from sbi_physics.anomaly.search_result import SearchResult
from sbi_physics.anomaly.significance import SignificanceImprovement
from sbi_physics.anomaly.spectrum import SpectrumFit
from sbi_physics.report.style import BAND, COLOURS, events_per, headline, panels, with_unit

__all__ = ["injection_figure", "region_scan_figure", "search_figure", "template_figure"]

_SMALL = 8
_BINS = 40
_SPREAD = (0.001, 0.999)


def search_figure(
    result: SearchResult,
    signal: Events,
    template: Events,
    *,
    names: Sequence[str] = (),
    improvement: SignificanceImprovement | None = None,
    unit: str = "",
) -> Figure:
    """Draw the page of a search.

    Args:
        result: of the search.
        signal: the events of the signal region.
        template: background drawn for it.
        names: of the features.
        improvement: of the score, where labels are known.
        unit: of the mass, where it is known.
    """
    features = signal.features.shape[1]
    more = 3 + (2 if improvement is not None else 0)
    figure, axes = panels(more + features, 4)
    _spectra(axes[0], result, unit)
    _pulls(axes[1], result, unit)
    _significances(axes[2], result)
    if improvement is not None:
        _receiver(axes[3], improvement)
        _improvement(axes[4], improvement)
    for i, axis in enumerate(axes[more:]):
        _feature(axis, signal, template, i, names[i] if i < len(names) else f"feature {i}")
    headline(figure, result.verdict)
    return figure


def template_figure(data: Events, template: Events, *, names: Sequence[str] = ()) -> Figure:
    """Draw each feature of data, and of a template with as many events."""
    figure, axes = panels(data.features.shape[1], 4)
    for i, axis in enumerate(axes):
        _feature(axis, data, template, i, names[i] if i < len(names) else f"feature {i}")
    return figure


def region_scan_figure(scan: RegionScan, *, unit: str = "") -> Figure:
    """Draw the p-value of each window against mass."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    middle, half = scan.windows.mean(1), np.diff(scan.windows, axis=1)[:, 0] / 2
    axis.errorbar(middle, scan.p_values, xerr=half, fmt="o", color=COLOURS[0], markersize=4)
    _sigma_lines(axis, float(scan.p_values.min()))
    axis.set(xlabel=with_unit("mass", unit), ylabel="p-value of the window", yscale="log")
    headline(figure, scan.verdict)
    return figure


def injection_figure(injection: Injection) -> Figure:
    """Draw the significance of searches against the number of signal events that were put in."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    for k, (which, label) in enumerate({"overall": "after the cuts", "without_cut": "without a cut"}.items()):
        low, middle, high = injection.bands(which).T
        axis.plot(injection.numbers, middle, "o-", color=COLOURS[k], label=label)
        axis.fill_between(injection.numbers, low, high, color=COLOURS[k], alpha=0.2, linewidth=0)
    axis.axhline(3, color="0.6", linestyle=":")
    axis.axhline(5, color="0.6", linestyle=":")
    axis.set(xlabel="signal events put in", ylabel="standard deviations")
    axis.legend(frameon=False, fontsize=_SMALL)
    headline(figure, f"Median and 68 % of {injection.local.shape[1]} draws")
    return figure


def _spectra(axis: Axes, result: SearchResult, unit: str) -> None:
    """Spectra before and after the cuts, with their fits."""
    width = np.diff(result.edges)
    middle = 0.5 * (result.edges[1:] + result.edges[:-1])
    sets: list[tuple[str, Array, SpectrumFit | None]] = [("all", result.counts, result.spectrum)]
    sets += [(f"{point.efficiency:.2g}", point.counts, point.spectrum) for point in result.points]
    for k, (name, counts, fit) in enumerate(sets):
        colour, seen = COLOURS[k % len(COLOURS)], counts > 0
        axis.errorbar(
            middle[seen],
            (counts / width)[seen],
            yerr=(np.sqrt(counts) / width)[seen],
            fmt="o",
            markersize=2,
            linewidth=0.7,
            color=colour,
            label=name,
        )
        if fit is not None:
            axis.plot(middle, fit.expected / width, color=colour, linewidth=1)
    axis.axvspan(result.region.low, result.region.high, color=BAND, zorder=0, linewidth=0)
    axis.set(yscale="log", xlabel=with_unit("mass", unit), ylabel=events_per(unit))
    axis.legend(frameon=False, fontsize=_SMALL - 1, title="background kept", title_fontsize=_SMALL - 1, ncols=2)


def _pulls(axis: Axes, result: SearchResult, unit: str) -> None:
    """Pulls of the best cut."""
    fit = result.best.spectrum or result.spectrum
    middle = 0.5 * (fit.edges[1:] + fit.edges[:-1])
    axis.axvspan(result.region.low, result.region.high, color=BAND, zorder=0, linewidth=0)
    axis.bar(middle, fit.pulls, width=np.diff(fit.edges), color=COLOURS[0])
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set(xlabel=with_unit("mass", unit), ylabel="pull")
    axis.set_title(f"background kept {result.best.efficiency:.2g}: {fit}", fontsize=_SMALL, loc="left", wrap=True)


def _significances(axis: Axes, result: SearchResult) -> None:
    """Local significance of each cut, by both estimates of the background."""
    shares = [point.efficiency for point in result.points]
    for k, which in enumerate(("fit", "template")):
        values = [getattr(point, which).significance for point in result.points]
        axis.plot(shares, values, "o-", color=COLOURS[k], label=f"background by {which}")
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set(xscale="log", xlabel="background kept", ylabel="local standard deviations")
    axis.legend(frameon=False, fontsize=_SMALL)


def _receiver(axis: Axes, improvement: SignificanceImprovement) -> None:
    axis.plot(improvement.signal_efficiency, 1 / improvement.background_efficiency, color=COLOURS[0])
    share = np.linspace(0.01, 1, 100)
    axis.plot(share, 1 / share, color="0.6", linestyle=":", label="chance")
    axis.set(yscale="log", xlabel="signal kept", ylabel="1 / background kept")
    axis.legend(frameon=False, fontsize=_SMALL)


def _improvement(axis: Axes, improvement: SignificanceImprovement) -> None:
    axis.plot(improvement.signal_efficiency, improvement.values, color=COLOURS[0])
    axis.axhline(1, color="0.6", linestyle=":")
    axis.set(xlabel="signal kept", ylabel="significance improvement")
    axis.set_title(
        f"of the scores (scores.npy): largest {improvement.maximum:.1f},\n"
        f"at least {improvement.minimum} background events",
        fontsize=_SMALL,
        loc="left",
    )


def _feature(axis: Axes, data: Events, template: Events, column: int, name: str) -> None:
    """Data with errors over the template, scaled to them."""
    x, t = data.features[:, column], template.features[:, column]
    low, high = (float(value) for value in _range(x))
    edges = np.linspace(low, high, _BINS + 1)
    ratio = float(data.weights.sum() / template.weights.sum())
    made = np.histogram(t.numpy(), edges, weights=ratio * template.weights.numpy())[0]
    counts = np.histogram(x.numpy(), edges, weights=data.weights.numpy())[0]
    squares = np.histogram(x.numpy(), edges, weights=data.weights.square().numpy())[0]
    axis.stairs(made, edges, fill=True, color="0.8", label="template")
    middle = 0.5 * (edges[1:] + edges[:-1])
    axis.errorbar(middle, counts, yerr=np.sqrt(squares), fmt=".", markersize=3, color=COLOURS[0], label="data")
    axis.set(xlabel=name, ylabel="events")
    axis.legend(frameon=False, fontsize=_SMALL)


def _range(x: Tensor) -> tuple[float, float]:
    low, high = np.quantile(x.numpy(), _SPREAD)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _sigma_lines(axis: Axes, smallest: float) -> None:
    from scipy.stats import norm

    for sigma in range(1, 7):
        p_value = float(norm.sf(sigma))
        axis.axhline(p_value, color="0.75", linestyle=":", linewidth=0.8)
        axis.annotate(f"{sigma}σ", (1, p_value), xycoords=("axes fraction", "data"), fontsize=_SMALL, va="bottom")
        if p_value < smallest:
            break
