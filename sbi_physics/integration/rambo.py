r"""RAMBO: phase space without structure, from four numbers for each particle.

Massless momenta q_i are drawn apart, isotropic and with energies of the density q e^{-q}; a boost and a change of scale
carry their sum to rest with the energy w, and the momenta p_i that result fill phase space evenly (Kleiss, Stirling
and Ellis 1986, Comput. Phys. Commun. 40, 359).  Masses come in by one more scale xi with

$$ \sum_i \sqrt{m_i^2 + \xi^2 |p_i|^2} = w, \qquad
   \frac{w_m}{w_0} = w^{4 - 2n} \Big(\sum_i |k_i|\Big)^{2n-3} \prod_i \frac{|k_i|}{k_i^0}
   \Big(\sum_i \frac{|k_i|^2}{k_i^0}\Big)^{-1} , $$

where k_i are the momenta with masses.  As 4n numbers are more than the 3n - 4 that phase space has, there is no
inverse; and where all directions are the same there is nothing to carry to rest, and the momenta are NaN.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sbi_physics.core.kinematics import direction, four_momentum
from sbi_physics.integration.phase_space import (
    checked_masses,
    checked_numbers,
    closed_volume,
    energies_like,
    massless_volume,
    uniform_or_edge,
)

__all__ = ["Rambo"]

_NEWTON_STEPS = 8


class Rambo:
    """Phase space of n particles from 4n numbers; without masses, of constant weight.

    Args:
        masses: of the particles, in GeV.
        energy: of all of them in their rest frame, in GeV.

    Attributes:
        dims: 4n.

    Raises:
        UsageError: fewer than two masses, a negative one, or an energy below their sum.
    """

    def __init__(self, masses: Sequence[float], energy: float) -> None:
        self.masses = checked_masses(masses, energy, "Rambo")
        self.energy = float(energy)
        self.dims = 4 * len(self.masses)

    def __call__(self, u: Tensor, energy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Momenta in the rest frame of all, and their weights.

        Args:
            u: numbers in [0, 1], ``(n_events, 4n)``.
            energy: ``(n_events,)`` in GeV, in place of the one of the map; above the sum of masses.

        Returns:
            Momenta (E, p_x, p_y, p_z) ``(n_events, n, 4)`` in GeV, and weights ``(n_events,)``.

        Raises:
            ShapeError: u or energy has another shape.
        """
        u = checked_numbers(u, self.dims, "Rambo")
        total = energies_like(energy, self.energy, u)
        vectors = _massless_at_rest(u.view(len(u), -1, 4), total)
        volume = torch.as_tensor(massless_volume(len(self.masses), total))
        if not any(self.masses):
            return four_momentum(vectors, 0.0), volume
        masses = u.new_tensor(self.masses)
        lengths = torch.linalg.vector_norm(vectors, dim=-1)
        scale = _common_scale(lengths, masses, total)
        momenta = four_momentum(vectors * scale[:, None, None], masses**2)
        return momenta, volume * _weight_of_masses(lengths * scale.unsqueeze(-1), momenta[..., 0], total)

    def volume(self) -> float:
        """The volume of phase space, in GeV^(2n - 4), where it has a closed form: without masses, or for two particles.

        Raises:
            UsageError: three or more particles with masses; the mean weight is their volume.
        """
        return closed_volume(self.masses, self.energy)


def _massless_at_rest(numbers: Tensor, total: Tensor) -> Tensor:
    """Three-momenta ``(n_events, n, 3)`` without masses, of numbers ``(n_events, n, 4)``, which sum to rest."""
    inside = uniform_or_edge(numbers)
    size = -torch.log(inside[..., 2]) - torch.log(inside[..., 3])
    vectors = size.unsqueeze(-1) * direction(2 * inside[..., 0], 2 * math.pi * inside[..., 1])
    energy, vector = size.sum(-1), vectors.sum(-2)
    length = torch.linalg.vector_norm(vector, dim=-1)
    mass = torch.sqrt((energy - length) * (energy + length))
    boost = -vector / mass.unsqueeze(-1)
    along = (vectors * boost.unsqueeze(-2)).sum(-1)
    share = size + along / (1 + energy / mass).unsqueeze(-1)
    scale = (total / mass)[:, None, None]
    return scale * (vectors + share.unsqueeze(-1) * boost.unsqueeze(-2))


def _common_scale(lengths: Tensor, masses: Tensor, total: Tensor) -> Tensor:
    """The xi with which the energies sum to the total, ``(n_events,)``.

    The sum is convex in xi, so that Newton's steps come from above after the first; the last two carry the gradients.
    """

    def step(scale: Tensor) -> Tensor:
        energies = torch.sqrt(masses**2 + (scale.unsqueeze(-1) * lengths) ** 2)
        slope = (scale.unsqueeze(-1) * lengths**2 / energies).sum(-1)
        return scale - (energies.sum(-1) - total) / slope

    with torch.no_grad():
        scale = torch.sqrt(1 - (masses.sum() / total) ** 2)
        for _ in range(_NEWTON_STEPS):
            scale = step(scale)
    return step(step(scale))


def _weight_of_masses(lengths: Tensor, energies: Tensor, total: Tensor) -> Tensor:
    """What masses change the weight by, ``(n_events,)``."""
    n = lengths.shape[-1]
    shrunk = (lengths.sum(-1) / total) ** (2 * n - 3)
    return shrunk * (lengths / energies).prod(-1) * total / (lengths**2 / energies).sum(-1)
