r"""Energy spots: how a parametrised shower becomes energies in voxels.

The calorimeter is cut along the axis into intervals.  In each of them, as in GFLASH (hep-ex/0001020),

1. the expected energy E fluctuates as sampling does: a Gamma variable of mean E and variance $\sigma_s^2 E$;
2. the number of spots is a Poisson variable, and all spots of an interval share its energy equally;
3. each spot gets a radius from the profile at the middle of the interval, and an angle.

Energy of an interval that has no spot goes to the next one that has, so that none is lost between spots.  The spots of
many showers stand in one flat list, which is worked off in parts of a bounded length; spots beside the voxels are lost.
"""

from dataclasses import dataclass

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.voxels import VoxelGeometry

__all__ = ["ShowerComponent", "SpotGrid"]

_SCALE = 50.0  # mm: radii are compared as r / (r + scale), which is below one
_FARTHEST = 1e6  # mm: beyond, r / (r + scale) would round to one, the place of the next layer
_CELLS = 256  # of the table, in each layer; a power of two, by which multiplication is exact


@dataclass(frozen=True)
class ShowerComponent:
    """What is expected of n showers, or of one part of them, in K intervals along the axis.

    Attributes:
        energy: deposited energy in GeV, float64 ``(n, K)``.
        spots: mean number of spots, float64 ``(n, K)``.
        core_share: probability that a spot belongs to the core, ``(n, K)``.
        core_radius: median radius of the core in mm, ``(n, K)``.
        tail_radius: median radius of the tail in mm, ``(n, K)``.
        resolution: sampling fluctuations in sqrt(GeV); 0 for none.
    """

    energy: Tensor
    spots: Tensor
    core_share: Tensor
    core_radius: Tensor
    tail_radius: Tensor
    resolution: float


