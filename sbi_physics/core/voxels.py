r"""Voxels of a calorimeter shower: layers along the axis of the particle, cut into rings and, in some, into sectors.

The voxels of a layer are numbered sector by sector, and within a sector from the axis outwards; the sectors start at
the angle -pi.  At the centre of a voxel, at the radius r and the angle alpha,

$$ \eta = r \cos\alpha, \qquad \phi = r \sin\alpha, $$

both in mm, as in the Fast Calorimeter Simulation Challenge (arXiv:2410.21611), whose first data set gave the two
geometries below (``binning_dataset_1_photons.xml`` and ``binning_dataset_1_pions.xml``).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import UsageError

__all__ = ["DATASET_1_PHOTONS", "DATASET_1_PIONS", "VoxelGeometry", "VoxelLayer"]


@dataclass(frozen=True)
class VoxelLayer:
    """The voxels of one layer.

    Attributes:
        identifier: number of the layer in the detector; numbers need not be consecutive.
        r_edges: increasing radii in mm, from the inner edge of the first ring to the outer edge of the last.
        sectors: number of bins in the angle; 1 where a ring is not cut.

    Raises:
        UsageError: the radii are fewer than two, negative or not increasing, or there is no sector.
    """

    identifier: int
    r_edges: tuple[float, ...]
    sectors: int = 1

    def __post_init__(self) -> None:
        edges = self.r_edges
        if len(edges) < 2 or edges[0] < 0 or not all(a < b < math.inf for a, b in pairwise(edges)):
            raise UsageError(f"r_edges: expected at least two increasing radii, none negative, got {edges}")
        positive_integer(self.sectors, "sectors")

    @property
    def rings(self) -> int:
        """Number of bins in the radius."""
        return len(self.r_edges) - 1

    @property
    def size(self) -> int:
        """Number of voxels."""
        return self.rings * self.sectors


@dataclass(frozen=True)
class VoxelGeometry:
    """The voxels of a shower, layer after layer.

    Attributes:
        layers: in the order in which the particle meets them.

    Raises:
        UsageError: there is no layer, or two have the same number.
    """

    layers: tuple[VoxelLayer, ...]

    def __post_init__(self) -> None:
        names = [layer.identifier for layer in self.layers]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"layers: expected at least one, with distinct numbers, got {names}")

    @property
    def size(self) -> int:
        """Number of voxels of all layers."""
        return sum(layer.size for layer in self.layers)

    @cached_property
    def layer_slices(self) -> tuple[slice, ...]:
        """Where the voxels of each layer stand in a shower."""
        ends = list(accumulate(layer.size for layer in self.layers))
        return tuple(slice(end - layer.size, end) for end, layer in zip(ends, self.layers, strict=True))

    @cached_property
    def radii(self) -> Tensor:
        """Radius of the middle of each voxel in mm, float64 ``(size,)``."""
        rings = [torch.tensor([(a + b) / 2 for a, b in pairwise(layer.r_edges)]) for layer in self.layers]
        return torch.cat([r.repeat(layer.sectors) for r, layer in zip(rings, self.layers, strict=True)]).double()

    @cached_property
    def angles(self) -> Tensor:
        """Angle of the middle of each voxel in radians, float64 ``(size,)``; zero in a layer without sectors."""
        middles = [(torch.arange(n, dtype=torch.float64) + 0.5) * (2 * math.pi / n) - math.pi for n in self._sectors]
        return torch.cat([a.repeat_interleave(layer.rings) for a, layer in zip(middles, self.layers, strict=True)])

    @cached_property
    def ring_of(self) -> Tensor:
        """The ring of each voxel, int64 ``(size,)``; rings of all layers are counted through."""
        firsts = accumulate((layer.rings for layer in self.layers[:-1]), initial=0)
        rings = [first + torch.arange(layer.rings) for layer, first in zip(self.layers, firsts, strict=True)]
        return torch.cat([ring.repeat(layer.sectors) for ring, layer in zip(rings, self.layers, strict=True)])

    @property
    def eta(self) -> Tensor:
        """Coordinate of the middle of each voxel along eta in mm, float64 ``(size,)``."""
        return self.radii * torch.cos(self.angles)

    @property
    def phi(self) -> Tensor:
        """Coordinate of the middle of each voxel along phi in mm, float64 ``(size,)``."""
        return self.radii * torch.sin(self.angles)

    @property
    def _sectors(self) -> list[int]:
        return [layer.sectors for layer in self.layers]


_PRESAMPLER = VoxelLayer(0, (0, 5, 10, 30, 50, 100, 200, 400, 600))
_BACK = VoxelLayer(3, (0, 50, 100, 200, 400, 600))

DATASET_1_PHOTONS = VoxelGeometry(
    (
        _PRESAMPLER,
        VoxelLayer(1, (0, 2, 4, 6, 8, 10, 12, 15, 20, 30, 40, 50, 70, 90, 120, 150, 200), 10),
        VoxelLayer(2, (0, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 130, 160, 200, 250, 300, 350, 400), 10),
        _BACK,
        VoxelLayer(12, (0, 100, 200, 400, 1000, 2000)),
    )
)
"""368 voxels in five layers: presampler, strips, middle and back of the barrel, first layer of tiles."""

DATASET_1_PIONS = VoxelGeometry(
    (
        _PRESAMPLER,
        VoxelLayer(1, (0, 1, 4, 7, 10, 15, 30, 50, 90, 150, 200), 10),
        VoxelLayer(2, (0, 5, 10, 20, 30, 50, 80, 130, 200, 300, 400), 10),
        _BACK,
        VoxelLayer(12, (0, 10, 20, 30, 50, 80, 100, 130, 160, 200, 250, 300, 350, 400, 1000, 2000), 10),
        VoxelLayer(13, (0, 10, 20, 30, 50, 80, 100, 130, 160, 200, 250, 300, 350, 400, 600, 1000, 2000), 10),
        VoxelLayer(14, (0, 50, 100, 150, 200, 250, 300, 400, 600, 1000, 2000)),
    )
)
"""533 voxels in seven layers: those of the photons, coarser, and three layers of tiles."""
