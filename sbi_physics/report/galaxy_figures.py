"""Pictures of stars in phase space: where they are and how they move, for several sets of stars side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from sbi_physics.core.checks import as_tensor, batch_of, finite, positive_integer
from sbi_physics.core.errors import UsageError

__all__ = ["phase_space_maps"]

_PLANES = ((0, 2), (1, 5))
_AXES = ("x", "y", "z", "v_x", "v_y", "v_z")
# Of the stars of the first set, this share on either side is left out of the picture.
_OUTSIDE = 0.002
_MARGIN = 0.05


def phase_space_maps(
    sets: Mapping[str, Any],
    *,
    planes: Sequence[tuple[int, int]] = _PLANES,
    limits: Sequence[tuple[float, float] | None] | None = None,
    bins: int = 120,
    units: tuple[str, str] = ("kpc", "km/s"),
) -> Figure:
    """Draw the density of stars in planes of phase space, one column for each set and one row for each plane.

    All panels of a row have one colour scale, the share of the stars of the set in each bin, so that sets of different
    numbers can be compared; a bin that is empty stays white.

    Args:
        sets: names and positions with velocities ``(n, 6)``.
        planes: pairs of indices into x, y, z, v_x, v_y, v_z.
        limits: of each of the six axes, or None for those that hold nearly all stars of the first set.
        bins: along each side of a panel.
        units: of positions and velocities.

    Raises:
        ShapeError, NonFiniteError: a set has another shape, or is not finite.
        UsageError: there is no set or no plane, or a plane is no pair of different axes.
    """
    stars = {
        name: finite(batch_of(as_tensor(values, name, dtype=None), (6,), name), name).double().cpu().numpy()
        for name, values in sets.items()
    }
    if not stars:
        raise UsageError("sets: expected at least one set of stars, got none")
    pairs = [(int(a), int(b)) for a, b in planes]
    if not pairs or any(a == b or not (0 <= a < 6 and 0 <= b < 6) for a, b in pairs):
        raise UsageError(f"planes: expected pairs of different axes from 0 to 5, got {list(planes)!r}")
    count = positive_integer(bins, "bins")
    ranges = _ranges(next(iter(stars.values())), limits)
    figure = Figure(figsize=(2.6 * len(stars) + 0.9, 2.6 * len(pairs) + 0.3), layout="constrained")
    axes = figure.subplots(len(pairs), len(stars), squeeze=False)
    for row, (a, b) in zip(axes, pairs, strict=True):
        _row(figure, row, stars, (a, b), [ranges[a], ranges[b]], count)
        for axis in row:
            axis.set_xlabel(_label(a, units))
        row[0].set_ylabel(_label(b, units))
    for axis, name in zip(axes[0], stars, strict=True):
        axis.set_title(name, fontsize=10)
    return figure


def _row(
    figure: Figure,
    axes: Sequence[Axes],
    stars: Mapping[str, Any],
    plane: tuple[int, int],
    ranges: list[tuple[float, float]],
    bins: int,
) -> None:
    maps = [
        np.histogram2d(w[:, plane[0]], w[:, plane[1]], bins=bins, range=ranges)[0].T / len(w) for w in stars.values()
    ]
    # The palest colour is one star of the largest set, and the darkest the densest bin of any.
    least = 1 / max(map(len, stars.values()))
    most = max(float(each.max()) for each in maps)
    colours = LogNorm(least, max(most, 2 * least))
    edges = [np.linspace(*span, bins + 1) for span in ranges]
    for axis, each in zip(axes, maps, strict=True):
        shown = np.ma.masked_equal(each, 0)
        drawn = axis.pcolormesh(*edges, shown, norm=colours, cmap="viridis", rasterized=True)
        axis.tick_params(labelsize=8)
    figure.colorbar(drawn, ax=list(axes), label="share of the stars", fraction=0.02, pad=0.01)


def _ranges(stars: Any, limits: Sequence[tuple[float, float] | None] | None) -> list[tuple[float, float]]:
    given = list(limits) if limits is not None else [None] * 6
    if len(given) != 6:
        raise UsageError(f"limits: expected one pair, or None, for each of the six axes, got {len(given)}")
    ranges = []
    for i, pair in enumerate(given):
        if pair is None:
            low, high = np.quantile(stars[:, i], [_OUTSIDE, 1 - _OUTSIDE]).tolist()
            margin = _MARGIN * (high - low) or 0.5
            low, high = low - margin, high + margin
        else:
            low, high = map(float, pair)
        if not low < high:
            raise UsageError(f"limits: expected a lower and an upper one, got {pair!r}")
        ranges.append((low, high))
    return ranges


def _label(axis: int, units: tuple[str, str]) -> str:
    return f"${_AXES[axis]}$ [{units[axis >= 3]}]"
