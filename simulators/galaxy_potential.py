r"""The gravity of a galaxy: Miyamoto-Nagai discs and a dark halo of Navarro, Frenk & White, and orbits in it.

With R and z cylindrical coordinates, $B = \sqrt{z^2 + b^2}$ and $A = a + B$, a disc of mass M has

$$ \Phi = -\frac{G M}{\sqrt{R^2 + A^2}}, \qquad
   \rho = \frac{b^2 M}{4 \pi} \frac{a R^2 + (a + 3 B) A^2}{(R^2 + A^2)^{5/2} B^3} $$

(Miyamoto & Nagai 1975, PASJ 27, 533), and a halo of scale density rho_s and scale radius r_s has
$\Phi = -4 \pi G \rho_s r_s^3 \ln(1 + r / r_s) / r$ (Navarro, Frenk & White 1997, arXiv:astro-ph/9611107).  Positions
are in kpc, velocities in km/s, masses in solar masses, accelerations in km^2 s^-2 kpc^-1, times in Gyr.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from astropy import constants, units
from torch import Tensor

from sbi_physics.core.checks import finite, positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from simulators.galaxy_quantities import measured_in, read_quantities

__all__ = ["GRAVITY", "KPC_PER_GYR", "NFW", "MiyamotoNagai", "Potential", "TotalPotential", "orbit"]

GRAVITY = float(constants.G.to_value("kpc km2 / (s2 M_sun)"))
"""The gravitational constant in kpc (km/s)^2 per solar mass."""

KPC_PER_GYR = float((1 * units.km / units.s).to_value("kpc / Gyr"))
"""How many kpc a star at 1 km/s goes in a Gyr."""

_MAX_STEPS = 1_000_000
_TINY = 1e-12


class Potential(ABC):
    """A gravitational potential that is symmetric about the z axis and the plane z = 0."""

    @abstractmethod
    def value(self, positions: Tensor) -> Tensor:
        """Potential in km^2/s^2 at `positions` ``(*, 3)`` in kpc: ``(*)``."""

    @abstractmethod
    def acceleration(self, positions: Tensor) -> Tensor:
        """Acceleration in km^2 s^-2 kpc^-1 at `positions` ``(*, 3)`` in kpc: ``(*, 3)``."""

    def circular_velocity(self, radii: Tensor) -> Tensor:
        """Velocity in km/s of the circular orbits in the plane, at radii ``(*)`` in kpc."""
        return torch.sqrt(-radii * self.acceleration(in_plane(radii))[..., 0])

    def frequency_ratio(self, radii: Tensor) -> Tensor:
        r"""The square $\kappa^2 / 4 \Omega^2$ of epicyclic over twice the circular frequency, at radii ``(*)`` in kpc.

        In the epicyclic approximation it is $\sigma_\phi^2 / \sigma_R^2$ (Binney & Tremaine 2008, eq. 8.117).
        """
        with torch.enable_grad():
            log_radii = torch.log(radii.detach()).requires_grad_()
            log_velocity = torch.log(self.circular_velocity(torch.exp(log_radii)))
            (slope,) = torch.autograd.grad(log_velocity.sum(), log_radii)
        return 0.5 * (1 + slope)


def in_plane(radii: Tensor, heights: Tensor | float = 0.0) -> Tensor:
    """Positions ``(*, 3)`` on the half plane y = 0 at radii and heights ``(*)``."""
    z = torch.as_tensor(heights, dtype=radii.dtype, device=radii.device)
    return torch.stack(torch.broadcast_tensors(radii, torch.zeros_like(radii), z), -1)


@dataclass(frozen=True)
class MiyamotoNagai(Potential):
    """A flattened disc.

    Attributes:
        mass: M in solar masses.
        radial_scale: a in kpc.
        vertical_scale: b in kpc.

    Raises:
        UsageError: a value is not positive.
    """

    mass: float = field(metadata=measured_in("M_sun", above=0.0))
    radial_scale: float = field(metadata=measured_in("kpc", above=0.0))
    vertical_scale: float = field(metadata=measured_in("kpc", above=0.0))

    def __post_init__(self) -> None:
        read_quantities(self)

    def value(self, positions: Tensor) -> Tensor:  # noqa: D102
        square, depth, _ = self._lengths(positions)
        return -GRAVITY * self.mass / torch.sqrt(square + depth**2)

    def acceleration(self, positions: Tensor) -> Tensor:  # noqa: D102
        square, depth, bend = self._lengths(positions)
        strength = -GRAVITY * self.mass * (square + depth**2) ** -1.5
        return strength.unsqueeze(-1) * torch.stack(
            [positions[..., 0], positions[..., 1], positions[..., 2] * depth / bend], -1
        )

    def density(self, positions: Tensor) -> Tensor:
        """Mass density in solar masses per kpc^3 at `positions` ``(*, 3)`` in kpc: ``(*)``."""
        square, depth, bend = self._lengths(positions)
        a, b = self.radial_scale, self.vertical_scale
        shape = (a * square + (a + 3 * bend) * depth**2) * (square + depth**2) ** -2.5 / bend**3
        return self.mass * b**2 / (4 * math.pi) * shape

    def _lengths(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """R^2, A and B of the module's formula."""
        x, y, z = positions.unbind(-1)
        bend = torch.sqrt(z**2 + self.vertical_scale**2)
        return x**2 + y**2, self.radial_scale + bend, bend


