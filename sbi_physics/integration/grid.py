r"""`ProductGrid`: a map of the unit cube in which each dimension is stretched on its own, as VEGAS does it.

The density of a dimension is linear between knots (VEGAS: constant; Lepage 1978, J. Comput. Phys. 27, 192; Lepage
2021, arXiv:2009.05112), so that the weights of a smooth integrand have no jumps, which scrambled nets of points would
suffer from.  The map is fitted to weighted points: with v the image of x, the marginal density of v is estimated at
equidistant nodes by hat functions, and multiplied onto the density of x; repeated until v is uniform.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["ProductGrid"]

_KNOTS = 256
_SPREAD = 0.5
"""Of the knots follow the density; the others its square root, which reaches into the tails."""
_LEAST_RATIO = 0.02
_PASSES, _PASSES_AGAIN = 12, 3
_CORNERS = 2
_FLAT = 0.02
# Knots may coincide: where the width of a cell is nothing, nothing is divided by it.
_TINY = 1e-300


@dataclass(frozen=True)
class ProductGrid:
    """A density on the unit cube that is a product of piecewise linear ones, with the map from uniform points to it.

    Attributes:
        knots: rising from 0 to 1, ``(D, K)`` float64.
        density: at the knots, positive, each row with integral one, ``(D, K)``.
    """

    knots: Tensor
    density: Tensor

    @classmethod
    def uniform(cls, dims: int) -> "ProductGrid":
        """The identity."""
        knots = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(dims, 2).contiguous()
        return cls(knots, torch.ones_like(knots))

    @property
    def dims(self) -> int:
        """D."""
        return len(self.knots)

    @cached_property
    def _cumulative(self) -> Tensor:
        cells = self.knots.diff() * (self.density[:, 1:] + self.density[:, :-1]) / 2
        cumulative = torch.cat([torch.zeros_like(cells[:, :1]), cells.cumsum(1)], 1)
        return cumulative / cumulative[:, -1:]

    def to_x(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the cube ``(n, D)`` from uniform ones, and the log-density there ``(n,)``."""
        v = v.T.contiguous()
        cell = (torch.searchsorted(self._cumulative, v, right=True) - 1).clamp(0, self.knots.shape[1] - 2)
        left, right, p, q = self._cell(cell)
        width, rest = (right - left).clamp(min=_TINY), v - self._cumulative.gather(1, cell)
        # The root of p s + (q - p) s^2 / (2 width) = rest that does not cancel.
        root = (p * p + 2 * (q - p) * rest / width).clamp(min=0).sqrt()
        step = (2 * rest / (p + root)).clamp(min=torch.zeros_like(width), max=width)
        log_q = torch.log(p + (q - p) * step / width).sum(0)
        return (left + step).T, log_q

    def to_v(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: uniform points ``(n, D)`` of points of the cube, and the log-density of these ``(n,)``."""
        v, density = self._place(x.T.contiguous())
        return v.T, density.log().sum(0)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at points ``(n, D)``: ``(n,)``."""
        return self.to_v(x)[1]

    def _cell(self, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ends = (self.knots.gather(1, cell), self.knots.gather(1, cell + 1))
        return *ends, self.density.gather(1, cell), self.density.gather(1, cell + 1)

    def _place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The cumulative distribution and the density of each dimension at ``(D, n)``."""
        cell = (torch.searchsorted(self.knots, x, right=True) - 1).clamp(0, self.knots.shape[1] - 2)
        left, right, p, q = self._cell(cell)
        step = x - left
        density = p + (q - p) * step / (right - left).clamp(min=_TINY)
        v = self._cumulative.gather(1, cell) + step * (p + density) / 2
        return v.clamp(0, 1), density

    def fitted(self, x: Tensor, weights: Tensor, nodes: int | None = None) -> "ProductGrid":
        """The grid after fitting to points ``(n, D)`` with weights ``(n,)`` that are not negative.

        Args:
            x: points of the cube.
            weights: of the points; at least one positive.
            nodes: number of intervals in which a ratio of densities is estimated at once; None chooses by the
                effective number of points.
        """
        weights = weights / weights.sum()
        effective = float(1 / weights.square().sum())
        intervals = min(64, max(4, round(math.sqrt(effective) / 2))) if nodes is None else nodes
        grid = self
        for _ in range(_PASSES if self.knots.shape[1] == _CORNERS else _PASSES_AGAIN):
            ratio = grid._ratios(x, weights, intervals, effective)
            grid = grid._times(ratio)
            if float((ratio - 1).abs().max()) < _FLAT:
                break
        return grid

    def _ratios(self, x: Tensor, weights: Tensor, intervals: int, effective: float) -> Tensor:
        """Densities of v at the nodes, ``(D, intervals + 1)``, drawn towards one by one event in each."""
        place = self._place(x.T.contiguous())[0] * intervals
        left = place.floor().clamp(max=intervals - 1).long()
        share = place - left
        flat = left + torch.arange(self.dims).unsqueeze(1) * (intervals + 1)
        size = self.dims * (intervals + 1)
        heights = torch.bincount(flat.flatten(), (weights * (1 - share)).flatten(), size)
        heights += torch.bincount((flat + 1).flatten(), (weights * share).flatten(), size)
        expected = torch.full((intervals + 1,), 1 / intervals, dtype=torch.float64)
        expected[[0, -1]] /= 2
        ratio = (heights.view(self.dims, -1) + 1 / effective) / (expected + 1 / effective)
        return ratio.clamp(min=_LEAST_RATIO)

    def _times(self, ratio: Tensor) -> "ProductGrid":
        """Multiply the density by a function of v, linear between nodes, and place the knots anew."""
        intervals = ratio.shape[1] - 1
        nodes = torch.linspace(0, 1, intervals + 1, dtype=torch.float64).expand(self.dims, -1)
        points, _ = torch.cat([self.knots, _inverse(self, nodes)], 1).sort(1)
        v, density = self._place(points)
        cell = (v * intervals).floor().clamp(0, intervals - 1).long()
        low, high = ratio.gather(1, cell), ratio.gather(1, cell + 1)
        density = density * (low + (high - low) * (v * intervals - cell))
        fine = ProductGrid(points, density)._normalised()
        return fine._spread()

    def _normalised(self) -> "ProductGrid":
        area = (self.knots.diff() * (self.density[:, 1:] + self.density[:, :-1]) / 2).sum(1, keepdim=True)
        return ProductGrid(self.knots, self.density / area)

    def _spread(self) -> "ProductGrid":
        """The same density, on knots at its quantiles."""
        root = ProductGrid(self.knots, self.density.sqrt())._normalised()
        many = round(_SPREAD * _KNOTS)
        levels = [torch.linspace(0, 1, count, dtype=torch.float64) for count in (many, _KNOTS - many)]
        knots = torch.cat([_inverse(g, x.expand(self.dims, -1)) for g, x in zip((self, root), levels, strict=True)], 1)
        knots, _ = knots.sort(1)
        knots[:, 0], knots[:, -1] = 0.0, 1.0
        return ProductGrid(knots, self._place(knots)[1])._normalised()


def _inverse(grid: ProductGrid, v: Tensor) -> Tensor:
    return grid.to_x(v.T)[0].T.contiguous()
