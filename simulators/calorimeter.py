r"""Photons, electrons and charged pions in a calorimeter, spot by spot.

The detector is like the barrel of ATLAS, cut into the voxels of the first data set of the Fast Calorimeter Simulation
Challenge (arXiv:2410.21611): lead and liquid argon up to the depth of 25 radiation lengths $X_0$, then iron and
scintillating tiles.  There is nothing in front of the presampler, and the particle enters on the axis:

======  ==========  ===============  ==========================
number  layer       up to $X_0$      up to interaction lengths
======  ==========  ===============  ==========================
0       presampler  1.7              0.08
1       strips      6                0.27
2       middle      22               0.99
3       back        25               1.12
12      tiles 1     39               2.62
13      tiles 2     77 (pions only)  6.72
14      tiles 3     94 (pions only)  8.52
======  ==========  ===============  ==========================

What leaves at the back or beside the voxels is lost.  x holds the energy of each voxel in MeV; a voxel below the
threshold reads exactly zero.  Electromagnetic showers follow hep-ex/0001020 (`simulators.gflash`), hadronic ones NIM
A290 (1990) 469 (`simulators.hadronic_showers`); each makes as many spots as the parametrisation asks for, so that the
time of a shower grows about as its energy.  In the tiles an electromagnetic shower goes on as in lead and argon, with
their radiation length and Moliere radius.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.random import seeded
from sbi_physics.core.voxels import DATASET_1_PHOTONS, DATASET_1_PIONS, VoxelGeometry
from simulators import gflash, hadronic_showers
from simulators.gflash import LEAD_ARGON, GammaProfile, Medium
from simulators.hadronic_showers import HADRONIC_RESOLUTION
from simulators.shower_spots import ShowerComponent, SpotGrid

__all__ = [
    "PHOTON_CALORIMETER",
    "PION_CALORIMETER",
    "Calorimeter",
    "ElectromagneticShowers",
    "HadronicShowers",
    "Section",
]

_CONVERSION_LENGTH = 9 / 7  # mean free path of photons in radiation lengths


@dataclass(frozen=True)
class Section:
    """One layer along the axis.

    Attributes:
        thickness: radiation lengths.
        radiation_length: mm.
        interaction_length: mm.
        moliere_radius: mm.
        hadronic: whether it belongs to the hadronic calorimeter, behind the electromagnetic one.
    """

    thickness: float
    radiation_length: float
    interaction_length: float
    moliere_radius: float
    hadronic: bool = False


@dataclass(frozen=True)
class Calorimeter:
    """Layers along the axis and the voxels of each.

    Attributes:
        geometry: the voxels.
        sections: one for each layer of the geometry.
        step: the longest interval along the axis in radiation lengths.

    Raises:
        UsageError: there are not as many sections as layers, or a length is not positive.
    """

    geometry: VoxelGeometry
    sections: tuple[Section, ...]
    step: float = 1.0

    def __post_init__(self) -> None:
        if len(self.sections) != len(self.geometry.layers):
            raise UsageError(f"sections: expected {len(self.geometry.layers)}, one a layer, got {len(self.sections)}")
        for section in self.sections:
            lengths = section.thickness, section.radiation_length, section.interaction_length, section.moliere_radius
            if not all(0 < length < math.inf for length in lengths):
                raise UsageError(f"sections: expected positive lengths, got {section}")
        if not 0 < self.step < math.inf:
            raise UsageError(f"step: expected a positive length, got {self.step!r}")


@dataclass(frozen=True)
class _Intervals:
    """The K intervals along the axis: depths of their edges ``(K + 1,)``, and the properties of each ``(K,)``."""

    radiation: Tensor
    interaction: Tensor
    layer: Tensor
    moliere_radius: Tensor
    hadronic: Tensor

    def radiation_at(self, interaction: Tensor) -> Tensor:
        """The depth in radiation lengths of a depth in interaction lengths, ``(n,)`` each."""
        index = torch.bucketize(interaction, self.interaction[1:-1])
        slope = self.radiation.diff() / self.interaction.diff()
        return self.radiation[index] + (interaction - self.interaction[index]) * slope[index]

    @classmethod
    def of(cls, calorimeter: Calorimeter, device: torch.device) -> "_Intervals":
        counts = [math.ceil(section.thickness / calorimeter.step) for section in calorimeter.sections]
        layer = torch.repeat_interleave(torch.tensor(counts))

        def spread(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)[layer].to(device)

        steps = [section.thickness / count for section, count in zip(calorimeter.sections, counts, strict=True)]
        ratio = [section.radiation_length / section.interaction_length for section in calorimeter.sections]
        radiation, zero = spread(steps), torch.zeros(1, dtype=torch.float64, device=device)
        return cls(
            torch.cat([zero, radiation.cumsum(0)]),
            torch.cat([zero, (radiation * spread(ratio)).cumsum(0)]),
            layer.to(device),
            spread([section.moliere_radius for section in calorimeter.sections]),
            spread([float(section.hadronic) for section in calorimeter.sections]) > 0,
        )


class ElectromagneticShowers:
    """Energies of the voxels from the energy of a photon or an electron.

    Args:
        calorimeter: layers and voxels.
        medium: what the showers develop in.
        energies: lowest and highest incident energy in MeV; the prior is uniform in the logarithm.
        threshold: energy in MeV below which a voxel reads zero.
        converts: whether the particle is a photon, whose shower starts where it converts; an electron's starts at once.
        max_spots: how many spots are in memory at once (about 100 bytes each); the result does not depend on it.

    Attributes:
        geometry: the voxels of x.
        x_shape: ``(voxels,)``.

    Raises:
        UsageError: an argument is out of its range.
    """

    name = "calorimeter_photons"

    def __init__(
        self,
        *,
        calorimeter: Calorimeter | None = None,
        medium: Medium = LEAD_ARGON,
        energies: tuple[float, float] = (256.0, 2.0**22),
        threshold: float = 1.0,
        converts: bool = True,
        max_spots: int = 2**16,
    ) -> None:
        self.calorimeter, self.medium, self.converts = calorimeter or PHOTON_CALORIMETER, medium, converts
        self.geometry = self.calorimeter.geometry
        self.x_shape = torch.Size([self.geometry.size])
        self.parameters = _incident_energy(energies)
        self.threshold, self.max_spots = _checked_threshold(threshold), positive_integer(max_spots, "max_spots")

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, 1)`` in MeV gives float32 x ``(n, voxels)`` in MeV.

        On a GPU the order of a sum is not fixed, and the last digit may differ from run to run.
        """
        energy = _checked_energy(theta, self.parameters)
        intervals = _Intervals.of(self.calorimeter, theta.device)
        with seeded(seed, theta.device):
            normals = torch.randn(len(energy), 2, dtype=torch.float64, device=theta.device)
            start = _exponential(energy) * (_CONVERSION_LENGTH if self.converts else 0.0)
            component = self._component(energy, start, normals, intervals)
            deposited = SpotGrid(self.geometry, intervals.layer, self.max_spots).deposit(component)
        return _read_out(deposited, self.threshold)

    def _component(self, energy: Tensor, start: Tensor, normals: Tensor, intervals: _Intervals) -> ShowerComponent:
        profile, scale = gflash.longitudinal_profile(self.medium, energy, normals)
        edges = (intervals.radiation - start.unsqueeze(-1)).clamp_min(0)
        spots = gflash.spot_profile(self.medium, profile).between(edges)
        tau = _middle(edges) * (scale / profile.mean).unsqueeze(-1)
        share, core, tail = gflash.radial_profile(self.medium, energy, tau)
        return ShowerComponent(
            energy.unsqueeze(-1) * profile.between(edges),
            gflash.number_of_spots(self.medium, energy).unsqueeze(-1) * spots,
            share,
            core * intervals.moliere_radius,
            tail * intervals.moliere_radius,
            self.medium.resolution,
        )


