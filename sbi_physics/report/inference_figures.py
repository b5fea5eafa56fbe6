"""Pictures of frequentist answers and of model comparison: profiles, confidence sets, their coverage, probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_physics.core.checks import as_tensor, finite
from sbi_physics.core.errors import UsageError
from sbi_physics.diagnostics.coverage_fit import LocalCoverage
from sbi_physics.diagnostics.probabilities import Reliability
from sbi_physics.posterior.confidence import ConfidenceRegion
from sbi_physics.posterior.evidence import EvidenceComparison
from sbi_physics.posterior.profile_curve import Profile
from sbi_physics.report.style import BAND, COLOURS, headline, panels

__all__ = ["confidence_region", "coverage_map", "model_probabilities", "profile", "reliability_curve"]

_BINS = 12
_MOST_PANELS = 5
_LEVELS = (0.68, 0.9)


def profile(result: Profile, levels: Sequence[float] = _LEVELS) -> Figure:
    """Draw a profile: the curve and the sets under it for one parameter of interest, the contours for two.

    Args:
        result: of `profile_likelihood`.
        levels: of the confidence sets.

    Raises:
        UsageError: the points of two parameters are no grid.
    """
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    labels = [_label(result.labels[i], result.units[i]) for i in map(result.names.index, result.interest)]
    if len(result.interest) == 1:
        _curve(axis, result, levels)
        axis.set(xlabel=labels[0], ylabel="log-likelihood less its maximum [nats]")
    else:
        _contours(figure, axis, result, levels)
        axis.set(xlabel=labels[0], ylabel=labels[1])
    axis.legend(frameon=True, edgecolor="none", framealpha=0.9, fontsize=8, loc="upper right")
    headline(figure, result.verdict)
    return figure


def _curve(axis: Axes, result: Profile, levels: Sequence[float]) -> None:
    order = result.points[:, 0].argsort()
    at, value = result.points[order, 0].numpy(), result.log_likelihood[order].numpy()
    best = float(result.best[0])
    deepest = max(result.threshold(level) for level in levels)
    # Between the points the root of the fall is a straight line, as in `Profile.interval`.
    grid = np.linspace(at.min(), at.max(), 1000)
    known = np.append(at, best)
    by_place = np.argsort(known)
    fall = np.sqrt(-np.append(np.clip(value, -1e6, 0.0), 0.0))[by_place]
    curve = -(np.interp(grid, known[by_place], fall) ** 2)
    for i, level in enumerate(sorted(levels, reverse=True)):
        depth = -result.threshold(level)
        inside: dict[str, Any] = {"where": curve >= depth, "alpha": 0.15 + 0.15 * i, "linewidth": 0}
        axis.fill_between(grid, -3 * deepest, curve, color=COLOURS[0], label=f"{level:.0%} set", **inside)
        axis.axhline(depth, color="0.5", linewidth=0.8, linestyle=":")
    axis.plot(grid, curve, color=COLOURS[0], linewidth=1.3, label="profile")
    axis.plot(at, value, "o", color=COLOURS[0], markersize=3)
    axis.plot([best], [0.0], "*", color=COLOURS[1], markersize=10, label="maximum")
    axis.set(xlim=(float(at.min()), float(at.max())), ylim=(-2.2 * deepest, 0.35 * deepest))


def _contours(figure: Figure, axis: Axes, result: Profile, levels: Sequence[float]) -> None:
    if len(result.shape) != 2:
        raise UsageError("profile: expected a grid to draw contours of two parameters, got points of your own")
    x, y = (result.points[:, i].view(result.shape).numpy() for i in (0, 1))
    depth = -result.log_likelihood.view(result.shape).nan_to_num(neginf=-1e3).numpy()
    deepest = max(result.threshold(level) for level in levels)
    filled = axis.contourf(x, y, depth, levels=np.linspace(0, 2.2 * deepest, 16).tolist(), cmap="Blues_r")
    figure.colorbar(filled, ax=axis, label="nats below the maximum", format="%.1f")
    for i, level in enumerate(sorted(levels)):
        style: dict[str, Any] = {"colors": [COLOURS[1]], "linestyles": "--" if i else "-", "linewidths": 1.4}
        axis.contour(x, y, depth, levels=[result.threshold(level)], **style)
        axis.plot([], [], color=COLOURS[1], linestyle="--" if i else "-", label=f"{level:.0%} set")
    best = result.best.tolist()
    axis.plot(best[:1], best[1:], "*", color=COLOURS[4], markeredgecolor="black", markersize=11, label="maximum")


def confidence_region(result: ConfidenceRegion, truth: Any = None) -> Figure:
    """Draw the points of a confidence set in all pairs of parameters, coloured by their p-value.

    The panels on the diagonal have the largest p-value at each value of one parameter: the projection of the set, which
    is what an interval of that parameter alone is.

    Args:
        result: of `NeymanConstruction.region`; of many parameters `select` some first.
        truth: ``(P,)`` values to mark, or None.

    Raises:
        UsageError: the set is empty, of more than five parameters, or `truth` has another length.
    """
    points, dims = result.points, len(result.points.names)
    if not len(result.p_values) or dims > _MOST_PANELS:
        raise UsageError(
            f"region: expected a set that is not empty, of at most {_MOST_PANELS} parameters (select some), got "
            f"{len(result.p_values)} points of {dims}"
        )
    marks = None if truth is None else finite(as_tensor(truth, "truth").reshape(-1), "truth").tolist()
    if marks is not None and len(marks) != dims:
        raise UsageError(f"truth: expected {dims} values, got {len(marks)}")
    figure = Figure(figsize=(2.5 * dims + 1.5, 2.3 * dims + 0.8), layout="constrained")
    axes = figure.subplots(dims, dims, squeeze=False, sharex="col")
    values, p_values = points.to_numpy(), result.p_values.numpy()
    # The likeliest points on top.
    order = np.argsort(p_values)
    labels = [_label(label, unit) for label, unit in zip(points.labels, points.units, strict=True)]
    for row in range(dims):
        for column in range(dims):
            axis = axes[row, column]
            if column > row:
                axis.axis("off")
                continue
            if row == column:
                _largest_p_value(axis, values[:, row], p_values, 1 - result.level)
            else:
                colour: dict[str, Any] = {"c": p_values[order], "cmap": "viridis", "vmin": 1 - result.level, "vmax": 1}
                drawn = axis.scatter(values[order, column], values[order, row], s=4, linewidth=0, **colour)
                if column == 0:
                    axis.set_ylabel(labels[row])
                if marks is not None:
                    axis.plot([marks[column]], [marks[row]], "+", color=COLOURS[1], markersize=12, markeredgewidth=2)
            if row == dims - 1:
                axis.set_xlabel(labels[column])
            if marks is not None and row == column:
                axis.axvline(marks[row], color=COLOURS[1], linewidth=1.5, linestyle="--")
    if dims > 1:
        figure.colorbar(drawn, ax=axes[0, -1], label="p-value", fraction=0.15, location="left")
    headline(figure, result.verdict)
    return figure


def _largest_p_value(axis: Axes, values: Any, p_values: Any, least: float) -> None:
    edges = np.linspace(values.min(), values.max(), 31)
    if not edges[-1] > edges[0]:
        edges = np.array([edges[0] - 0.5, edges[0] + 0.5])
    place = np.clip(np.digitize(values, edges) - 1, 0, len(edges) - 2)
    top = np.full(len(edges) - 1, least)
    np.maximum.at(top, place, p_values)
    axis.stairs(top, edges, baseline=least, fill=True, color=COLOURS[0], alpha=0.35)
    axis.stairs(top, edges, baseline=least, color=COLOURS[0], linewidth=1.3)
    axis.set(ylim=(least, 1.02), ylabel="largest p-value")
    axis.yaxis.tick_right()
    axis.yaxis.set_label_position("right")


def coverage_map(result: LocalCoverage, names: Sequence[str] | None = None) -> Figure:
    """Draw the coverage of sets along each parameter, and over the plane of the first two.

    The points are shares in bins of equal content, with binomial errors; the plane has the regression, as its
    difference from the level.

    Args:
        result: of `diagnostics.local_coverage`, or `NeymanConstruction.coverage`.
        names: the parameters to draw, in that order; the first four where None.

    Raises:
        UsageError: a name is not known.
    """
    chosen = list(names) if names is not None else list(result.names[: _MOST_PANELS - 1])
    for name in chosen:
        if name not in result.names:
            raise UsageError(f"names: expected one of {', '.join(result.names)}; got {name!r}")
    index = [result.names.index(name) for name in chosen]
    wide = len(chosen) + (len(chosen) > 1)
    figure = Figure(figsize=(3.2 * wide + 0.6, 2.8 * len(result.levels) + 0.4), layout="constrained")
    axes = figure.subplots(len(result.levels), wide, squeeze=False)
    for m, level in enumerate(result.levels.tolist()):
        for k, i in enumerate(index):
            _along(axes[m, k], result, m, i)
            axes[m, k].set(xlabel=result.names[i], ylabel="share that holds the truth" if k == 0 else "")
            axes[m, k].set_title(f"{level:.0%} sets", loc="left", fontsize=9)
        if len(chosen) > 1:
            _plane(figure, axes[m, -1], result, m, index[:2])
    axes[0, 0].legend(frameon=False, fontsize=8)
    headline(figure, result.verdict)
    return figure


def _along(axis: Axes, result: LocalCoverage, m: int, i: int) -> None:
    level = float(result.levels[m])
    order = np.argsort(result.theta[:, i].numpy())
    at, hit = result.theta[:, i].numpy()[order], result.covered[m].double().numpy()[order]
    parts = [part for part in np.array_split(np.arange(len(at)), _BINS) if len(part)]
    centre = [at[part].mean() for part in parts]
    share = np.array([hit[part].mean() for part in parts])
    spread = np.array([np.sqrt(level * (1 - level) / len(part)) for part in parts])
    axis.fill_between(centre, level - 2 * spread, level + 2 * spread, color=BAND, linewidth=0, label="2 sigma")
    axis.axhline(level, color="0.4", linewidth=1, linestyle="--")
    axis.errorbar(centre, share, spread, fmt="o", color=COLOURS[0], markersize=4, capsize=2, label="found")
    reach = max(5 * float(spread.max()), 1.3 * float(np.abs(share - level).max()))
    axis.set_ylim(max(level - reach, -0.02), min(level + reach, 1.02))


def _plane(figure: Figure, axis: Axes, result: LocalCoverage, m: int, index: Sequence[int]) -> None:
    away = 100 * (result.local[m] - result.levels[m]).numpy()
    most = max(1.0, float(np.abs(away).max()))
    x, y = (result.theta[:, i].numpy() for i in index)
    drawn = axis.scatter(x, y, c=away, cmap="RdBu", vmin=-most, vmax=most, s=6, linewidth=0)
    figure.colorbar(drawn, ax=axis, label="coverage less level [%]")
    axis.set(xlabel=result.names[index[0]], ylabel=result.names[index[1]])


def model_probabilities(result: EvidenceComparison) -> Figure:
    """Draw the log-evidences of models, relative to the largest, and their probabilities, with errors.

    Args:
        result: of `compare_evidences`.
    """
    figure, (left, right) = panels(2, 2, width=4.0, height=1.4 + 0.35 * len(result.names))
    places = np.arange(len(result.names))
    below = (result.log_evidence - result.log_evidence.max()).numpy()
    left.errorbar(below, places, xerr=result.log_evidence_error.numpy(), fmt="o", color=COLOURS[0], capsize=3)
    for bound, word in ((1.0, "weak"), (2.5, "moderate"), (5.0, "strong")):
        left.axvline(-bound, color="0.6", linewidth=0.8, linestyle=":")
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "va": "bottom", "ha": "center"}
        left.annotate(word, (-bound, 1.01), fontsize=7, **place)
    left.set(xlabel="ln evidence less that of the best [nats]", yticks=places, ylim=(len(places) - 0.4, -0.6))
    left.set_yticklabels(list(result.names))
    left.set_xlim(min(-6.0, 1.15 * float(below.min())), max(1.0, 1.5 * float(result.log_evidence_error.max())))
    right.barh(places, result.probability.numpy(), height=0.55, color=COLOURS[0], label="after the data")
    right.errorbar(
        result.probability.numpy(), places, xerr=result.probability_error.numpy(), fmt="none", color="black", capsize=3
    )
    right.plot(result.prior.numpy(), places, "|", color=COLOURS[1], markersize=14, markeredgewidth=2, label="before")
    right.set(xlabel="probability", yticks=[], xlim=(0, 1.02), ylim=(len(places) - 0.4, -0.6))
    right.legend(frameon=False, fontsize=8, loc="lower right")
    headline(figure, result.verdict)
    return figure


def reliability_curve(result: Reliability) -> Figure:
    """Draw the share of events of each class over the probability that it was given.

    Args:
        result: of `diagnostics.reliability`, or `ModelPosterior.check`.
    """
    figure = Figure(figsize=(5, 4.8), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.4", linewidth=1, linestyle="--", label="right probabilities")
    for i, name in enumerate(result.names):
        style: dict[str, Any] = {"fmt": "o-", "markersize": 4, "capsize": 2, "linewidth": 1.0}
        colour = COLOURS[i % len(COLOURS)]
        axis.errorbar(
            result.predicted[i].numpy(),
            result.observed[i].numpy(),
            result.error[i].numpy(),
            color=colour,
            label=name,
            **style,
        )
    axis.set(xlabel="probability given", ylabel="share of events", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    headline(figure, result.verdict)
    return figure


def _label(label: str, unit: str) -> str:
    return f"{label} [{unit}]" if unit else label
