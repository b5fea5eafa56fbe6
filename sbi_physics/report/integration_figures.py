"""Pictures of an integration: how its error falls, how its weights are spread, and what its events look like."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_physics.report.style import COLOURS, headline, panels

__all__ = ["convergence_panel", "event_panel", "integration_figure", "weight_panel"]

_SMALL = 8
_BINS = 60
_DECADES = (-2.0, 1.5)


def integration_figure(
    rounds: Mapping[str, Sequence[tuple[float, float, float]]],
    weights: Mapping[str, Any],
    events: Mapping[str, Sequence[Any]],
    *,
    title: str = "",
) -> Figure:
    """Draw the error against calls, the weights, and the distributions of events.

    Args:
        rounds: calls, value and error of each round, by the name of the method.
        weights: of points drawn from the learned maps, ``(n,)`` each, by the name of the method.
        events: by the name of an observable, its values of brute force ``(n,)`` and of the events ``(m,)``.
        title: a sentence above.
    """
    figure, axes = panels(2 + len(events), 3)
    convergence_panel(axes[0], rounds)
    weight_panel(axes[1], weights)
    for axis, (name, (reference, found)) in zip(axes[2:], events.items(), strict=True):
        event_panel(axis, name, reference, found)
    headline(figure, title)
    return figure


def convergence_panel(axis: Axes, rounds: Mapping[str, Sequence[tuple[float, float, float]]]) -> None:
    """Draw the relative error of each round against the calls up to it.

    Args:
        axis: where.
        rounds: calls, value and error of each round, by the name of the method.
    """
    for colour, (name, each) in zip(COLOURS, rounds.items(), strict=False):
        calls, value, error = np.asarray(each, dtype=float).T
        axis.loglog(np.cumsum(calls), error / np.abs(value), "o-", color=colour, markersize=3, label=name)
    axis.set(xlabel="evaluations up to the round", ylabel="relative error of the round")
    axis.legend(frameon=False, fontsize=_SMALL)


def weight_panel(axis: Axes, weights: Mapping[str, Any]) -> None:
    """Draw the weights over their mean: the narrower, the better, and the right end decides what is rejected.

    Args:
        axis: where.
        weights: sizes ``(n,)``, by the name of the method; those that are zero are left out.
    """
    bins = np.linspace(*_DECADES, _BINS + 1)
    for colour, (name, each) in zip(COLOURS, weights.items(), strict=False):
        size = np.asarray(each, dtype=float)
        decades = np.log10(size[size > 0] / size.mean()).clip(*_DECADES)
        axis.hist(decades, bins=bins.tolist(), weights=np.full(len(decades), 1 / len(size)), **_line(colour, name))
    axis.set(yscale="log", xlabel="log10 of the weight over its mean", ylabel="share of the points")
    axis.set_ylim(top=8 * axis.get_ylim()[1])
    axis.legend(frameon=False, fontsize=_SMALL, loc="upper left")


def event_panel(axis: Axes, name: str, reference: Any, events: Any, *, label: str = "brute force") -> None:
    """Draw the distribution of an observable of events over that of brute force.

    Args:
        axis: where.
        name: of the observable.
        reference: its values of brute force ``(n,)``.
        events: its values of the events ``(m,)``.
        label: what the reference is.
    """
    low, high = np.quantile(np.asarray(reference, dtype=float), [0.001, 0.999])
    bins = np.linspace(low, high, _BINS // 2 + 1).tolist()
    axis.hist(np.asarray(reference), bins=bins, density=True, color="0.8", label=label)
    axis.hist(np.asarray(events), bins=bins, density=True, **_line(COLOURS[0], "unweighted events"))
    axis.set(xlabel=name, ylabel="density", ylim=(0, 1.35 * axis.get_ylim()[1]))
    axis.legend(frameon=False, fontsize=_SMALL, loc="upper right")


def _line(colour: str, label: str) -> dict[str, Any]:
    return {"histtype": "step", "color": colour, "linewidth": 1.5, "label": label}
