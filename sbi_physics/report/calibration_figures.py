"""Pictures of calibration: ranks with their bands, coverage, and regions about random points."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_physics.diagnostics.calibration import Calibration
from sbi_physics.diagnostics.calibration_report import CalibrationReport
from sbi_physics.diagnostics.ecdf import ecdf_bands
from sbi_physics.diagnostics.random_points import RandomPointCoverage
from sbi_physics.diagnostics.regions import Coverage
from sbi_physics.diagnostics.uniformity import spread_ranks
from sbi_physics.report.style import BAND, COLOURS, headline, panels

__all__ = ["calibration", "random_points"]

_RANK_BINS = 20
_MOST_BAND_POINTS = 100
_MOST_NAMED = 6


def calibration(
    result: Calibration | CalibrationReport,
    expected: Coverage | None = None,
    *,
    joint: Coverage | None = None,
    tarp: RandomPointCoverage | None = None,
) -> Figure:
    """Draw rank histograms, a panel for each parameter, and panels for all of them together.

    The histograms have a band that holds each bar with 99 % probability.  The panel after them has the distribution of
    the ranks minus the uniform one, with a band that a calibrated posterior leaves with the probability
    `result.level`, in any parameter.

    Args:
        result: of `diagnostics.sbc`; or of `diagnostics.calibrate`, which has all the others.
        expected: of `diagnostics.coverage`, or None.
        joint: of `diagnostics.highest_density_coverage`, or None.
        tarp: of `diagnostics.tarp`, or None.
    """
    if isinstance(result, CalibrationReport):
        return calibration(result.sbc, result.coverage, joint=result.highest_density, tarp=result.tarp)
    extra = 1 + (expected is not None or joint is not None) + (tarp is not None)
    figure, axes = panels(len(result.names) + extra, 3 if len(result.names) + extra < 7 else 4)
    for i in range(len(result.names)):
        _ranks(axes[i], result, i)
    _distributions(axes[len(result.names)], result)
    if expected is not None or joint is not None:
        _coverage(axes[len(result.names) + 1], [part for part in (expected, joint) if part is not None])
    if tarp is not None:
        _random_point_coverage(axes[-1], tarp)
    return figure


def random_points(result: RandomPointCoverage) -> Figure:
    """Draw coverage about random points with the band of its test, and the bias of each parameter.

    Args:
        result: of `diagnostics.tarp`.
    """
    figure, (left, right) = panels(2, 2, width=4.2, height=3.4)
    _random_point_coverage(left, result)
    places, names = np.arange(len(result.names)), list(result.names)
    right.axvspan(-2, 2, color=BAND, label="2 sigma")
    right.barh(places, result.bias.numpy(), color=COLOURS[0], height=0.6)
    right.axvline(0, color="0.4", linewidth=1)
    reach = max(4.0, 1.1 * float(result.bias.abs().max()))
    right.set(title="bias", xlabel="truth above the posterior [sigma]", yticks=places, xlim=(-reach, reach))
    right.set_yticklabels(names)
    right.invert_yaxis()
    right.legend(frameon=False, fontsize=8, loc="upper right")
    headline(figure, result.verdict)
    return figure


def _percent(level: float) -> str:
    return f"{100 * (1 - level):.4g} % if calibrated"


def _ranks(axis: Axes, result: Calibration, i: int) -> None:
    from scipy.stats import binom

    axis.axhspan(
        *binom.ppf([0.005, 0.995], len(result.ranks), 1 / _RANK_BINS), color=BAND, label="99 % of bars, if calibrated"
    )
    shares = spread_ranks(result.ranks[:, i], result.draws, seed=i)
    axis.hist(shares.numpy(), bins=_RANK_BINS, range=(0, 1), color=COLOURS[0], alpha=0.75)
    axis.set(
        title=f"{result.names[i]}: {result.kinds[i]}", xlabel="rank of the truth", ylabel="simulations", xlim=(0, 1)
    )
    if i == 0:
        axis.set_ylim(0, 1.25 * axis.get_ylim()[1])
        axis.legend(frameon=False, fontsize=8, loc="upper right")


def _distributions(axis: Axes, result: Calibration) -> None:
    """Distribution of the ranks of all parameters minus the uniform one; where many, only those outside are named."""
    values = np.arange(1, result.draws + 1) / (result.draws + 1)
    points = values[np.unique(np.linspace(0, len(values) - 1, _MOST_BAND_POINTS).round().astype(int))]
    band = ecdf_bands(len(result.ranks), points.tolist(), level=result.level / len(result.names))
    curves = band.difference((result.ranks + 0.5) / (result.draws + 1))
    inside = band.inside(curves)
    # All curves begin and end at zero.
    ends = np.concatenate([[0.0], band.z.numpy(), [1.0]])
    low, high = np.pad(band.lower.numpy(), 1), np.pad(band.upper.numpy(), 1)
    axis.fill_between(ends, low, high, color=BAND, linewidth=0, label=_percent(band.level))
    heights = np.pad(curves.numpy(), ((1, 1), (0, 0)))
    named = _named_lines(axis, ends, heights, result.names, [not bool(flag) for flag in inside])
    axis.axhline(0, color="0.4", linewidth=1, linestyle="--")
    largest = 1.1 * max(float(curves.abs().max()), float(band.upper.max()))
    axis.set(title="distribution of ranks", xlabel="rank of the truth", ylabel="share below, minus expected")
    axis.set(xlim=(0, 1), ylim=(-largest, largest * (1.4 + 0.15 * ((named + 1) // 2))))
    axis.legend(frameon=False, fontsize=7, loc="upper center", ncols=2, columnspacing=1.0, handlelength=1.5)


def _named_lines(axis: Axes, z: Any, heights: Any, names: Sequence[str], wrong: Sequence[bool]) -> int:
    """Lines, the columns of `heights`; where they are many, only the first of those that are wrong get names."""
    named = 0
    for i, name in enumerate(names):
        if len(names) > _MOST_NAMED and (not wrong[i] or named == _MOST_NAMED):
            axis.plot(z, heights[:, i], color="0.55", linewidth=0.7)
            continue
        axis.plot(z, heights[:, i], color=COLOURS[named % len(COLOURS)], linewidth=1.2, label=name)
        named += 1
    return named


def _coverage(axis: Axes, results: list[Coverage]) -> None:
    axis.plot([0, 1], [0, 1], color="0.4", linewidth=1, linestyle="--")
    for result in results:
        levels, shares, errors = (v.numpy() for v in (result.levels, result.coverage, result.error))
        if result.names == ("joint",):
            style: dict[str, Any] = {"color": "black", "linestyle": "-.", "linewidth": 1.3, "label": "highest density"}
            axis.errorbar(levels, shares[:, 0], errors[:, 0], **style)
            continue
        wrong = (result.p_values < result.level / len(result.names)).tolist()
        _named_lines(axis, levels, shares, result.names, wrong)
        if len(result.names) <= _MOST_NAMED:
            for k in range(len(result.names)):
                axis.errorbar(levels, shares[:, k], errors[:, k], fmt="none", color=COLOURS[k], linewidth=1.1)
    axis.set(title="expected coverage", xlabel="credibility", ylabel="share that holds the truth")
    axis.set(xlim=(0, 1), ylim=(0, 1))
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)


def _random_point_coverage(axis: Axes, result: RandomPointCoverage) -> None:
    levels = result.levels.numpy()
    grid = np.concatenate([[0.0], levels, [1.0]])
    low, high = np.clip(grid - result.band, 0, 1), np.clip(grid + result.band, 0, 1)
    axis.fill_between(grid, low, high, color=BAND, linewidth=0, label=_percent(result.level / 2))
    axis.plot([0, 1], [0, 1], color="0.4", linewidth=1, linestyle="--")
    axis.errorbar(levels, result.coverage, result.error, color=COLOURS[1], linewidth=1.3, label="regions found")
    worst = int(result.bias.abs().argmax())
    text = f"largest bias: {result.names[worst]}, {float(result.bias[worst]):+.1f} sigma"
    axis.text(0.97, 0.04, text, ha="right", fontsize=8)
    axis.set(title=f"random points: {result.kind}", xlabel="credibility", ylabel="share that holds the truth")
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.legend(frameon=False, fontsize=8, loc="upper left")
