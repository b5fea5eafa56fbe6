r"""A Miyamoto-Nagai disc of stars whose velocities solve the Jeans equations.

**Positions** are exact draws.  The heights have the marginal $b^2 / 2 (z^2 + b^2)^{3/2}$, and given z the mass outside
the radius R is $a s^{-1/2} + B A^2 s^{-3/2}$ with $s = R^2 + A^2$ (notation of `galaxy_potential`): a cubic in
$s^{-1/2}$ with one root.  The disc is cut to a cylinder, because a ninth of its mass lies beyond 9 a.

**Velocities** are normal about a rotation, with axes along those of the cylinder and a constant ratio
$\sigma_R / \sigma_z$.  The Jeans equations then fix all else (Cappellari 2008, arXiv:0806.0042, eqs. 8 and 9):

$$ \nu \sigma_z^2 = \int_z^\infty \nu \frac{\partial \Phi}{\partial z'} dz', \qquad
   \langle v_\phi^2 \rangle = R \frac{\partial \Phi}{\partial R} + \sigma_R^2 + \frac{R}{\nu}
   \frac{\partial (\nu \sigma_R^2)}{\partial R}, $$

so the asymmetric drift follows.  What is approximate: the second moment of v_phi is split into dispersion and rotation
by the epicyclic $\sigma_\phi^2 = \sigma_R^2 \kappa^2 / 4 \Omega^2$ (in the plane; where the rest is negative, there is
no rotation); the shapes of the distributions are normal; and the tables of moments are interpolated linearly, to a
few parts in a thousand.  Sampling and density read the same tables, so the density is exactly that of the draws.

The disc turns clockwise seen from positive z, as the Milky Way does in astropy's Galactocentric frame.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbi_physics.core.errors import BudgetError, UsageError
from sbi_physics.core.random import derive, seeded
from simulators.galaxy_components import Component, gauss_legendre, log_normal
from simulators.galaxy_population import Population
from simulators.galaxy_potential import MiyamotoNagai, Potential, in_plane
from simulators.galaxy_quantities import measured_in, read_quantities

__all__ = ["Disc", "DiscDensity"]

_NODES = (129, 65)
_QUADRATURE = 32
_TOP = 100.0
_MAX_ROUNDS = 200
_LEAST_INSIDE = 0.01
_LEAST_AZIMUTHAL = 0.01


@dataclass(frozen=True)
class Disc(Component):
    """A disc of stars.

    Attributes:
        name: of the component.
        mass: M of the whole Miyamoto-Nagai disc, which is what the potential has, in solar masses.
        radial_scale: a in kpc.
        vertical_scale: b in kpc.
        anisotropy: sigma_R / sigma_z.
        population: its ages and metallicities.
        max_radius: cylindrical radius in kpc beyond which there are no stars.
        max_height: distance from the plane in kpc beyond which there are no stars.

    Raises:
        UsageError: a value is out of its range, or the cuts leave less than a hundredth of the disc.
    """

    name: str
    mass: float = field(metadata=measured_in("M_sun", above=0.0))
    radial_scale: float = field(metadata=measured_in("kpc", above=0.0))
    vertical_scale: float = field(metadata=measured_in("kpc", above=0.0))
    anisotropy: float = field(metadata=measured_in("", above=0.0))
    population: Population
    max_radius: float = field(default=30.0, metadata=measured_in("kpc", above=0.0))
    max_height: float = field(default=10.0, metadata=measured_in("kpc", above=0.0))

    def __post_init__(self) -> None:
        read_quantities(self)
        if self.fraction_inside < _LEAST_INSIDE:
            raise UsageError(
                f"Disc {self.name}: expected max_radius and max_height to keep at least {_LEAST_INSIDE:.0%} of the "
                f"mass, got {self.fraction_inside:.2%}"
            )

    @property
    def matter(self) -> MiyamotoNagai:
        """The disc as a source of gravity, without its cuts."""
        return MiyamotoNagai(self.mass, self.radial_scale, self.vertical_scale)

    @property
    def fraction_inside(self) -> float:
        """The share of the mass that lies within the cuts."""
        nodes, weights = gauss_legendre(256)
        levels = nodes * self.max_height / math.hypot(self.max_height, self.vertical_scale)
        inside = 1 - self.mass_outside(torch.tensor(self.max_radius, dtype=torch.float64), self._height(levels))
        return float((inside * weights).sum()) * self.max_height / math.hypot(self.max_height, self.vertical_scale)

    @property
    def stellar_mass(self) -> float:  # noqa: D102
        return self.mass * self.fraction_inside

    def phase_space(self, potential: Potential) -> "DiscDensity":  # noqa: D102
        return DiscDensity(self, potential)

    def mass_outside(self, radii: Tensor, heights: Tensor) -> Tensor:
        """Fraction of the mass at each height that lies beyond each radius, in kpc."""
        bend = torch.sqrt(heights**2 + self.vertical_scale**2)
        depth = self.radial_scale + bend
        square = radii**2 + depth**2
        return self.radial_scale * square**-0.5 + bend * depth**2 * square**-1.5

    def sample_plane(self, n: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Draw cylindrical radii and heights ``(n,)`` in kpc within the cuts."""
        top = self.max_height / math.hypot(self.max_height, self.vertical_scale)
        per_round = math.ceil(1.1 * n * top / self.fraction_inside) + 16
        kept: list[Tensor] = []
        with seeded(derive(seed, "disc positions")):
            for _ in range(_MAX_ROUNDS):
                heights = self._height(top * (2 * torch.rand(per_round, dtype=torch.float64) - 1))
                radii = self._radius(1 - torch.rand(per_round, dtype=torch.float64), heights)
                kept.append(torch.stack([radii, heights])[:, radii <= self.max_radius])
                if sum(part.shape[1] for part in kept) >= n:
                    radii, heights = torch.cat(kept, 1)[:, :n]
                    return radii, heights
        raise BudgetError(f"Disc {self.name}: {_MAX_ROUNDS} rounds gave fewer than the {n} stars asked for")

    def _height(self, levels: Tensor) -> Tensor:
        """The height z with z / sqrt(z^2 + b^2) = level."""
        return self.vertical_scale * levels / torch.sqrt(1 - levels**2)

    def _radius(self, outside: Tensor, heights: Tensor) -> Tensor:
        """The radius beyond which lies the fraction `outside` in (0, 1] of the mass at these heights."""
        bend = torch.sqrt(heights**2 + self.vertical_scale**2)
        depth = self.radial_scale + bend
        # y = A / sqrt(s) solves (B / A) y^3 + (a / A) y = outside; the one real root, by the hyperbolic formula.
        third = torch.sqrt(self.radial_scale / (3 * bend))
        y = 2 * third * torch.sinh(torch.asinh(outside * depth / (2 * bend * third**3)) / 3)
        return depth * torch.sqrt((1 / y**2 - 1).clamp(min=0))


