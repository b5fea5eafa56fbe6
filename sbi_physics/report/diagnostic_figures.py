"""Pictures of the checks of one observation, and of what more simulations would gain."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_physics.core.errors import UsageError
from sbi_physics.diagnostics.learning import LearningCurve
from sbi_physics.diagnostics.local_two_sample import LocalTest
from sbi_physics.diagnostics.predictive import PredictiveCheck
from sbi_physics.diagnostics.reach import Reach
from sbi_physics.report.style import COLOURS, headline, histogram_with_marks, panels

__all__ = ["learning", "local_test", "predictive", "reach"]

_MOST_MARKS = 5
_MOST_LABELS = 12


def local_test(result: LocalTest, observation: int = 0) -> Figure:
    """Draw the local two-sample test: the statistic among those after exchanges, and what the truth seems to be.

    Args:
        result: of `diagnostics.lc2st`.
        observation: which of the observations.

    Raises:
        UsageError: there is no such observation.
    """
    b = _index(observation, len(result.statistic))
    figure, axes = panels(1 + len(result.names), 4 if len(result.names) > 2 else 3)
    p = f"p = {float(result.p_values[b]):.2g}"
    histogram_with_marks(
        axes[0],
        result.null[:, b],
        [float(result.statistic[b])],
        label="after exchanges",
        mark_labels=[p],
        logarithmic=float(result.statistic[b]) > 4 * float(result.null[:, b].max()),
    )
    axes[0].set(xlabel="classifier statistic t", ylabel="classifiers")
    axes[0].legend(frameon=False, fontsize=8)
    for i, name in enumerate(result.names):
        values = result.samples[b, :, i].numpy()
        bins = np.histogram_bin_edges(values, bins=30).tolist()
        axes[i + 1].hist(values, bins=bins, density=True, color="0.75", label="posterior")
        style: dict[str, Any] = {
            "histtype": "step",
            "color": COLOURS[1],
            "linewidth": 1.5,
            "label": "the truth, to first order",
        }
        axes[i + 1].hist(values, bins=bins, weights=result.weights[b].numpy(), density=True, **style)
        axes[i + 1].set(xlabel=name, yticks=[])
        if i == 0:
            axes[1].set_ylim(0, 1.3 * axes[1].get_ylim()[1])
            axes[1].legend(frameon=False, fontsize=8)
    headline(figure, result.verdicts[b])
    return figure


def predictive(result: PredictiveCheck) -> Figure:
    """Draw a posterior predictive check: each statistic in predictive standard deviations, and the joint distance.

    Args:
        result: of `diagnostics.predictive_check`.
    """
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2.4, 1])
    _statistics(left, result)
    histogram_with_marks(
        right,
        result.replicated_distance,
        [result.distance],
        label="simulated",
        mark_labels=[f"observed, p = {result.distance_p_value:.2g}\n(distance alone)"],
        logarithmic=result.distance > 3 * float(result.replicated_distance.max()),
    )
    right.set(xlabel="Mahalanobis distance", ylabel="simulations")
    right.legend(frameon=False, fontsize=8)
    headline(figure, result.verdict)
    return figure


def _statistics(axis: Axes, result: PredictiveCheck) -> None:
    predicted = np.isfinite(result.replicated.numpy()).any(0)
    there = np.flatnonzero(np.isfinite(result.deviations.numpy()) & predicted)
    if not len(there):
        axis.text(0.5, 0.5, "no statistic varies", ha="center")
        return
    rows = result.replicated.numpy()[:, there]
    mean, deviation = np.nanmean(rows, 0), np.nanstd(rows, 0)
    standard = (rows - mean) / np.where(deviation > 0, deviation, 1.0)
    found = (result.observed.numpy()[there] - mean) / np.where(deviation > 0, deviation, 1.0)
    low95, low68, high68, high95 = np.nanquantile(standard, [0.025, 0.16, 0.84, 0.975], axis=0)
    few = len(result.names) <= 40
    draw: dict[str, Any] = {"step": "mid", "linewidth": 0, "color": COLOURS[0]}
    edge = np.concatenate([[there[0] - 0.5], there, [there[-1] + 0.5]])
    for low, high, alpha, label in ((low95, high95, 0.18, "95 % predicted"), (low68, high68, 0.35, "68 %")):
        first, last = (np.pad(ends, 1, mode="edge") for ends in (low, high))
        axis.fill_between(edge, first, last, alpha=alpha, label=label, **draw)
    axis.plot(there, found, "o", color="black", markersize=4 if few else 2, label="observed")
    worst = [i for i in result.worst if i in there and abs(float(result.deviations[i])) > 2]
    for i in worst:
        height = found[np.flatnonzero(there == i)[0]]
        axis.plot([i], [height], "o", color=COLOURS[1], markersize=6)
        axis.annotate(result.names[i], (i, height), xytext=(5, 4), textcoords="offset points", fontsize=8)
    top = max(3.5, 1.15 * float(np.abs(found).max()))
    axis.set(ylabel="deviation [predictive sigma]", ylim=(-top, 1.25 * top), xlim=(-0.5, len(result.names) - 0.5))
    if len(result.names) <= _MOST_LABELS:
        axis.set_xticks(range(len(result.names)), result.names, rotation=30, ha="right", fontsize=8)
    else:
        axis.set_xlabel("entry of the observation")
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")


def reach(result: Reach) -> Figure:
    """Draw how far observations lie from the training simulations, beside held-out simulations.

    Args:
        result: of `diagnostics.misspecification`; the five observations farthest out are marked.
    """
    figure, axes = panels(3, 3, height=3.2)
    marked = sorted(result.p_values.argsort(stable=True)[:_MOST_MARKS].tolist())
    measures = (
        ("Mahalanobis distance", result.distance, result.held_out_distance),
        ("distance to nearest simulations", result.neighbour_distance, result.held_out_neighbour_distance),
        ("largest residual [sigma]", result.largest_residual, result.held_out_largest_residual),
    )
    alone = len(result.p_values) == 1
    for axis, (label, found, held_out) in zip(axes, measures, strict=True):
        marks = [float(found[b]) for b in marked]
        finite = [mark for mark in marks if np.isfinite(mark)]
        histogram_with_marks(
            axis,
            held_out[marked[0]],
            marks,
            label="held-out simulations",
            mark_labels=["the observation" if alone else f"observation {b}" for b in marked],
            logarithmic=max(finite, default=0.0) > 3 * float(held_out[marked[0]].nan_to_num(nan=0.0).max()),
        )
        axis.set(xlabel=label)
    axes[0].set(ylabel="simulations")
    axes[0].set_ylim(0, axes[0].get_ylim()[1] * (1 + 0.09 * len(marked)))
    axes[0].legend(frameon=True, edgecolor="none", framealpha=0.9, fontsize=8)
    headline(figure, result.verdict)
    return figure


def learning(result: LearningCurve) -> Figure:
    """Draw held-out log-density over the number of simulations, and the power law that extrapolates it.

    The bars are errors of the difference to the last point: what moves all points alike is left out.

    Args:
        result: of `diagnostics.learning_curve`.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    sizes = result.sizes.numpy()
    for r in range(result.repeated.shape[1]):
        axis.plot(sizes, result.repeated[:, r], ".", color="0.6", label="single fits" if r == 0 else None)
    axis.errorbar(sizes, result.log_prob, result.rise_error, fmt="o", color=COLOURS[0], capsize=2, label="mean")
    grid = np.geomspace(sizes[0], 2 * sizes[-1], 100)
    law = result.power_law(grid)
    if law is not None and result.limit is not None:
        axis.plot(grid, law, color=COLOURS[1], linewidth=1.3, label=f"power law, exponent {result.exponent:.2f}")
        axis.axhline(result.limit, color=COLOURS[1], linewidth=1, linestyle=":", label="its limit")
    expected = float(result.log_prob[-1]) + result.gain
    axis.errorbar(
        [2 * sizes[-1]], [expected], [result.gain_error], fmt="s", color=COLOURS[2], capsize=2, label="twice as many"
    )
    axis.set(xscale="log", xlabel="training simulations", ylabel="held-out log-density [nats]")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    headline(figure, result.verdict)
    return figure


def _index(observation: int, count: int) -> int:
    if not 0 <= observation < count:
        raise UsageError(f"observation: expected a number from 0 to {count - 1}, got {observation}")
    return observation
