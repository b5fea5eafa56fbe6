r"""`CellMap`: a map of the unit cube that is piecewise linear on the cells of a tree, for few dimensions.

Each node of the tree splits its cell across one dimension k at a place t, and sends the share s of its probability to
the left: a uniform u_k below s goes left as u_k/s, else right as (u_k - s)/(1 - s).  So the tree is a bijection of the
cube whose density is constant in each cell, whatever the correlations (cells as in FOAM: Jadach 2003,
physics/0203033).  The probability of a cell is its volume times the mean of |f| in it, over that of all; cells are
split where this raises the likelihood of the points most, as long as it does so significantly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CellMap"]

_PLACES = 16
_DEEPEST = 24
_FEWEST = 8
_SIGNIFICANT = 2.0
_LEAST_RATIO = 0.02
_FEW = 1e-300


@dataclass(frozen=True)
class CellMap:
    """A tree of cells of the unit cube.

    Attributes:
        dims: D.
        axis: dimension that each node splits, ``(M,)`` int64; -1 for a cell.
        place: where, relative to the cell of the node, ``(M,)``.
        share: of the probability of the node that is on the left, ``(M,)``.
        left: the left child; the right one comes after it, ``(M,)``.
    """

    dims: int
    axis: Tensor
    place: Tensor
    share: Tensor
    left: Tensor

    @property
    def cells(self) -> int:
        """The number of cells."""
        return int((self.axis < 0).sum())

    def to_x(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the cube ``(n, D)`` from uniform ones, and the log-density there ``(n,)``."""
        return self._descend(v, self.share, self.place)

    def to_v(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse: uniform points ``(n, D)`` of points of the cube, and the log-density of these ``(n,)``."""
        v, ladj = self._descend(x, self.place, self.share)
        return v, -ladj

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at points ``(n, D)``: ``(n,)``."""
        return self.to_v(x)[1]

    def _descend(self, points: Tensor, cut: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Follow points, split at `cut`, to their cells and give them the same place between the cuts of `other`."""
        rows = torch.arange(len(points))
        node = torch.zeros(len(points), dtype=torch.long)
        within = points.clone()
        low, size = torch.zeros_like(points), torch.ones_like(points)
        log_ratio = torch.zeros(len(points), dtype=torch.float64)
        while len(rows):
            axis = self.axis[node]
            inner = axis >= 0
            rows, node, axis = rows[inner], node[inner], axis[inner]
            s, t = cut[node], other[node]
            u, width = within[rows, axis], size[rows, axis]
            right = u >= s
            within[rows, axis] = torch.where(right, (u - s) / (1 - s), u / s)
            low[rows, axis] += torch.where(right, t * width, 0.0)
            size[rows, axis] = width * torch.where(right, 1 - t, t)
            log_ratio[rows] += torch.where(right, torch.log((1 - s) / (1 - t)), torch.log(s / t))
            node = self.left[node] + right.long()
        return low + size * within, log_ratio

    @classmethod
    def fitted(cls, x: Tensor, values: Tensor, density: Tensor) -> "CellMap":
        """The tree of an integrand that is known at points.

        Args:
            x: points of the cube ``(n, D)``.
            values: |f| there ``(n,)``.
            density: that the points were drawn from ``(n,)``, not necessarily normalised.
        """
        return _Growth(x, values, density).grown()


class _Growth:
    """A tree that grows level by level."""

    def __init__(self, x: Tensor, values: Tensor, density: Tensor) -> None:
        self.dims = x.shape[1]
        self._within = x.clamp(0, 1 - 1e-12).clone()
        self._inverse = 1 / density
        self._weighted = values.square() / density
        self._node = torch.zeros(len(x), dtype=torch.long)
        self.axis = torch.full((1,), -1)
        self.place, self.share = torch.full((1,), 0.5, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
        self.left = torch.zeros(1, dtype=torch.long)
        self._live = torch.zeros(1, dtype=torch.long)
        self._probability = torch.ones(1, dtype=torch.float64)

    def grown(self) -> CellMap:
        for _ in range(_DEEPEST):
            if not len(self._live):
                break
            self._split()
        return CellMap(self.dims, self.axis, self.place, self.share, self.left)

    def _split(self) -> None:
        """Split each live cell where it is worth it; the others end here."""
        order = torch.full((len(self.axis),), -1)
        order[self._live] = torch.arange(len(self._live))
        cell = order[self._node]
        mine = torch.nonzero(cell >= 0)[:, 0]
        gain, share = self._gains(cell[mine], mine)
        best = gain.flatten(1).argmax(1)
        chosen = gain.flatten(1).gather(1, best.unsqueeze(1))[:, 0] > _SIGNIFICANT
        axis, edge = best // (_PLACES - 1), best % (_PLACES - 1)
        shares = share.flatten(1).gather(1, best.unsqueeze(1))[:, 0]
        self._grow(chosen, axis, (edge + 1).double() / _PLACES, shares, cell, mine)

    def _gains(self, cell: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What a cut at each place of each axis gains in likelihood, and the share on its left: ``(L, D, places)``."""
        count, size = len(self._live), _PLACES
        bins = (self._within[rows] * size).long().clamp(max=size - 1)
        flat = ((cell.unsqueeze(1) * self.dims + torch.arange(self.dims)) * size + bins).flatten()
        total = count * self.dims * size

        def sums(of: Tensor | None) -> Tensor:
            repeated = None if of is None else of.unsqueeze(1).expand(-1, self.dims).flatten()
            return torch.bincount(flat, repeated, total).double().view(count, self.dims, size).cumsum(2)

        numbers, weighted, inverse = sums(None), sums(self._weighted[rows]), sums(self._inverse[rows])
        place = torch.arange(1, size, dtype=torch.float64) / size
        left = place * (weighted[..., :-1] / inverse[..., :-1].clamp(min=_FEW)).sqrt()
        beyond = (inverse[..., -1:] - inverse[..., :-1]).clamp(min=_FEW)
        right = (1 - place) * ((weighted[..., -1:] - weighted[..., :-1]).clamp(min=0) / beyond).sqrt()
        whole = (weighted[..., -1:] / inverse[..., -1:].clamp(min=_FEW)).sqrt()
        share = left / (left + right).clamp(min=_FEW)
        share = torch.maximum(torch.minimum(share, 1 - _LEAST_RATIO * (1 - place)), _LEAST_RATIO * place)
        gain = 1 - (left + right) / whole.clamp(min=_FEW)
        mass = self._probability.view(-1, 1, 1) * len(self._within)
        enough = (numbers[..., :-1] >= _FEWEST) & (numbers[..., -1:] - numbers[..., :-1] >= _FEWEST)
        return torch.where(enough, mass * gain, 0.0), share

    def _grow(self, chosen: Tensor, axis: Tensor, place: Tensor, share: Tensor, cell: Tensor, mine: Tensor) -> None:
        nodes = self._live[chosen]
        first = len(self.axis) + 2 * torch.arange(len(nodes))
        self.axis[nodes], self.place[nodes] = axis[chosen], place[chosen]
        self.share[nodes], self.left[nodes] = share[chosen], first
        fresh = 2 * len(nodes)
        self.axis = torch.cat([self.axis, torch.full((fresh,), -1)])
        half = torch.full((fresh,), 0.5, dtype=torch.float64)
        self.place, self.share = torch.cat([self.place, half]), torch.cat([self.share, half])
        self.left = torch.cat([self.left, torch.zeros(fresh, dtype=torch.long)])
        moved = mine[chosen[cell[mine]]]
        at = self._node[moved]
        column = self.axis[at]
        u, t = self._within[moved, column], self.place[at]
        right = u >= t
        self._within[moved, column] = torch.where(right, (u - t) / (1 - t), u / t).clamp(max=1 - 1e-12)
        self._node[moved] = self.left[at] + right.long()
        probability = self._probability[chosen]
        self._live = torch.stack([first, first + 1], 1).flatten()
        self._probability = torch.stack([probability * share[chosen], probability * (1 - share[chosen])], 1).flatten()
