"""How all pictures look: colours that the colour-blind can tell apart, bands in grey, words above the panels."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

__all__ = ["BAND", "COLOURS", "events_per", "headline", "histogram_with_marks", "panels", "with_unit"]

# Wong's colour-blind safe set (Nature Methods 8, 441, 2011).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BAND = "0.87"


def panels(count: int, columns: int, *, width: float = 3.4, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in even rows of at most `columns`; places that are left over stay empty."""
    rows = -(-count // columns)
    columns = -(-count // rows)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.axis("off")
    return figure, axes[:count]


def headline(figure: Figure, text: str) -> None:
    """Write a sentence above the panels, wrapped to the width of the figure."""
    per_line = int(figure.get_size_inches()[0] * 13)
    figure.suptitle("\n".join(textwrap.wrap(text, per_line)), x=0.01, ha="left", fontsize=10)


def histogram_with_marks(
    axis: Axes, values: Any, marks: Sequence[float], *, label: str, mark_labels: Sequence[str | None], logarithmic: bool
) -> None:
    """A histogram of what is expected, with vertical lines at what was found; lines at infinity stand at the edge."""
    expected, found = np.asarray(values, dtype=float), np.asarray(marks, dtype=float)
    expected = expected[np.isfinite(expected)]
    known = np.concatenate([expected, found[np.isfinite(found)]])
    known = known[np.isfinite(known) & ((known > 0) | (not logarithmic))]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if not high > low:
        low, high = low - 0.5 * abs(low) - 1e-12, high + 0.5 * abs(high) + 1e-12
    logarithmic = logarithmic and low > 0
    margin = (high / low) ** 0.05 if logarithmic else 0.05 * (high - low)
    edge = high * margin if logarithmic else high + margin
    bins = np.geomspace(low, high, 41) if logarithmic else np.linspace(low, high, 41)
    axis.hist(expected, bins=bins.tolist(), color="0.7", label=label)
    for i, value in enumerate(found):
        at = float(value) if np.isfinite(value) else edge
        axis.axvline(at, color=COLOURS[(i + 1) % len(COLOURS)], linewidth=1.8, label=mark_labels[i])
    axis.set_xlim(low / margin if logarithmic else low - margin, edge)
    if logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        if high < 100 * low:
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.set_ylim(0, 1.3 * axis.get_ylim()[1])


def with_unit(name: str, unit: str) -> str:
    """The label of an axis, with the unit where it is known."""
    return f"{name} [{unit}]" if unit else name


def events_per(unit: str) -> str:
    """The label of a density of events in mass."""
    return f"events / {unit or 'unit of mass'}"