class DiscDensity:
    """The density in phase space of a disc in a potential.

    Args:
        disc: the disc.
        potential: of the whole galaxy.
    """

    def __init__(self, disc: Disc, potential: Potential) -> None:
        self.disc = disc
        self._log_inside = math.log(disc.fraction_inside)
        self._unit_disc = MiyamotoNagai(1.0, disc.radial_scale, disc.vertical_scale)
        self._steps = tuple(
            math.asinh(cut / scale) / (nodes - 1)
            for cut, scale, nodes in zip(self._cuts, self._scales, _NODES, strict=True)
        )
        radii, heights = (
            scale * torch.sinh(step * torch.arange(nodes, dtype=torch.float64))
            for scale, step, nodes in zip(self._scales, self._steps, _NODES, strict=True)
        )
        # The moments are smooth at the axis, where logarithmic derivatives are not defined.
        self._table = _moments(disc, potential, radii.clamp(min=1e-4 * disc.radial_scale), heights)

    @property
    def _cuts(self) -> tuple[float, float]:
        return self.disc.max_radius, self.disc.max_height

    @property
    def _scales(self) -> tuple[float, float]:
        return 0.3 * self.disc.radial_scale, self.disc.vertical_scale

    def sample(self, n: int, *, seed: int) -> Tensor:
        """Draw n stars: ``(n, 6)``."""
        radii, heights = self.disc.sample_plane(n, seed=seed)
        with seeded(derive(seed, "disc velocities")):
            azimuths = 2 * math.pi * torch.rand(n, dtype=torch.float64)
            noise = torch.randn(n, 3, dtype=torch.float64)
        rotation, dispersions = self.moments(radii, heights)
        v_radial, v_along, v_up = (dispersions * noise).unbind(-1)
        v_along = v_along + rotation
        cos, sin = torch.cos(azimuths), torch.sin(azimuths)
        return torch.stack(
            [
                radii * cos,
                radii * sin,
                heights,
                v_radial * cos + v_along * sin,
                v_radial * sin - v_along * cos,
                v_up,
            ],
            -1,
        )

    def log_density(self, phase_space: Tensor) -> Tensor:
        """Log-density at `phase_space` ``(n, 6)``, minus infinity beyond the cuts: ``(n,)``."""
        x, y, z, vx, vy, vz = phase_space.unbind(-1)
        radii = torch.hypot(x, y)
        inside = (radii <= self.disc.max_radius) & (z.abs() <= self.disc.max_height)
        # On the axis, of no volume, the direction of the rotation is taken along -y.
        cos = torch.where(radii > 0, x / radii.clamp(min=1e-300), 1.0)
        sin = torch.where(radii > 0, y / radii.clamp(min=1e-300), 0.0)
        rotation, dispersions = self.moments(radii, z)
        offsets = torch.stack([vx * cos + vy * sin, vx * sin - vy * cos - rotation, vz], -1)
        log_position = torch.log(self._unit_disc.density(phase_space[:, :3])) - self._log_inside
        return torch.where(inside, log_position + log_normal(offsets, dispersions).sum(-1), -torch.inf)

    def moments(self, radii: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean rotation ``(n,)`` and dispersions ``(n, 3)`` along R, phi and z in km/s, at radii and heights in kpc."""
        table = self._table.to(radii.device)
        u = (torch.asinh(radii / self._scales[0]) / self._steps[0]).clamp(0, _NODES[0] - 1)
        w = (torch.asinh(heights.abs() / self._scales[1]) / self._steps[1]).clamp(0, _NODES[1] - 1)
        i, j = (c.detach().long().clamp(max=nodes - 2) for c, nodes in zip((u, w), _NODES, strict=True))
        u, w = (u - i).unsqueeze(-1), (w - j).unsqueeze(-1)
        lower = (1 - w) * table[i, j] + w * table[i, j + 1]
        upper = (1 - w) * table[i + 1, j] + w * table[i + 1, j + 1]
        rotation, log_azimuthal, log_vertical = ((1 - u) * lower + u * upper).unbind(-1)
        vertical = torch.exp(log_vertical)
        return rotation, torch.stack([self.disc.anisotropy * vertical, torch.exp(log_azimuthal), vertical], -1)


def _moments(disc: Disc, potential: Potential, radii: Tensor, heights: Tensor) -> Tensor:
    """Rotation, ln sigma_phi and ln sigma_z at each radius and height: ``(radii, heights, 3)``."""
    at_radii, at_heights = (axis.contiguous() for axis in torch.meshgrid(radii, heights, indexing="ij"))
    pressure, slope = _vertical_pressure(disc, potential, at_radii, at_heights)
    positions = in_plane(at_radii, at_heights)
    density = disc.matter.density(positions)
    square_vertical = pressure / density
    square_radial = disc.anisotropy**2 * square_vertical
    force = -potential.acceleration(positions)[..., 0]
    second_moment = at_radii * (force + disc.anisotropy**2 * slope / density) + square_radial
    epicyclic = square_radial * potential.frequency_ratio(radii).unsqueeze(-1)
    square_azimuthal = torch.minimum(epicyclic, second_moment).clamp(min=_LEAST_AZIMUTHAL * square_radial)
    rotation = torch.sqrt((second_moment - square_azimuthal).clamp(min=0))
    return torch.stack([rotation, 0.5 * torch.log(square_azimuthal), 0.5 * torch.log(square_vertical)], -1)


def _vertical_pressure(disc: Disc, potential: Potential, radii: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
    """The integral of density times vertical force above each point, and its derivative in R."""
    nodes, weights = gauss_legendre(_QUADRATURE)
    b = disc.vertical_scale
    # Even steps in asinh(z / b) see both the thickness of the disc and its tails; beyond the top there is 1e-12 of it.
    lowest = torch.asinh(heights / b).unsqueeze(-1)
    top = torch.asinh(_TOP * (heights + radii + disc.radial_scale + b) / b).unsqueeze(-1)
    levels = lowest + (top - lowest) * nodes
    above = b * torch.sinh(levels)
    width = (top - lowest) * weights * b * torch.cosh(levels)
    with torch.enable_grad():
        at = radii.unsqueeze(-1).expand_as(above).contiguous().requires_grad_()
        positions = in_plane(at, above)
        integrand = -disc.matter.density(positions) * potential.acceleration(positions)[..., 2]
        (slope,) = torch.autograd.grad(integrand.sum(), at)
    return (integrand.detach() * width).sum(-1), (slope * width).sum(-1)
