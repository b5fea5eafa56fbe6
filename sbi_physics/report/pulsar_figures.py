"""Pictures of pulsar timing: residuals, correlations between pulsars, and the free spectrum of an array."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sbi_physics.core.checks import as_tensor, finite
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.report.style import COLOURS, headline

__all__ = ["correlation_figure", "free_spectrum_figure", "residuals_figure"]

_NANO = 1e9
_SHOWN = 1e-3  # of the probability of a bin, on either side, left out of the picture
_FAINT = 0.01  # of the highest density, below which a violin is not drawn


def residuals_figure(
    times: Mapping[str, Any], residuals: Mapping[str, Any], uncertainties: Mapping[str, Any], *, title: str = ""
) -> Figure:
    """Draw the timing residuals of pulsars below one another.

    Args:
        times: by the name of the pulsar, ``(T,)`` in years.
        residuals: ``(T,)`` in microseconds; NaN where missing.
        uncertainties: ``(T,)`` in microseconds.
        title: a sentence above.

    Raises:
        ShapeError: shapes do not fit each other.
        UsageError: the names differ.
    """
    if not times or set(times) != set(residuals) or set(times) != set(uncertainties):
        raise UsageError(f"residuals: expected those of {', '.join(times)}, got {', '.join(residuals)}")
    figure = Figure(figsize=(8, 1.1 + 0.75 * len(times)), layout="constrained")
    axes = figure.subplots(len(times), sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, times, strict=True):
        t, y, error = (as_tensor(part[name], name).numpy() for part in (times, residuals, uncertainties))
        if not t.shape == y.shape == error.shape or t.ndim != 1:
            raise ShapeError(f"{name}: expected three arrays of one length, got {t.shape}, {y.shape}, {error.shape}")
        axis.errorbar(t, y, error, fmt=".", markersize=2.5, linewidth=0.5, color=COLOURS[0])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel("year")
    figure.supylabel("residual [μs]", fontsize=9)
    if title:
        headline(figure, title)
    return figure


def correlation_figure(angles: Any, correlations: Any, errors: Any, curve: Any, *, title: str = "") -> Figure:
    """Draw the correlations of pairs of pulsars against the angle between them, over an expected curve.

    Args:
        angles: between the pulsars of each pair, ``(M,)`` in degrees.
        correlations: ``(M,)``.
        errors: their standard deviations ``(M,)``.
        curve: expected correlation at 181 angles from 0 to 180 degrees, ``(181,)``.
        title: a sentence above.

    Raises:
        ShapeError: shapes do not fit each other.
    """
    at, found, error = (finite(as_tensor(a, "pairs"), "pairs").numpy() for a in (angles, correlations, errors))
    expected = finite(as_tensor(curve, "curve"), "curve").numpy()
    if not at.shape == found.shape == error.shape or at.ndim != 1 or expected.shape != (181,):
        raise ShapeError(
            f"correlations: expected three arrays (M,) and a curve (181,), got {at.shape}, {found.shape}, "
            f"{error.shape} and {expected.shape}"
        )
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color="0.8", linewidth=0.8)
    axis.plot(np.arange(181), expected, color=COLOURS[1], linewidth=1.5, label="expected")
    axis.errorbar(at, found, error, fmt="o", markersize=3.5, linewidth=1, color=COLOURS[0], label="simulated pairs")
    axis.set(xlabel="angle between two pulsars [degrees]", ylabel="correlation", xlim=(0, 180))
    axis.legend(frameon=False, fontsize=9)
    if title:
        headline(figure, title)
    return figure


def free_spectrum_figure(
    frequencies: Any,
    grid: Any,
    log_density: Any,
    curves: Mapping[str, Any],
    *,
    fitted: Sequence[int] | None = None,
    truth: Any = None,
    title: str = "",
) -> Figure:
    """Draw the densities of log10 rho as violins, one for each frequency, and bands of spectra over them.

    Args:
        frequencies: ``(K,)`` [Hz].
        grid: ``(G,)`` values of log10 rho (rho in seconds).
        log_density: ``(K, G)`` logarithms of their densities, each up to a constant.
        curves: by name, log10 rho of posterior draws ``(n, K)``; each band holds 68 % and 95 % of them.
        fitted: numbers of the frequencies that the fit used, the others being drawn in grey; all where None.
        truth: ``(K,)`` log10 rho of a spectrum that was injected, or None.
        title: a sentence above.

    Raises:
        ShapeError: shapes do not fit each other.
        UsageError: a number in `fitted` is no frequency.
    """
    f, at = (finite(as_tensor(value, name), name).numpy() for value, name in ((frequencies, "f"), (grid, "grid")))
    values = as_tensor(log_density, "log_density", dtype=None).numpy()
    if values.shape != (len(f), len(at)):
        raise ShapeError(f"log_density: expected shape ({len(f)}, {len(at)}), got {values.shape}")
    used = set(range(len(f)) if fitted is None else map(int, fitted))
    if not used <= set(range(len(f))):
        raise UsageError(f"fitted: expected numbers from 0 to {len(f) - 1}, got {sorted(used)}")
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axis = figure.subplots()
    nano = _NANO * f
    width = 0.42 * float(np.diff(nano).min()) if len(f) > 1 else 0.2 * float(nano[0])
    edges = [_violin(axis, x, at, row, width, k in used) for k, (x, row) in enumerate(zip(nano, values, strict=True))]
    handles: list[Any] = [Patch(color=COLOURS[0], alpha=0.55, label="density from the data")]
    for i, (name, draws) in enumerate(curves.items()):
        rows = finite(as_tensor(draws, name), name).numpy()
        if rows.ndim != 2 or rows.shape[1] != len(f):
            raise ShapeError(f"{name}: expected shape (n, {len(f)}), got {rows.shape}")
        edges.append(_band(axis, nano, rows, COLOURS[(i + 1) % len(COLOURS)]))
        handles.append(Patch(color=COLOURS[(i + 1) % len(COLOURS)], alpha=0.5, label=name))
    if truth is not None:
        line = finite(as_tensor(truth, "truth").reshape(-1), "truth").numpy()
        if line.shape != f.shape:
            raise ShapeError(f"truth: expected shape ({len(f)},), got {line.shape}")
        axis.plot(nano, line, color="black", linewidth=1.2, linestyle="--")
        handles.append(Line2D([], [], color="black", linewidth=1.2, linestyle="--", label="injected"))
        edges.append((float(line.min()), float(line.max())))
    low, high = min(edge[0] for edge in edges), max(edge[1] for edge in edges)
    axis.set(
        xlabel="frequency [nHz]",
        ylabel=r"$\log_{10}(\rho\, /\, {\rm s})$",
        xlim=(nano[0] - 2 * width, nano[-1] + 2 * width),
        ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)),
    )
    axis.legend(handles=handles, frameon=False, fontsize=9, loc="upper right")
    if title:
        headline(figure, title)
    return figure


def _violin(axis: Axes, x: float, grid: Any, log_density: Any, width: float, used: bool) -> tuple[float, float]:
    """Draw one density; the quantiles of log10 rho that the picture must show."""
    density = np.exp(log_density - log_density.max())
    half = np.where(density > _FAINT, density, np.nan) * width
    colour = COLOURS[0] if used else "0.75"
    axis.fill_betweenx(grid, x - half, x + half, color=colour, alpha=0.55, linewidth=0)
    below = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
    low, high = np.interp([_SHOWN, 1 - _SHOWN], below / below[-1], grid)
    return float(low), float(high)


def _band(axis: Axes, x: Any, rows: Any, colour: str) -> tuple[float, float]:
    low95, low68, middle, high68, high95 = np.quantile(rows, [0.025, 0.16, 0.5, 0.84, 0.975], axis=0)
    axis.fill_between(x, low95, high95, color=colour, alpha=0.2, linewidth=0)
    axis.fill_between(x, low68, high68, color=colour, alpha=0.4, linewidth=0)
    axis.plot(x, middle, color=colour, linewidth=1.3)
    return float(low95.min()), float(high95.max())
