r"""The smooth halo of stars: a flattened double power law with radially anisotropic velocities.

With $m^2 = R^2 + z^2 / q^2$ the density falls as $m^{-\gamma}$ inside the scale radius r_0 and as $m^{-4}$ outside,

$$ \nu(m) = \frac{(3 - \gamma)\, r_0}{4 \pi q\, m^\gamma (m + r_0)^{4 - \gamma}}, \qquad
   M(<m) = \left(\frac{m}{m + r_0}\right)^{3 - \gamma} $$

(Dehnen 1993, MNRAS 265, 250), up to a greatest m.  Velocities are normal with axes along those of the sphere and
$\sigma_t^2 = (1 - \beta) \sigma_r^2$, where sigma_r solves the spherical Jeans equation of the density with q = 1,

$$ \nu r^{2\beta} \sigma_r^2 = \int_r^\infty \nu\, r'^{2\beta} \langle F \rangle\, dr', $$

in the radial force F averaged over directions (Binney & Tremaine 2008, eq. 4.216).  So it is in balance for q = 1 in a
spherical potential, and approximately else.  Sampling and density read the same table of sigma_r, interpolated
linearly.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbi_physics.core.random import derive, seeded
from simulators.galaxy_components import Component, gauss_legendre, log_normal
from simulators.galaxy_population import Population
from simulators.galaxy_potential import Potential, in_plane
from simulators.galaxy_quantities import measured_in, read_quantities

__all__ = ["StellarHalo", "StellarHaloDensity"]

_NODES = 129
_QUADRATURE = 48
_INNERMOST = 1e-3
_SMALLEST = 1e-12


@dataclass(frozen=True)
class StellarHalo(Component):
    """A smooth halo of stars.

    Attributes:
        name: of the component.
        mass: of its stars within `max_radius`, in solar masses; it does not gravitate.
        scale_radius: r_0 in kpc.
        population: its ages and metallicities.
        inner_slope: gamma, below 3.
        flattening: q, the axis ratio.
        anisotropy: beta, below 1; positive for radial orbits.
        max_radius: the largest m in kpc.

    Raises:
        UsageError: a value is out of its range.
    """

    name: str
    mass: float = field(metadata=measured_in("M_sun", above=0.0))
    scale_radius: float = field(metadata=measured_in("kpc", above=0.0))
    population: Population
    inner_slope: float = field(default=1.5, metadata=measured_in("", least=0.0, below=3.0))
    flattening: float = field(default=0.8, metadata=measured_in("", above=0.0))
    anisotropy: float = field(default=0.5, metadata=measured_in("", below=1.0))
    max_radius: float = field(default=100.0, metadata=measured_in("kpc", above=0.0))

    def __post_init__(self) -> None:
        read_quantities(self)

    @property
    def stellar_mass(self) -> float:  # noqa: D102
        return self.mass

    def phase_space(self, potential: Potential) -> "StellarHaloDensity":  # noqa: D102
        return StellarHaloDensity(self, potential)

    @property
    def fraction_inside(self) -> float:
        """The share of the untruncated double power law within `max_radius`."""
        return (self.max_radius / (self.max_radius + self.scale_radius)) ** (3 - self.inner_slope)

    def log_shape(self, m: Tensor) -> Tensor:
        """Ln of the density of the module's formula at m in kpc, for q = 1 and without the cut."""
        gamma, scale = self.inner_slope, self.scale_radius
        log_norm = math.log((3 - gamma) * scale / (4 * math.pi))
        return log_norm - gamma * torch.log(m) - (4 - gamma) * torch.log(m + scale)


