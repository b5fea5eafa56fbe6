r"""Ages and metallicities of a population of stars.

Stars form at a rate that decays as $e^{-t / T}$ while the gas is enriched at an even pace, and where they form decides
how far the enrichment has come: for a star of age tau at cylindrical radius R,

$$ p(\tau) \propto e^{\tau / T} \ \ \text{on} \ [\tau_0, \tau_1], \qquad
   [\mathrm{Fe/H}] \sim \mathcal{N}\left(\mu - s\,(\tau - \tau_0) + g\,(R - R_\odot),\ \epsilon^2\right), $$

with R_sun = 8.122 kpc.  Within a population the age is independent of position and velocity: hotter orbits of older
stars come from the mixture of populations alone.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive, seeded
from simulators.galaxy_quantities import measured_in, read_quantities

__all__ = ["SOLAR_RADIUS", "Population"]

SOLAR_RADIUS = 8.122
"""Distance of the Sun from the centre in kpc (GRAVITY collaboration 2018, arXiv:1807.09409)."""


@dataclass(frozen=True)
class Population:
    """How ages and metallicities are distributed.

    Attributes:
        youngest: tau_0 in Gyr.
        oldest: tau_1 in Gyr.
        formation_timescale: T in Gyr; infinite for a constant rate of star formation.
        metallicity: mu, the mean [Fe/H] in dex of the youngest stars at the Sun's radius.
        enrichment: s in dex per Gyr; positive where younger stars are richer in metals.
        gradient: g in dex per kpc.
        scatter: epsilon in dex.

    Raises:
        UsageError: a value is out of its range, or the oldest stars are not older than the youngest.
    """

    youngest: float = field(metadata=measured_in("Gyr", least=0.0))
    oldest: float = field(metadata=measured_in("Gyr", above=0.0))
    metallicity: float = field(metadata=measured_in("dex"))
    formation_timescale: float = field(default=math.inf, metadata=measured_in("Gyr", above=0.0, infinite=True))
    enrichment: float = field(default=0.0, metadata=measured_in("dex / Gyr"))
    gradient: float = field(default=0.0, metadata=measured_in("dex / kpc"))
    scatter: float = field(default=0.1, metadata=measured_in("dex", above=0.0))

    def __post_init__(self) -> None:
        read_quantities(self)
        if not self.oldest > self.youngest:
            raise UsageError(
                f"Population: expected oldest above youngest, got {self.oldest:g} and {self.youngest:g} Gyr"
            )

    def sample(self, phase_space: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """Draw the age in Gyr and the metallicity in dex, ``(n,)`` each, of stars at `phase_space` ``(n, 6)``."""
        n, rate = len(phase_space), self._rate
        with seeded(derive(seed, "population")):
            level = torch.rand(n, dtype=torch.float64)
            noise = torch.randn(n, dtype=torch.float64)
        since_oldest = self._span * level if rate == 0 else -torch.log1p(level * math.expm1(-rate * self._span)) / rate
        ages = self.oldest - since_oldest
        return ages, self._mean_metallicity(phase_space, ages) + self.scatter * noise

    def log_density(self, phase_space: Tensor, ages: Tensor, metallicities: Tensor) -> Tensor:
        """Log-density of age and metallicity (per Gyr and dex) given `phase_space` ``(n, 6)``: ``(n,)``."""
        rate, span = self._rate, self._span
        log_norm = math.log(span if rate == 0 else -math.expm1(-rate * span) / rate)
        log_age = -rate * (self.oldest - ages) - log_norm
        inside = (ages >= self.youngest) & (ages <= self.oldest)
        pull = (metallicities - self._mean_metallicity(phase_space, ages)) / self.scatter
        log_metallicity = -0.5 * pull**2 - math.log(self.scatter * math.sqrt(2 * math.pi))
        return torch.where(inside, log_age, -torch.inf) + log_metallicity

    @property
    def _rate(self) -> float:
        return 1 / self.formation_timescale

    @property
    def _span(self) -> float:
        return self.oldest - self.youngest

    def _mean_metallicity(self, phase_space: Tensor, ages: Tensor) -> Tensor:
        radii = torch.hypot(phase_space[:, 0], phase_space[:, 1])
        return self.metallicity - self.enrichment * (ages - self.youngest) + self.gradient * (radii - SOLAR_RADIUS)
