"""What every component of a galaxy offers: a stellar mass, a population and a density in phase space.

A component is a description, checked when it is made; `Component.phase_space` works out its density in the potential of
the whole galaxy once, and that object draws stars and evaluates the density that it draws them from.
"""

import math
from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from simulators.galaxy_population import Population
from simulators.galaxy_potential import Potential

__all__ = ["Component", "PhaseSpaceDensity", "gauss_legendre", "log_normal"]


class PhaseSpaceDensity(Protocol):
    """A normalised density of positions in kpc and velocities in km/s."""

    def sample(self, n: int, *, seed: int) -> Tensor:
        """Draw n stars: ``(n, 6)``, float64."""

    def log_density(self, phase_space: Tensor) -> Tensor:
        """Log-density in nats per kpc^3 (km/s)^3 at `phase_space` ``(n, 6)``, float64: ``(n,)``."""


class Component(ABC):
    """One component of a galaxy.

    Attributes:
        name: a short name, different for each component of a galaxy.
        population: the ages and metallicities of its stars.
    """

    name: str
    population: Population

    @property
    @abstractmethod
    def stellar_mass(self) -> float:
        """Mass in solar masses of the stars that `phase_space` describes."""

    @abstractmethod
    def phase_space(self, potential: Potential) -> PhaseSpaceDensity:
        """Return the density of the stars of this component in a potential."""


def log_normal(offsets: Tensor, widths: Tensor | float) -> Tensor:
    """Log-density of a normal distribution of standard deviation `widths`, at `offsets` from its mean."""
    widths = torch.as_tensor(widths, dtype=offsets.dtype, device=offsets.device)
    return -0.5 * (offsets / widths) ** 2 - torch.log(widths) - 0.5 * math.log(2 * math.pi)


def gauss_legendre(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights ``(points,)`` of the Gauss-Legendre rule on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * weights)
