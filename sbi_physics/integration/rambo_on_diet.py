r"""RAMBO on diet: phase space without structure from the 3n - 4 numbers that it needs, invertible.

The particles come off one by one.  Of what is left, k particles, the mass beyond its threshold is a share r of the
greatest that it can be, and phase space without masses is filled evenly by x = r^2 of the distribution

$$ F(x) = k x^{k-1} - (k - 1) x^k = x^{k-1} (1 + (k - 1)(1 - x)), \qquad
   1 - F(x) = \sum_{j=2}^{k} \binom{k}{j} (1 - x)^j x^{k-j} , $$

that of Beta(k - 1, 2) (Plaetzer 2013, arXiv:1308.2922).  Both forms are sums of terms of one sign, so that the root is
found to the last digits near either end.  ln F is concave in ln x, and ln (1 - F) in ln (1 - x), so that
Newton's steps from the left converge without fail; the last two of them carry exact gradients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.core.processes import Decay, Particle
from sbi_physics.integration.decay_chain import DecayChain
from sbi_physics.integration.phase_space import checked_masses, closed_volume, energies_like, massless_volume

__all__ = ["RamboOnDiet"]

_NEWTON_STEPS = 8


class RamboOnDiet:
    """Phase space of n particles from 3n - 4 numbers, invertible; without masses, of constant weight.

    Args:
        masses: of the particles, in GeV.
        energy: of all of them in their rest frame, in GeV.

    Attributes:
        dims: 3n - 4.

    Raises:
        UsageError: fewer than two masses, a negative one, or an energy below their sum.
    """

    def __init__(self, masses: Sequence[float], energy: float) -> None:
        self.masses = checked_masses(masses, energy, "RamboOnDiet")
        self.energy = float(energy)
        tree = Decay(Particle(self.masses[-2]), Particle(self.masses[-1]))
        for left, mass in enumerate(reversed(self.masses[:-2]), start=2):
            tree = Decay(Particle(mass), Decay(tree.first, tree.second, mass=_EvenVolume(left)))
        self._chain = DecayChain(tree, energy)
        self.dims = self._chain.dims

    def __call__(self, u: Tensor, energy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Momenta in the rest frame of all, and their weights.

        Args:
            u: numbers in [0, 1], ``(n_events, 3n - 4)``.
            energy: ``(n_events,)`` in GeV, in place of the one of the map; above the sum of masses.

        Returns:
            Momenta (E, p_x, p_y, p_z) ``(n_events, n, 4)`` in GeV, and weights ``(n_events,)``.

        Raises:
            ShapeError: u or energy has another shape.
        """
        momenta, weight = self._chain(u, energy)
        return momenta, self._constant_or(weight, energy)

    def inverse(self, momenta: Tensor, energy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The numbers ``(n_events, 3n - 4)`` that momenta ``(n_events, n, 4)`` belong to, and their weights.

        Args:
            momenta: in the rest frame of all, in GeV.
            energy: ``(n_events,)`` in GeV, in place of the one of the map.

        Returns:
            u and weights, as the map itself has them.

        Raises:
            ShapeError: momenta or energy has another shape.
        """
        u, weight = self._chain.inverse(momenta, energy)
        return u, self._constant_or(weight, energy)

    def volume(self) -> float:
        """The volume of phase space, in GeV^(2n - 4), where it has a closed form: without masses, or for two particles.

        Raises:
            UsageError: three or more particles with masses; the mean weight is their volume.
        """
        return closed_volume(self.masses, self.energy)

    def _constant_or(self, weight: Tensor, energy: Tensor | None) -> Tensor:
        """The closed form in place of a product that equals it but for rounding."""
        if any(self.masses):
            return weight
        return torch.as_tensor(massless_volume(len(self.masses), energies_like(energy, self.energy, weight)))


@dataclass(frozen=True)
class _EvenVolume:
    """The squared mass of k particles that fill phase space evenly if they have no masses."""

    k: int

    def forward(self, u: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The squared mass at u ``(n,)``, and its slope."""
        x, rest = _root(u, self.k)
        least, range_ = torch.sqrt(low), torch.sqrt(high) - torch.sqrt(low)
        mass = least + torch.sqrt(x) * range_
        return mass**2, self._slope(mass, range_, x, rest)

    def inverse(self, value: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The u of a squared mass ``(n,)``, and the slope of that."""
        mass, least = torch.sqrt(value), torch.sqrt(low)
        range_ = torch.sqrt(high) - least
        share = (mass - least) / range_
        x, rest = share**2, (torch.sqrt(high) - mass) / range_ * (1 + share)
        u = torch.where(x < 0.5, _below(x, rest, self.k), 1 - _above(x, rest, self.k))
        return u, self._slope(mass, range_, x, rest)

    def needs_positive_low(self) -> bool:
        """Never."""
        return False

    def _slope(self, mass: Tensor, range_: Tensor, x: Tensor, rest: Tensor) -> Tensor:
        density = self.k * (self.k - 1) * x ** (self.k - 2) * rest
        return mass * range_ / (torch.sqrt(x) * density)


def _below(x: Tensor, rest: Tensor, k: int) -> Tensor:
    """F(x), with rest = 1 - x."""
    return x ** (k - 1) * (1 + (k - 1) * rest)


def _above(x: Tensor, rest: Tensor, k: int) -> Tensor:
    """1 - F(x), with rest = 1 - x."""
    total = torch.zeros_like(x)
    for j in range(2, k + 1):
        total = total + math.comb(k, j) * rest ** (j - 2) * x ** (k - j)
    return rest**2 * total


def _root(u: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The x and 1 - x with F(x) = u in (0, 1), each to a few rounding errors of its own size."""
    if k == 2:
        rest = torch.sqrt(1 - u)
        return u / (1 + rest), rest
    lower = u < 0.5
    half = torch.full_like(u, 0.5)
    x = _solve_below(torch.where(lower, u, half), k)
    rest = _solve_above(torch.where(lower, half, 1 - u), k)
    return torch.where(lower, x, 1 - rest), torch.where(lower, 1 - x, rest)


def _solve_below(target: Tensor, k: int) -> Tensor:
    """The x with F(x) = target, by Newton's steps in ln x; F <= k x^(k-1) gives the start."""

    def step(x: Tensor) -> Tensor:
        value = _below(x, 1 - x, k)
        elasticity = k * (k - 1) * x ** (k - 1) * (1 - x) / value
        return x * torch.exp((torch.log(target) - torch.log(value)) / elasticity)

    with torch.no_grad():
        x = (target / k) ** (1 / (k - 1))
        for _ in range(_NEWTON_STEPS):
            x = step(x)
    return step(step(x))


def _solve_above(target: Tensor, k: int) -> Tensor:
    """The 1 - x with 1 - F(x) = target; 1 - F <= k (k - 1) (1 - x)^2 / 2 gives the start."""

    def step(rest: Tensor) -> Tensor:
        value = _above(1 - rest, rest, k)
        elasticity = k * (k - 1) * (1 - rest) ** (k - 2) * rest**2 / value
        return rest * torch.exp((torch.log(target) - torch.log(value)) / elasticity)

    with torch.no_grad():
        rest = torch.sqrt(2 * target / (k * (k - 1)))
        for _ in range(_NEWTON_STEPS):
            rest = step(rest)
    return step(step(rest))
