"""Pictures of mean showers: the layers of a calorimeter seen along the axis, real, generated, and their ratio."""

import math
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from sbi_physics.core.voxels import VoxelLayer
from sbi_physics.surrogate.surrogate_report import ComparedEvents

__all__ = ["draw_mean_showers"]

_ARCS = 72
_DECADES = 5
_KNOWN = 0.2
_RATIO = 1.25
_GREY = "0.88"
_NAMES = ("simulator", "surrogate", "ratio")


def draw_mean_showers(figure: Figure, compared: ComparedEvents, box: tuple[float, float, float, float]) -> None:
    """Draw three rows of layers into a figure; each ring is drawn equally wide, the innermost being much the thinnest.

    Args:
        figure: to draw in.
        compared: of a `SurrogateReport`, with a geometry.
        box: left, top, width and height in inches, from the upper left corner.

    Raises:
        ValueError: there is no geometry.
    """
    if compared.geometry is None:
        raise ValueError("expected showers with a geometry")
    left, top, width, height = box
    layers = compared.geometry.layers
    cell = min((height - 0.25) / 3, (width - 1.25) / len(layers))
    left += 0.5 * (width - 1.25 - cell * len(layers))
    page_width, page_height = figure.get_size_inches()
    energy, ratio = _energies(compared), _ratio(compared)
    scales = [(_energy_norm(energy[0]), "viridis"), (LogNorm(1 / _RATIO, _RATIO), "RdBu_r")]
    maps = [ScalarMappable(*scale) for scale in scales]
    for row, values in enumerate((*energy, ratio)):
        for column, (layer, some) in enumerate(zip(layers, compared.geometry.layer_slices, strict=True)):
            x, y = left + 0.35 + column * cell, top + 0.25 + row * cell
            place = (x / page_width, 1 - (y + cell) / page_height, cell / page_width, cell / page_height)
            axis = figure.add_axes(place)
            _layer(axis, layer, values[some], *scales[row == 2])
            if row == 0:
                axis.set_title(f"layer {layer.identifier}, r < {layer.r_edges[-1]:g} mm", fontsize=7.5, pad=2)
            if column == 0:
                axis.text(
                    -0.06, 0.5, _NAMES[row], transform=axis.transAxes, rotation=90, va="center", ha="right", fontsize=9
                )
    bar_x = left + 0.35 + len(layers) * cell + 0.12
    unit = f" [{compared.unit}]" if compared.unit else ""
    words = (f"mean energy of a voxel{unit}", f"ratio\n(grey: error > {100 * _KNOWN:.0f} %)")
    for mapped, label, y, length in zip(
        maps, words, (top + 0.35, top + 0.3 + 2 * cell), (2 * cell - 0.2, cell - 0.1), strict=True
    ):
        place = (bar_x / page_width, 1 - (y + length) / page_height, 0.12 / page_width, length / page_height)
        bar = figure.colorbar(mapped, cax=figure.add_axes(place))
        bar.set_label(label, fontsize=7.5)
        bar.ax.tick_params(labelsize=7)
        if mapped is maps[1]:
            bar.set_ticks([1 / _RATIO, 0.9, 1.0, 1.1, _RATIO], labels=["0.8", "0.9", "1", "1.1", "1.25"])
            bar.minorticks_off()


def _energies(compared: ComparedEvents) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return _array(compared.real_mean), _array(compared.generated_mean)


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    return np.asarray(values.double().flatten().numpy())


def _ratio(compared: ComparedEvents) -> np.ndarray[Any, Any]:
    """Generated over real mean energy; NaN where it is not known well."""
    real, generated = _energies(compared)
    errors = _array(compared.real_mean_error), _array(compared.generated_mean_error)
    there = (real > 0) & (generated > 0)
    relative = np.hypot(*(e / np.where(there, v, 1.0) for e, v in zip(errors, (real, generated), strict=True)))
    return np.where(there & (relative < _KNOWN), generated / np.where(there, real, 1.0), np.nan)


def _energy_norm(real: np.ndarray[Any, Any]) -> Normalize:
    positive = real[real > 0]
    if not len(positive):
        return LogNorm(0.1, 1.0)
    high = float(positive.max())
    return LogNorm(max(float(positive.min()), high * 10.0**-_DECADES) * 0.999, high * 1.001)


def _layer(axis: Axes, layer: VoxelLayer, values: np.ndarray[Any, Any], norm: Normalize, colours: str) -> None:
    """One layer, sector by sector and from the axis outwards, as voxels are numbered."""
    arcs = math.ceil(_ARCS / layer.sectors)
    angles = np.linspace(-math.pi, math.pi, layer.sectors * arcs + 1)
    rings = np.arange(layer.rings + 1) / layer.rings
    shown = np.ma.masked_invalid(np.where(values > 0, values, np.nan)).reshape(layer.sectors, layer.rings)
    axis.pcolormesh(
        np.outer(np.cos(angles), rings),
        np.outer(np.sin(angles), rings),
        shown.repeat(arcs, axis=0),
        norm=norm,
        cmap=colormaps[colours].with_extremes(bad=_GREY),
        edgecolors="face",
        linewidth=0.2,
        rasterized=True,
    )
    axis.set(xlim=(-1.04, 1.04), ylim=(-1.04, 1.04), aspect="equal")
    axis.axis("off")
