"""Pictures of posteriors and of training: data in, a matplotlib `Figure` out.

Those of calibration are in `calibration_figures`, those of the other checks in `diagnostic_figures`.  Matplotlib and
corner are imported in this folder and nowhere else.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sbi_physics.core.checks import as_tensor, finite, known_keys
from sbi_physics.core.circle import on_one_turn
from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.core.samples import Samples
from sbi_physics.report.calibration_figures import calibration
from sbi_physics.report.style import COLOURS

__all__ = ["calibration", "corner", "curve", "losses", "save_figure"]

# Bins of a corner plot: their width in standard deviations, and how many they may be.
_BIN, _FEWEST_BINS, _MOST_BINS = 0.17, 40, 150
_ENDINGS = (".png", ".pdf", ".svg")


def corner(
    samples: Samples | Mapping[str, Samples], *more: Samples, truth: Any = None, names: Sequence[str] | None = None
) -> Figure:
    """Draw one- and two-dimensional marginals of one or several samples over each other.

    Contours hold 68 % and 95 % of the draws.  The circle of a periodic parameter is cut where there are fewest draws.

    Args:
        samples: draws, or a mapping from names to draws.
        *more: further draws of the same parameters.
        truth: ``(P,)`` values to mark, or those of some by their names, or None.
        names: legend entries; those of the mapping where None.

    Raises:
        UsageError: the samples are not of the same parameters, or of several observations; `truth` or `names` has
            another length than they.
    """
    import corner as corner_package

    sets = list(samples.values()) if isinstance(samples, Mapping) else [samples, *more]
    for one in sets:
        if not isinstance(one, Samples):
            raise UsageError(
                f"corner: expected Samples, got {type(one).__name__}; sp.Samples(array, names) makes them of an array"
            )
    legend = list(names) if names is not None else (list(samples) if isinstance(samples, Mapping) else [])
    if not sets or any(one.names != sets[0].names or one.values.ndim != 2 for one in sets):
        raise UsageError("corner: expected at least one set of draws of one observation, all of the same parameters")
    if legend and len(legend) != len(sets):
        raise UsageError(f"names: expected {len(sets)}, one for each set of draws, got {len(legend)}")
    dims = len(sets[0].names)
    marks = _marks(truth, sets[0].names)
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(sets))]
    labels = [f"{label} [{unit}]" if unit else label for label, unit in zip(sets[0].labels, sets[0].units, strict=True)]
    figure = Figure(figsize=(2.1 * dims + 1, 2.1 * dims + 1))
    values, marks = _on_one_turn(sets, marks)
    limits = _limits(values, sets, marks)
    bins = _bins(values, limits)
    for one, drawn, colour in zip(sets, values, colours, strict=True):
        corner_package.corner(
            drawn,
            weights=None if one.log_weights is None else one.weights.numpy(),
            fig=figure,
            labels=labels,
            range=limits,
            bins=bins,
            smooth=1.0,
            levels=(0.68, 0.95),
            color=colour,
            max_n_ticks=3,
            plot_datapoints=False,
            plot_density=False,
            fill_contours=False,
            hist_kwargs={"density": True, "linewidth": 1.4},
            contour_kwargs={"linewidths": 1.4},
            quiet=True,
        )
    handles = [Line2D([], [], color=c, linewidth=2, label=name) for c, name in zip(colours, legend, strict=False)]
    if marks is not None:
        known = [None if np.isnan(mark) else mark for mark in marks]
        corner_package.overplot_lines(figure, known, color="0.3", linewidth=1, linestyle="--")
        handles += [Line2D([], [], color="0.3", linewidth=1, linestyle="--", label="truth")] if handles else []
    _legend(figure, handles, dims)
    return figure


def _marks(truth: Any, names: Sequence[str]) -> list[float] | None:
    """The truth of each parameter; NaN where it is not known."""
    if truth is None:
        return None
    if isinstance(truth, Mapping):
        known_keys(list(truth), list(names), "truth")
        finite(as_tensor(list(truth.values()), "truth"), "truth")
        return [float(truth.get(name, np.nan)) for name in names]
    marks: list[float] = finite(as_tensor(truth, "truth").reshape(-1), "truth").tolist()
    if len(marks) != len(names):
        raise UsageError(f"truth: expected {len(names)} values, got {len(marks)}")
    return marks


def _on_one_turn(sets: Sequence[Samples], marks: list[float] | None) -> tuple[list[NDArray[Any]], list[float] | None]:
    """Draws of all sets and the truth, periodic parameters on one turn, the same for all."""
    values = [one.to_numpy().astype(float) for one in sets]
    first, marks = sets[0], None if marks is None else list(marks)
    ends = [] if first.bounds is None else first.bounds.tolist()
    for i, (low, high) in ((i, end) for i, end in enumerate(ends) if first.periodic[i]):
        marked = marks is not None and not np.isnan(marks[i])
        column = [each[:, i] for each in values] + ([np.array([marks[i]])] if marks is not None and marked else [])
        weights = [one.weights for one in sets] + ([torch.zeros(1, dtype=torch.float64)] if marked else [])
        together = torch.as_tensor(np.concatenate(column))
        turned = on_one_turn(together, torch.cat(weights) / len(sets), low, high - low).numpy()
        for each, part in zip(values, np.split(turned, np.cumsum([len(one) for one in values])), strict=False):
            each[:, i] = part
        if marks is not None and marked:
            marks[i] = float(turned[-1])
    return values, marks


def _bins(values: Sequence[NDArray[Any]], limits: Sequence[tuple[float, float]]) -> list[int]:
    """So many that those of the narrowest set are a sixth of its standard deviation wide, and tails do not widen it."""
    ends = np.array(limits)
    narrowest = np.min([np.subtract(*np.quantile(one, [0.84, 0.16], axis=0)) / 2 for one in values], axis=0)
    wanted = (ends[:, 1] - ends[:, 0]) / np.maximum(_BIN * narrowest, 1e-300)
    return [int(count) for count in wanted.clip(_FEWEST_BINS, _MOST_BINS)]


def _limits(
    values: Sequence[NDArray[Any]], sets: Sequence[Samples], marks: Sequence[float] | None
) -> list[tuple[float, float]]:
    """Ranges that hold nearly all draws of all sets, and the truth."""
    low, high = np.quantile(np.concatenate(values), [0.0005, 0.9995], axis=0)
    if marks is not None:
        margin = 0.05 * (high - low)
        low, high = np.fmin(low, marks - margin), np.fmax(high, marks + margin)
    for one in sets:
        if one.bounds is not None:
            ends = one.bounds.double().numpy().copy()
            ends[list(one.periodic)] = -np.inf, np.inf
            low, high = np.maximum(low, ends[:, 0]), np.minimum(high, ends[:, 1])
    return [(float(a), float(b)) if b > a else (float(a) - 1, float(a) + 1) for a, b in zip(low, high, strict=True)]


def _legend(figure: Figure, handles: list[Line2D], dims: int) -> None:
    if not handles:
        return
    if dims > 1:
        size = 13 if dims > 2 else 10
        figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.97, 0.97), frameon=False, fontsize=size)
        return
    # With one panel there is no empty corner: make room above the histogram.
    axis = figure.axes[0]
    axis.set_ylim(0, axis.get_ylim()[1] * (1.05 + 0.11 * len(handles)))
    axis.legend(handles=handles, loc="upper right", frameon=False, fontsize=8)


def curve(
    grid: Any,
    curves: Any,
    points: Sequence[Any],
    *,
    noise: float | None = None,
    x_label: str = "",
    y_label: str = "",
    title: str = "",
) -> Figure:
    """Draw the posterior of a curve as bands over the measured points, with residuals below.

    Args:
        grid: ``(M,)`` abscissae.
        curves: ``(n, M)`` one curve for each posterior draw; the bands hold 68 % and 95 % of them.
        points: ``(x, y, error, model at x)`` of the measurements; without the model there are no residuals.
        noise: extra standard deviation of the points, drawn as a longer bar.
        x_label: words below the abscissa.
        y_label: words beside the ordinate.
        title: words above.
    """
    x, values = np.asarray(grid), np.asarray(curves)
    at, measured, error, *model = (np.asarray(column) for column in points)
    figure = Figure(figsize=(9, 5.5 if model else 4), layout="constrained")
    axes = figure.subplots(2 if model else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 1] if model else None)[
        :, 0
    ]
    low95, low68, median, high68, high95 = np.quantile(values, [0.025, 0.16, 0.5, 0.84, 0.975], axis=0)
    axes[0].fill_between(x, low95, high95, color=COLOURS[0], alpha=0.18, linewidth=0, label="95 %")
    axes[0].fill_between(x, low68, high68, color=COLOURS[0], alpha=0.35, linewidth=0, label="68 %")
    axes[0].plot(x, median, color=COLOURS[0], linewidth=1.3, label="median")
    panels = [(axes[0], measured)] + ([(axes[1], measured - model[0])] if model else [])
    for axis, heights in panels:
        if noise:
            axis.errorbar(at, heights, np.hypot(error, noise), fmt="none", color="0.6", linewidth=0.8)
        axis.errorbar(at, heights, error, fmt="o", color="black", markersize=3.5, linewidth=1.2)
    axes[0].set(ylabel=y_label, xlim=(float(x.min()), float(x.max())))
    axes[0].set_title(title, loc="left")
    # Above the frame: there is no corner that the points are sure to leave empty.
    axes[0].legend(frameon=False, ncols=3, fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    if model:
        axes[1].axhline(0, color=COLOURS[0], linewidth=1)
        axes[1].set(ylabel="residual")
    axes[-1].set(xlabel=x_label)
    return figure


def losses(train: Sequence[float], validation: Sequence[float], best_epoch: int) -> Figure:
    """Draw the loss over the epochs of a training run."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(train, color=COLOURS[0], label="training")
    axis.plot(validation, color=COLOURS[1], label="validation (averaged weights)")
    axis.axvline(best_epoch, color="0.5", linestyle=":", label="kept")
    axis.set(xlabel="epoch", ylabel="loss [nats]")
    axis.legend(frameon=False)
    return figure


def check_ending(path: str | Path) -> None:
    """Raise `UsageError` unless a path ends as figures do that can be written."""
    if Path(path).suffix.lower() not in _ENDINGS:
        raise UsageError(f"{path}: expected a figure that ends in {', '.join(_ENDINGS)}")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, PDF or SVG, by the ending of the path.

    Raises:
        UsageError: the path has another ending.
        StoreError: the file cannot be written.
    """
    check_ending(path)
    try:
        with mpl.rc_context({"svg.hashsalt": "sbi_physics"}):
            figure.savefig(path, dpi=150)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error