@dataclass(frozen=True)
class NFW(Potential):
    """A spherical dark halo.

    Attributes:
        scale_density: rho_s in solar masses per kpc^3.
        scale_radius: r_s in kpc.

    Raises:
        UsageError: a value is not positive.
    """

    scale_density: float = field(metadata=measured_in("M_sun / kpc3", above=0.0))
    scale_radius: float = field(metadata=measured_in("kpc", above=0.0))

    def __post_init__(self) -> None:
        read_quantities(self)

    @property
    def scale_mass(self) -> float:
        """4 pi rho_s r_s^3 in solar masses."""
        return 4 * math.pi * self.scale_density * self.scale_radius**3

    def enclosed_mass(self, radii: Tensor) -> Tensor:
        """Mass in solar masses within radii ``(*)`` in kpc."""
        x = radii / self.scale_radius
        # The two terms cancel near the centre, where four terms of the series are exact to rounding.
        series = x**2 * (1 / 2 - x * (2 / 3 - x * (3 / 4 - x * 4 / 5)))
        return self.scale_mass * torch.where(x < 1e-3, series, torch.log1p(x) - x / (1 + x))

    def value(self, positions: Tensor) -> Tensor:  # noqa: D102
        x = _radius(positions) / self.scale_radius
        return -GRAVITY * self.scale_mass / self.scale_radius * torch.log1p(x) / x

    def acceleration(self, positions: Tensor) -> Tensor:  # noqa: D102
        r = _radius(positions)
        return (-GRAVITY * self.enclosed_mass(r) / r**3).unsqueeze(-1) * positions


@dataclass(frozen=True)
class TotalPotential(Potential):
    """The sum of several potentials.

    Attributes:
        parts: those that are added.

    Raises:
        UsageError: there is none, or one is no potential.
    """

    parts: tuple[Potential, ...]

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Potential) for part in self.parts):
            raise UsageError(f"TotalPotential: expected one potential or more, got {self.parts!r}")

    def value(self, positions: Tensor) -> Tensor:  # noqa: D102
        return torch.stack([part.value(positions) for part in self.parts]).sum(0)

    def acceleration(self, positions: Tensor) -> Tensor:  # noqa: D102
        return torch.stack([part.acceleration(positions) for part in self.parts]).sum(0)


def orbit(potential: Potential, start: Tensor, *, duration: float, steps: int) -> Tensor:
    """Integrate orbits by the leapfrog, which is reversible and whose energy error is of second order and bounded.

    Args:
        potential: in which the stars move.
        start: positions and velocities ``(*, 6)`` in kpc and km/s.
        duration: in Gyr; negative for the past.
        steps: number of equal steps.

    Returns:
        Positions and velocities ``(steps + 1, *, 6)``, float64, the start included.

    Raises:
        ShapeError, NonFiniteError: the start has another shape or is not finite.
        UsageError: `steps` is no integer in [1, 1e6], or the duration is not finite.
    """
    if start.ndim < 1 or start.shape[-1] != 6:
        raise ShapeError(f"start: expected shape (*, 6), got {tuple(start.shape)}")
    if positive_integer(steps, "steps") > _MAX_STEPS:
        raise UsageError(f"steps: expected at most {_MAX_STEPS}, got {steps}")
    if not math.isfinite(duration):
        raise UsageError(f"duration: expected a finite number of Gyr, got {duration!r}")
    step = duration * KPC_PER_GYR / steps
    position, velocity = finite(start, "start").to(torch.float64).split(3, -1)
    path = [torch.cat([position, velocity], -1)]
    acceleration = potential.acceleration(position)
    for _ in range(steps):
        half_way = velocity + 0.5 * step * acceleration
        position = position + step * half_way
        acceleration = potential.acceleration(position)
        velocity = half_way + 0.5 * step * acceleration
        path.append(torch.cat([position, velocity], -1))
    return torch.stack(path)


def _radius(positions: Tensor) -> Tensor:
    return torch.sqrt((positions**2).sum(-1).clamp(min=_TINY**2))