class SpotGrid:
    """Deposits spots in the voxels of a geometry.

    Args:
        geometry: the voxels.
        layer_of_interval: index of the layer of each of the K intervals, ``(K,)``.
        max_spots: length of the part of the list that is worked on at once; a single shower may exceed it.
    """

    def __init__(self, geometry: VoxelGeometry, layer_of_interval: Tensor, max_spots: int) -> None:
        device = layer_of_interval.device
        self.size, self.max_spots, self.layer = geometry.size, max_spots, layer_of_interval.float()
        self.rings = _RingTable.of(geometry).to(device)

    def deposit(self, component: ShowerComponent) -> Tensor:
        """Energies in GeV, float64 ``(n, voxels)``, drawing from the random stream that is current."""
        # Core and tail of a Poisson number of spots are Poisson numbers again, each with one radius.
        expected = torch.stack(
            [component.spots * component.core_share, component.spots * (1 - component.core_share)], -1
        )
        counts = torch.poisson(expected).to(torch.int64)
        energy = _shared(_fluctuated(component.energy, component.resolution), counts.sum(-1))
        radius = torch.stack([component.core_radius, component.tail_radius], -1).float()
        ends = counts.sum((1, 2)).cumsum(0)
        if not len(ends):
            return energy.new_zeros(0, self.size)
        sizes = torch.unique_consecutive(ends // self.max_spots, return_counts=True)[1].tolist()
        parts = (part.split(sizes) for part in (energy.unsqueeze(-1).expand_as(expected), radius, counts))
        return torch.cat([self._deposit(*rows) for rows in zip(*parts, strict=True)])

    def _deposit(self, energy: Tensor, radius: Tensor, counts: Tensor) -> Tensor:
        """Energies ``(n, voxels)`` of spots of the given energy, median radius and number ``(n, K, 2)``."""
        shape, bins = counts.shape, self.size + 1
        layer = self.layer.unsqueeze(-1).expand(shape)
        first = (torch.arange(len(counts), device=counts.device) * bins).view(-1, 1, 1).expand(shape)
        cell = torch.repeat_interleave(counts.flatten())
        # index_select is several times as fast as indexing with a tensor.
        radius, layer, first, energy = (
            values.reshape(-1).index_select(0, cell) for values in (radius, layer, first, energy)
        )
        random = torch.rand(len(cell), 2, device=cell.device)
        radius = (radius * torch.sqrt(random[:, 0] / (1 - random[:, 0]))).clamp_max(_FARTHEST)
        voxel = first + self.rings.voxel(layer + radius / (radius + _SCALE), random[:, 1])
        deposited = torch.bincount(voxel, weights=energy, minlength=len(counts) * bins)
        return deposited.view(-1, bins)[:, : self.size]


@dataclass(frozen=True)
class _RingTable:
    """Finds the voxel of a place; the rings of all layers stand in one list, with what lies outside of each layer.

    A place is the index of its layer plus r / (r + scale).  A table of equal cells gives the ring where a cell begins,
    and the cell holds `most` edges at most: a binary search takes several times as long.
    """

    edges: Tensor
    first: Tensor
    stride: Tensor
    sectors: Tensor
    begin: Tensor
    most: int

    @classmethod
    def of(cls, geometry: VoxelGeometry) -> "_RingTable":
        edges, first, stride, sectors = [], [], [], []
        for index, (layer, place) in enumerate(zip(geometry.layers, geometry.layer_slices, strict=True)):
            edges += [index + r / (r + _SCALE) for r in layer.r_edges]
            # What is outside goes to one more voxel, which is cut off in the end.
            first += [*range(place.start, place.start + layer.rings), geometry.size]
            stride += [layer.rings] * (layer.rings + 1)
            sectors += [layer.sectors] * layer.rings + [0]
        # Before the first edge of a layer that does not begin on the axis is the outside of the layer before.
        bounds = torch.tensor([-1.0, *edges, len(geometry.layers) + 1.0])
        first, stride, sectors = [geometry.size, *first], [1, *stride], [0, *sectors]
        cells = torch.arange(len(geometry.layers) * _CELLS + 1) / _CELLS
        begin = torch.bucketize(cells, bounds, right=True) - 1
        return cls(
            bounds[1:],
            torch.tensor(first),
            torch.tensor(stride),
            torch.tensor(sectors, dtype=torch.float32),
            begin[:-1],
            int(begin.diff().max()),
        )

    def to(self, device: torch.device) -> "_RingTable":
        edges, first, stride, sectors = (t.to(device) for t in (self.edges, self.first, self.stride, self.sectors))
        return _RingTable(edges, first, stride, sectors, self.begin.to(device), self.most)

    def voxel(self, place: Tensor, turn: Tensor) -> Tensor:
        """The voxel at a place, where the angle is `turn` between 0 and 1 of a full one: ``(m,)`` each."""
        ring = self.begin.index_select(0, (place * _CELLS).to(torch.int64))
        for _ in range(self.most):
            ring = ring + (place >= self.edges.index_select(0, ring))
        sector = (turn * self.sectors.index_select(0, ring)).to(torch.int64)
        return self.first.index_select(0, ring) + sector * self.stride.index_select(0, ring)


def _fluctuated(energy: Tensor, resolution: float) -> Tensor:
    """Energies ``(n, K)`` as a sampling calorimeter sees them."""
    if not resolution:
        return energy
    quantum = resolution**2
    shape = (energy / quantum).clamp_min(1e-10)
    seen = td.Gamma(shape, torch.ones_like(shape), validate_args=False).sample() * quantum
    return torch.where(energy > 0, seen, 0.0)


def _shared(energy: Tensor, counts: Tensor) -> Tensor:
    """Energy of each spot of an interval ``(n, K)``, given the energies and the numbers of spots of the intervals."""
    total = energy.cumsum(1)
    last = counts.sum(1, keepdim=True) == counts.cumsum(1)
    total = torch.where(last, total[:, -1:], total)
    filled = counts > 0
    reached = torch.where(filled, total, 0.0).cummax(1).values
    before = torch.nn.functional.pad(reached[:, :-1], (1, 0))
    return torch.where(filled, (total - before) / counts.clamp_min(1), 0.0)
