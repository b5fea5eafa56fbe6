r"""Energy spots: how a parametrised shower becomes energies in voxels.

The calorimeter is cut along the axis into intervals.  In each of them, as in GFLASH (hep-ex/0001020, sections 2.3 and
3.3),

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
        self.size, self.max_spots, self.layer_of_interval = geometry.size, max_spots, layer_of_interval
        edges, first, sectors, rings = [], [], [], []
        for index, (layer, place) in enumerate(zip(geometry.layers, geometry.layer_slices, strict=True)):
            edges += [index + r / (r + _SCALE) for r in layer.r_edges]
            # Beyond the last edge there are no sectors, and the first voxel is one that is cut off in the end.
            first += [place.start + ring for ring in range(layer.rings)] + [self.size]
            sectors += [layer.sectors] * layer.rings + [0]
            rings += [layer.rings] * (layer.rings + 1)
        self.edges = torch.tensor(edges)
        self.first, self.sectors, self.rings = torch.tensor(first), torch.tensor(sectors).float(), torch.tensor(rings)

    def deposit(self, component: ShowerComponent) -> Tensor:
        """Energies in GeV, float64 ``(n, voxels)``, drawing from the random stream that is current."""
        counts = torch.poisson(component.spots).to(torch.int64)
        spot_energy = _shared(_fluctuated(component.energy, component.resolution), counts)
        parts = [spot_energy, component.core_share, component.core_radius, component.tail_radius, counts]
        ends = counts.sum(1).cumsum(0)
        sizes = torch.unique_consecutive(ends // self.max_spots, return_counts=True)[1].tolist() if len(ends) else []
        done = [self._deposit(*rows) for rows in zip(*(part.split(sizes) for part in parts), strict=True)]
        return torch.cat(done) if done else component.energy.new_zeros(0, self.size)

    def _deposit(self, energy: Tensor, share: Tensor, core: Tensor, tail: Tensor, counts: Tensor) -> Tensor:
        rows, intervals = energy.shape
        device = energy.device
        cell = torch.repeat_interleave(counts.flatten())
        random = torch.rand(len(cell), 3, device=device)
        radius = torch.where(
            random[:, 0] < share.float().flatten()[cell], core.float().flatten()[cell], tail.float().flatten()[cell]
        )
        radius = radius * torch.sqrt(random[:, 1] / (1 - random[:, 1]))
        layer = self.layer_of_interval.to(device, torch.float32).repeat(rows)[cell]
        ring = torch.bucketize(layer + radius / (radius + _SCALE), self.edges.to(device), right=True) - 1
        sector = (random[:, 2] * self.sectors.to(device)[ring]).to(torch.int64)
        voxel = self.first.to(device)[ring] + sector * self.rings.to(device)[ring]
        voxel += torch.div(cell, intervals, rounding_mode="floor") * (self.size + 1)
        deposited = torch.bincount(voxel, weights=energy.flatten()[cell], minlength=rows * (self.size + 1))
        return deposited.view(rows, self.size + 1)[:, : self.size]


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
