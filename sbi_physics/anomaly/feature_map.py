r"""Maps of single features onto the real line, in which a flow works, with their Jacobians.

``"probit"`` leaves the features as they are; the density maps their bounds (`core.bijection`).  ``"quantile"`` is

$$ z = \Phi^{-1}(F(x)), $$

with the distribution function F of the data, so that each feature alone is Gaussian and what is left to learn is how
they depend on one another and on the mass.  It is a monotone cubic through quantiles (Fritsch and Butland 1984,
doi:10.1137/0905021), and goes on as a straight line beyond them.
"""

from typing import Self

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator
from scipy.special import ndtri
from torch import Tensor

__all__ = ["PREPROCESSINGS", "QuantileMap", "data_bounds"]

PREPROCESSINGS = ("probit", "quantile")
_KNOTS = 101
_FEWEST_BEYOND = 20
_BISECTIONS = 60
_MARGIN = 1e-3


class QuantileMap:
    """A monotone map of each feature, which makes it Gaussian."""

    def fit(self, features: Tensor) -> Self:
        """Learn from features ``(n, D)``."""
        least = min(0.1, _FEWEST_BEYOND / len(features))
        z = np.linspace(ndtri(least), -ndtri(least), _KNOTS)
        levels = 0.5 * (1 + torch.erf(torch.as_tensor(z) / 2**0.5)).numpy()
        self._curves = []
        for column in features.double().numpy().T:
            x, first = np.unique(np.quantile(column, levels), return_index=True)
            self._curves.append(_Curve(x, z[first]))
        return self

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Gaussian coordinates ``(n, D)``, float64, and the logarithm ``(n,)`` of the Jacobian."""
        found = [curve.forward(column) for curve, column in zip(self._curves, features.double().numpy().T, strict=True)]
        z = torch.as_tensor(np.stack([each[0] for each in found], 1))
        return z, torch.as_tensor(np.stack([np.log(each[1]) for each in found], 1)).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """Features ``(n, D)``, float64, at Gaussian coordinates."""
        columns = [curve.inverse(column) for curve, column in zip(self._curves, z.double().numpy().T, strict=True)]
        return torch.as_tensor(np.stack(columns, 1))


class _Curve:
    """A monotone cubic through points, with straight ends of the slope between the outermost two."""

    def __init__(self, x: np.ndarray, z: np.ndarray) -> None:
        if len(x) < 3:
            # Two values or fewer: a straight line through them does.
            x, z = np.array([x[0] - 1, x[0], x[-1] + 1]), np.array([-1.0, 0.0, 1.0])
        self._x, self._z = x, z
        self._ends = (z[1] - z[0]) / (x[1] - x[0]), (z[-1] - z[-2]) / (x[-1] - x[-2])
        slopes = PchipInterpolator(x, z).derivative()(x)
        # At its ends that one may be flat, and there the lines begin.
        slopes[0], slopes[-1] = self._ends
        self._cubic = CubicHermiteSpline(x, z, slopes)
        self._slope = self._cubic.derivative()

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = np.clip(x, self._x[0], self._x[-1])
        below, above = x - inside < 0, x - inside > 0
        slope = np.where(below, self._ends[0], np.where(above, self._ends[1], self._slope(inside)))
        return self._cubic(inside) + slope * (x - inside), np.maximum(slope, 1e-12)

    def inverse(self, z: np.ndarray) -> np.ndarray:
        inside = np.clip(z, self._z[0], self._z[-1])
        place = np.clip(np.searchsorted(self._z, inside), 1, len(self._z) - 1)
        low, high = self._x[place - 1], self._x[place]
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            short = self._cubic(middle) < inside
            low, high = np.where(short, middle, low), np.where(short, high, middle)
        slope = np.where(z < inside, self._ends[0], self._ends[1])
        result: np.ndarray = 0.5 * (low + high) + (z - inside) / slope
        return result


def data_bounds(features: Tensor) -> Tensor:
    """Bounds ``(D, 2)`` a little beyond the smallest and the largest of each feature."""
    low, high = features.aminmax(dim=0)
    margin = _MARGIN * (high - low)
    return torch.stack([low - margin, high + margin], 1)