class HadronicShowers:
    """Energies of the voxels from the energy of a charged pion.

    Args:
        calorimeter: layers and voxels.
        medium: what the electromagnetic parts of the showers develop in.
        energies: lowest and highest incident energy in MeV; the prior is uniform in the logarithm.
        threshold: energy in MeV below which a voxel reads zero.
        max_spots: how many spots are in memory at once (about 100 bytes each); the result does not depend on it.

    Attributes:
        geometry: the voxels of x.
        x_shape: ``(voxels,)``.

    Raises:
        UsageError: an argument is out of its range.
    """

    name = "calorimeter_pions"

    def __init__(
        self,
        *,
        calorimeter: Calorimeter | None = None,
        medium: Medium = LEAD_ARGON,
        energies: tuple[float, float] = (256.0, 2.0**22),
        threshold: float = 1.0,
        max_spots: int = 2**16,
    ) -> None:
        self.calorimeter, self.medium = calorimeter or PION_CALORIMETER, medium
        self.geometry = self.calorimeter.geometry
        self.x_shape = torch.Size([self.geometry.size])
        self.parameters = _incident_energy(energies)
        self.threshold, self.max_spots = _checked_threshold(threshold), positive_integer(max_spots, "max_spots")

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, 1)`` in MeV gives float32 x ``(n, voxels)`` in MeV.

        On a GPU the order of a sum is not fixed, and the last digit may differ from run to run.
        """
        energy = _checked_energy(theta, self.parameters)
        intervals = _Intervals.of(self.calorimeter, theta.device)
        grid = SpotGrid(self.geometry, intervals.layer, self.max_spots)
        with seeded(seed, theta.device):
            components = self._components(energy, intervals)
            deposited = sum((grid.deposit(component) for component in components), torch.zeros(()))
        return _read_out(deposited, self.threshold)

    def _components(self, energy: Tensor, intervals: _Intervals) -> list[ShowerComponent]:
        """The hadronic part, the late and the early neutral pions."""
        normals = torch.randn(len(energy), 5, dtype=torch.float64, device=energy.device)
        start = _exponential(energy)
        hadronic, early, late = hadronic_showers.energy_shares(energy)
        profiles = hadronic_showers.hadronic_profiles(energy, normals[:, :4])
        depth = (intervals.interaction - start.unsqueeze(-1)).clamp_min(0)
        radius = hadronic_showers.hadronic_radius(energy, _middle(depth), intervals.hadronic, normals[:, 4])
        radius = radius * intervals.moliere_radius

        def wide(part: Tensor, spots: Tensor, profile: GammaProfile, resolution: float) -> ShowerComponent:
            share, all_core = profile.between(depth), torch.ones_like(radius)
            return ShowerComponent(_outer(part, share), _outer(spots, share), all_core, radius, radius, resolution)

        pion_spots = gflash.number_of_spots(self.medium, late)
        return [
            wide(hadronic, hadronic_showers.hadronic_spots(hadronic), profiles.hadronic, HADRONIC_RESOLUTION),
            wide(late, pion_spots, profiles.late, self.medium.resolution),
            self._early_pions(early, intervals.radiation_at(start), profiles.early, intervals),
        ]

    def _early_pions(
        self, energy: Tensor, start: Tensor, profile: GammaProfile, intervals: _Intervals
    ) -> ShowerComponent:
        edges = (intervals.radiation - start.unsqueeze(-1)).clamp_min(0)
        share = profile.between(edges)
        tau = _middle(edges) / profile.mean.unsqueeze(-1)
        weight, core, tail = gflash.radial_profile(self.medium, energy.clamp_min(_LOWEST_PION_ENERGY), tau)
        return ShowerComponent(
            _outer(energy, share),
            _outer(gflash.number_of_spots(self.medium, energy), share),
            weight,
            core * intervals.moliere_radius,
            tail * intervals.moliere_radius,
            self.medium.resolution,
        )


def _outer(total: Tensor, share: Tensor) -> Tensor:
    return total.unsqueeze(-1) * share


def _middle(edges: Tensor) -> Tensor:
    return (edges[:, 1:] + edges[:, :-1]) / 2


def _exponential(like: Tensor) -> Tensor:
    """Depths of first interactions in mean free paths, ``(n,)``."""
    return -torch.log1p(-torch.rand_like(like))


def _read_out(deposited: Tensor, threshold: float) -> Tensor:
    """GeV to MeV, and zero below the threshold."""
    seen = 1000 * deposited
    return torch.where(seen < threshold, 0.0, seen).to(torch.float32)


def _incident_energy(energies: tuple[float, float]) -> Parameters:
    low, high = energies
    if not 0 < low < high < math.inf:
        raise UsageError(f"energies: expected two increasing positive numbers in MeV, got {energies}")
    return Parameters([Parameter("energy", LogUniform(float(low), float(high)), "MeV", "$E$")])


def _checked_threshold(threshold: float) -> float:
    if not 0 <= threshold < math.inf:
        raise UsageError(f"threshold: expected an energy in MeV of at least 0, got {threshold!r}")
    return float(threshold)


def _checked_energy(theta: Tensor, parameters: Parameters) -> Tensor:
    """Incident energies in GeV, float64 ``(n,)``, of theta ``(n, 1)`` in MeV."""
    parameters.check_width(theta)
    energy = theta.detach().to(torch.float64).squeeze(-1) / 1000
    if energy.ndim != 1:
        raise ShapeError(f"theta: expected shape (n, 1), got {tuple(theta.shape)}")
    good = (energy > 0) & torch.isfinite(energy)
    if not bool(good.all()):
        row = int(torch.nonzero(~good)[0, 0])
        raise SupportError(f"theta: expected positive energies in MeV, got {float(theta[row, 0]):g} in row {row}")
    return energy


def _barrel(geometry: VoxelGeometry, tiles: tuple[float, ...]) -> Calorimeter:
    """The barrel of ATLAS with the given layers of tiles, in interaction lengths."""
    argon = [1.7, 4.3, 16.0, 3.0]
    plates = (LEAD_ARGON.radiation_length, LEAD_ARGON.interaction_length, LEAD_ARGON.moliere_radius)
    per_interaction = _TILES[1] / _TILES[0]
    sections = [Section(x, *plates) for x in argon] + [
        Section(x * per_interaction, *_TILES, hadronic=True) for x in tiles
    ]
    return Calorimeter(geometry, tuple(sections))


_LOWEST_PION_ENERGY = 0.05  # GeV, where the logarithms of the radial profile stop
_TILES = (22.4, 207.0, 20.5)  # mm: radiation and interaction length, Moliere radius (CERN/LHCC 96-42)
_TILE_LAYERS = (1.5, 4.1, 1.8)  # interaction lengths (JINST 3 (2008) S08003)

PHOTON_CALORIMETER = _barrel(DATASET_1_PHOTONS, _TILE_LAYERS[:1])
"""Five layers, 368 voxels."""

PION_CALORIMETER = _barrel(DATASET_1_PIONS, _TILE_LAYERS)
"""Seven layers, 533 voxels."""