class StellarHaloDensity:
    """The density in phase space of a halo of stars in a potential.

    Args:
        halo: the halo.
        potential: of the whole galaxy.
    """

    def __init__(self, halo: StellarHalo, potential: Potential) -> None:
        self.halo = halo
        self._low, high = math.log(_INNERMOST * halo.scale_radius), math.log(halo.max_radius * max(1, halo.flattening))
        self._step = (high - self._low) / (_NODES - 1)
        radii = torch.exp(self._low + self._step * torch.arange(_NODES, dtype=torch.float64))
        self._log_dispersions = 0.5 * torch.log(_square_dispersion(halo, potential, radii))

    def sample(self, n: int, *, seed: int) -> Tensor:
        """Draw n stars: ``(n, 6)``."""
        with seeded(derive(seed, "stellar halo")):
            enclosed = torch.rand(n, 1, dtype=torch.float64) * self.halo.fraction_inside
            direction, noise = torch.randn(2, n, 3, dtype=torch.float64)
        root = enclosed ** (1 / (3 - self.halo.inner_slope))
        positions = self.halo.scale_radius * root / (1 - root) * direction / direction.norm(dim=-1, keepdim=True)
        positions = positions * torch.tensor([1.0, 1.0, self.halo.flattening], dtype=torch.float64)
        radial, tangential = self.dispersions(positions)
        outward = positions / _norm(positions).unsqueeze(-1)
        along = (noise * outward).sum(-1, keepdim=True) * outward
        velocities = tangential.unsqueeze(-1) * (noise - along) + radial.unsqueeze(-1) * along
        return torch.cat([positions, velocities], -1)

    def log_density(self, phase_space: Tensor) -> Tensor:
        """Log-density at `phase_space` ``(n, 6)``, minus infinity beyond `max_radius`: ``(n,)``."""
        positions, velocities = phase_space.split(3, -1)
        stretched = positions / positions.new_tensor([1.0, 1.0, self.halo.flattening])
        m = _norm(stretched)
        log_position = self.halo.log_shape(m) - math.log(self.halo.flattening * self.halo.fraction_inside)
        radial, tangential = self.dispersions(positions)
        outward = positions / _norm(positions).unsqueeze(-1)
        v_radial = (velocities * outward).sum(-1)
        v_across = velocities - v_radial.unsqueeze(-1) * outward
        log_across = -0.5 * (v_across**2).sum(-1) / tangential**2 - torch.log(2 * math.pi * tangential**2)
        log_density = log_position + log_normal(v_radial, radial) + log_across
        return torch.where(m <= self.halo.max_radius, log_density, -torch.inf)

    def dispersions(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Radial and (in each of two directions) tangential dispersion ``(n,)`` in km/s at positions ``(n, 3)``."""
        table = self._log_dispersions.to(positions.device)
        u = ((torch.log(_norm(positions)) - self._low) / self._step).clamp(0, _NODES - 1)
        i = u.detach().long().clamp(max=_NODES - 2)
        radial = torch.exp(table[i] + (u - i) * (table[i + 1] - table[i]))
        return radial, radial * math.sqrt(1 - self.halo.anisotropy)


def _square_dispersion(halo: StellarHalo, potential: Potential, radii: Tensor) -> Tensor:
    """The radial dispersion squared at each radius, by the Jeans equation."""
    nodes, weights = gauss_legendre(_QUADRATURE)
    # r' = r / s maps the radii outside to s in (0, 1].
    outside = radii.unsqueeze(-1) / nodes
    log_pressure = halo.log_shape(outside) + 2 * halo.anisotropy * torch.log(outside)
    log_here = halo.log_shape(radii) + 2 * halo.anisotropy * torch.log(radii)
    weight = torch.exp(log_pressure - log_here.unsqueeze(-1)) * weights * outside / nodes
    return (weight * _mean_force(potential, outside)).sum(-1)


def _mean_force(potential: Potential, radii: Tensor) -> Tensor:
    """The force towards the centre at each radius, averaged over directions."""
    cosines, weights = gauss_legendre(_QUADRATURE)
    directions = in_plane(torch.sqrt(1 - cosines**2), cosines)
    return sum(
        -weight * (potential.acceleration(radii.unsqueeze(-1) * direction) * direction).sum(-1)
        for weight, direction in zip(weights, directions, strict=True)
    )


def _norm(positions: Tensor) -> Tensor:
    return torch.sqrt((positions**2).sum(-1).clamp(min=_SMALLEST**2))
