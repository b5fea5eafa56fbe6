r"""Streams and satellites: what falls into a galaxy and is not yet mixed.

A **stream** is a tube around an orbit: stars are spread evenly in time along the orbit of the progenitor, ahead of it
and behind it, each with normal offsets of one width in position and one in velocity.  The orbit is a row of M points,
close enough that their Gaussians merge (no gap is wider than the widths), so the density

$$ p(w) = \frac{1}{M} \sum_{m=1}^{M} \mathcal{N}(w;\, w_m, \operatorname{diag}(\sigma_x^2, \sigma_v^2)) $$

is exactly that of the draws.  Real streams are offset from the orbit of their progenitor and fan out; here they do not.

A **satellite** is a Plummer (1911) sphere with the isotropic dispersion that the Jeans equation gives it,

$$ p(x) = \frac{3}{4 \pi b^3} (1 + r^2 / b^2)^{-5/2}, \qquad \sigma^2(r) = \sigma_0^2 (1 + r^2 / b^2)^{-1/2} $$

(Dejonghe 1987, MNRAS 224, 13); its velocities are normal, and it is not cut by the tide of the galaxy.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive, seeded
from simulators.galaxy_components import Component, log_normal
from simulators.galaxy_population import Population
from simulators.galaxy_potential import Potential, orbit
from simulators.galaxy_quantities import measured_in, read_quantities

__all__ = ["Satellite", "SatelliteDensity", "Stream", "StreamDensity"]

_LEAST_STEPS = 500
_STEPS_PER_GYR = 2_000
_MOST_POINTS = 20_000
_PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Stream(Component):
    """A stream along an orbit.

    Attributes:
        name: of the component.
        mass: of its stars in solar masses.
        position: of the progenitor now, ``(x, y, z)`` in kpc.
        velocity: of the progenitor now, in km/s.
        population: its ages and metallicities.
        leading: how far ahead of the progenitor the stream goes, in Gyr along its orbit.
        trailing: how far behind, in Gyr.
        position_width: standard deviation in each direction in kpc.
        velocity_width: standard deviation in each direction in km/s.

    Raises:
        UsageError: a value is out of its range.
    """

    name: str
    mass: float = field(metadata=measured_in("M_sun", above=0.0))
    position: tuple[float, float, float] = field(metadata=measured_in("kpc", length=3))
    velocity: tuple[float, float, float] = field(metadata=measured_in("km / s", length=3))
    population: Population
    leading: float = field(default=0.2, metadata=measured_in("Gyr", above=0.0))
    trailing: float = field(default=0.2, metadata=measured_in("Gyr", above=0.0))
    position_width: float = field(default=0.1, metadata=measured_in("kpc", above=0.0))
    velocity_width: float = field(default=3.0, metadata=measured_in("km / s", above=0.0))

    def __post_init__(self) -> None:
        read_quantities(self)

    @property
    def stellar_mass(self) -> float:  # noqa: D102
        return self.mass

    def phase_space(self, potential: Potential) -> "StreamDensity":
        """Return the density of the stream in a potential.

        Raises:
            UsageError: the stream is so thin or so long that it needs more than 20,000 points.
        """
        return StreamDensity(self, potential)


class StreamDensity:
    """The density in phase space of a stream in a potential.

    Args:
        stream: the stream.
        potential: of the whole galaxy.

    Attributes:
        points: the orbit of the progenitor, from the end of the trailing arm to that of the leading one, ``(M, 6)``.
    """

    def __init__(self, stream: Stream, potential: Potential) -> None:
        self.stream = stream
        self._widths = torch.tensor([stream.position_width] * 3 + [stream.velocity_width] * 3, dtype=torch.float64)
        self.points = self._orbit(potential)

    def _orbit(self, potential: Potential) -> Tensor:
        now = torch.tensor(self.stream.position + self.stream.velocity, dtype=torch.float64)
        far_end = orbit(potential, now, duration=-self.stream.trailing, steps=_LEAST_STEPS)[-1]
        total = self.stream.trailing + self.stream.leading
        path = orbit(potential, far_end, duration=total, steps=2 * _LEAST_STEPS)
        gaps = (path[1:] - path[:-1]) / self._widths
        length = float(torch.maximum(gaps[:, :3].norm(dim=-1), gaps[:, 3:].norm(dim=-1)).max()) * len(gaps)
        intervals = max(math.ceil(length), 1)
        if not intervals <= _MOST_POINTS:
            raise UsageError(
                f"Stream {self.stream.name}: expected at most {_MOST_POINTS} widths along the orbit, got {intervals}; "
                "make the stream wider or shorter"
            )
        stride = math.ceil(2 * _LEAST_STEPS / intervals)
        return orbit(potential, far_end, duration=total, steps=stride * intervals)[::stride]

    def sample(self, n: int, *, seed: int) -> Tensor:
        """Draw n stars: ``(n, 6)``."""
        with seeded(derive(seed, "stream")):
            index = torch.randint(len(self.points), (n,))
            noise = torch.randn(n, 6, dtype=torch.float64)
        return self.points[index] + self._widths * noise

    def log_density(self, phase_space: Tensor) -> Tensor:
        """Log-density at `phase_space` ``(n, 6)``: ``(n,)``."""
        rows = max(1, _PAIRS_AT_ONCE // len(self.points))
        return torch.cat([self._log_density(block) for block in phase_space.split(rows)])

    def _log_density(self, phase_space: Tensor) -> Tensor:
        widths, points = self._widths.to(phase_space.device), self.points.to(phase_space.device)
        centre = points.mean(0)
        stars, knots = (phase_space - centre) / widths, (points - centre) / widths
        square = (stars**2).sum(-1, keepdim=True) + (knots**2).sum(-1) - 2 * stars @ knots.mT
        log_norm = float(torch.log(self._widths).sum()) + 3 * math.log(2 * math.pi) + math.log(len(points))
        return torch.logsumexp(-0.5 * square, -1) - log_norm


@dataclass(frozen=True)
class Satellite(Component):
    """A satellite galaxy or a cluster on an orbit.

    Attributes:
        name: of the component.
        mass: of its stars in solar masses; it does not gravitate.
        position: of its centre, `elapsed` ago, ``(x, y, z)`` in kpc.
        velocity: of its centre, `elapsed` ago, in km/s.
        population: its ages and metallicities.
        radius: the Plummer scale b in kpc; half of the stars are within 1.3 b.
        dispersion: sigma_0 in km/s.
        elapsed: for how long it has moved along its orbit since, in Gyr; negative for the past.

    Raises:
        UsageError: a value is out of its range.
    """

    name: str
    mass: float = field(metadata=measured_in("M_sun", above=0.0))
    position: tuple[float, float, float] = field(metadata=measured_in("kpc", length=3))
    velocity: tuple[float, float, float] = field(metadata=measured_in("km / s", length=3))
    population: Population
    radius: float = field(default=0.5, metadata=measured_in("kpc", above=0.0))
    dispersion: float = field(default=10.0, metadata=measured_in("km / s", above=0.0))
    elapsed: float = field(default=0.0, metadata=measured_in("Gyr"))

    def __post_init__(self) -> None:
        read_quantities(self)

    @property
    def stellar_mass(self) -> float:  # noqa: D102
        return self.mass

    def phase_space(self, potential: Potential) -> "SatelliteDensity":  # noqa: D102
        return SatelliteDensity(self, potential)


class SatelliteDensity:
    """The density in phase space of a satellite in a potential.

    Args:
        satellite: the satellite.
        potential: of the whole galaxy.

    Attributes:
        centre: where it is now, ``(6,)``.
    """

    def __init__(self, satellite: Satellite, potential: Potential) -> None:
        self.satellite = satellite
        start = torch.tensor(satellite.position + satellite.velocity, dtype=torch.float64)
        steps = max(1, math.ceil(_STEPS_PER_GYR * abs(satellite.elapsed)))
        self.centre = orbit(potential, start, duration=satellite.elapsed, steps=steps)[-1]

    def sample(self, n: int, *, seed: int) -> Tensor:
        """Draw n stars: ``(n, 6)``."""
        with seeded(derive(seed, "satellite")):
            enclosed = torch.rand(n, 1, dtype=torch.float64)
            direction, noise = torch.randn(2, n, 3, dtype=torch.float64)
        radii = self.satellite.radius / torch.sqrt(enclosed ** (-2 / 3) - 1)
        positions = radii * direction / direction.norm(dim=-1, keepdim=True)
        return self.centre + torch.cat([positions, self._dispersion(positions).unsqueeze(-1) * noise], -1)

    def log_density(self, phase_space: Tensor) -> Tensor:
        """Log-density at `phase_space` ``(n, 6)``: ``(n,)``."""
        positions, velocities = (phase_space - self.centre.to(phase_space.device)).split(3, -1)
        b = self.satellite.radius
        log_position = -2.5 * torch.log1p((positions**2).sum(-1) / b**2) - math.log(4 / 3 * math.pi * b**3)
        return log_position + log_normal(velocities, self._dispersion(positions).unsqueeze(-1)).sum(-1)

    def _dispersion(self, positions: Tensor) -> Tensor:
        return self.satellite.dispersion * (1 + (positions**2).sum(-1) / self.satellite.radius**2) ** -0.25
