r"""What collides or decays, seen from its own rest frame.

Two beams of electrons or of hadrons run along the z axis, the first of them upwards.  A parton of each hadron carries
the shares x_1 and x_2 of its energy, and with tau = x_1 x_2 = s-hat / S and the rapidity Y of both together,

$$ dx_1\, dx_2 = d\tau\, dY, \qquad x_{1,2} = \sqrt{\tau}\, e^{\pm Y}, \qquad |Y| \le -\tfrac12 \ln\tau . $$

Every initial state says, for random numbers u, what energy is there in the rest frame of the reaction, how that frame
moves along the beams, and what the momenta are that come in; the measure of what is integrated over goes into a weight.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.mappings import Mapping, PowerLaw

__all__ = ["AtRest", "Beams", "HadronBeams", "Incoming", "InitialState"]


class Incoming(NamedTuple):
    """A batch of initial states.

    Attributes:
        momenta: of what comes in, ``(n, 1 or 2, 4)``, in GeV.
        energy: in the rest frame of the reaction, ``(n,)``, in GeV.
        rapidity: of that frame along the first beam, ``(n,)``.
        weight: measure of the initial state, ``(n,)``.
    """

    momenta: Tensor
    energy: Tensor
    rapidity: Tensor
    weight: Tensor


@runtime_checkable
class InitialState(Protocol):
    """What comes in, as a function of `dims` random numbers."""

    @property
    def dims(self) -> int:
        """How many random numbers it takes."""

    def __call__(self, u: Tensor) -> Incoming:
        """The initial states of u ``(n, dims)`` in [0, 1]."""

    def inverse(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """The u ``(n, dims)`` and the weight ``(n,)`` that a total four-momentum ``(n, 4)`` belongs to."""

    def least_energy(self) -> float:
        """The least energy in the rest frame of the reaction, in GeV."""


@dataclass(frozen=True)
class AtRest:
    """One particle that decays, at rest.

    Args:
        mass: in GeV.

    Raises:
        UsageError: the mass is not positive.
    """

    mass: float

    def __post_init__(self) -> None:
        _positive("AtRest", "mass", self.mass)

    @property
    def dims(self) -> int:
        """None."""
        return 0

    def __call__(self, u: Tensor) -> Incoming:
        """The same for every row of u ``(n, 0)``."""
        momentum = u.new_tensor([[[self.mass, 0.0, 0.0, 0.0]]])
        return _same_for_all(u, momentum, self.mass)

    def inverse(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """No random numbers, and weights of one."""
        return total.new_empty(len(total), 0), total.new_ones(len(total))

    def least_energy(self) -> float:
        """The mass."""
        return self.mass


@dataclass(frozen=True)
class Beams:
    """Two massless beams of equal energy head on.

    Args:
        energy: sqrt(s) of both together, in GeV.

    Raises:
        UsageError: the energy is not positive.
    """

    energy: float

    def __post_init__(self) -> None:
        _positive("Beams", "energy", self.energy)

    @property
    def dims(self) -> int:
        """None."""
        return 0

    def __call__(self, u: Tensor) -> Incoming:
        """The same for every row of u ``(n, 0)``."""
        half = self.energy / 2
        return _same_for_all(u, u.new_tensor([[[half, 0.0, 0.0, half], [half, 0.0, 0.0, -half]]]), self.energy)

    def inverse(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """No random numbers, and weights of one."""
        return total.new_empty(len(total), 0), total.new_ones(len(total))

    def least_energy(self) -> float:
        """The energy."""
        return self.energy


@dataclass(frozen=True)
class HadronBeams:
    r"""Two partons of two hadrons of equal energy head on: two random numbers, for the mass of both and its rapidity.

    Args:
        energy: sqrt(S) of both hadrons together, in GeV.
        least_mass: least sqrt(s-hat) of the partons, in GeV; it must be positive.
        most_mass: greatest sqrt(s-hat), all energy unless given.
        mapping: of s-hat.  The rapidity is flat between its bounds.

    Raises:
        UsageError: not 0 < least_mass < most_mass <= energy.
    """

    energy: float
    least_mass: float
    most_mass: float | None = None
    mapping: Mapping = field(default_factory=PowerLaw)

    def __post_init__(self) -> None:
        _positive("HadronBeams", "energy", self.energy)
        if not 0 < self.least_mass < self.highest_mass <= self.energy:
            raise UsageError(
                "HadronBeams: expected 0 < least_mass < most_mass <= energy, got "
                f"{self.least_mass!r}, {self.highest_mass!r} and {self.energy!r}"
            )

    @property
    def highest_mass(self) -> float:
        """The greatest sqrt(s-hat) of the partons, in GeV."""
        return self.energy if self.most_mass is None else self.most_mass

    @property
    def dims(self) -> int:
        """Two."""
        return 2

    def __call__(self, u: Tensor) -> Incoming:
        """The partons of u ``(n, 2)``, with the measure dx_1 dx_2 as weight."""
        squared, slope = self.mapping.forward(u[:, 0], *self._bounds(u))
        tau = squared / self.energy**2
        greatest = -0.5 * torch.log(tau)
        shift = (2 * u[:, 1] - 1) * greatest
        half = 0.5 * torch.sqrt(squared)
        up, down = half * torch.exp(shift), half * torch.exp(-shift)
        none = torch.zeros_like(up)
        momenta = torch.stack([torch.stack([up, none, none, up], -1), torch.stack([down, none, none, -down], -1)], 1)
        return Incoming(momenta, 2 * half, shift, slope / self.energy**2 * 2 * greatest)

    def inverse(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """The u ``(n, 2)`` and the weight ``(n,)`` that the total momentum ``(n, 4)`` of both partons belongs to."""
        up, down = total[:, 0] + total[:, 3], total[:, 0] - total[:, 3]
        u, slope = self.mapping.inverse(up * down, *self._bounds(total))
        greatest = -0.5 * torch.log(up * down / self.energy**2)
        shift = 0.5 * torch.log(up / down)
        return torch.stack([u, 0.5 * (shift / greatest + 1)], -1), slope / self.energy**2 * 2 * greatest

    def least_energy(self) -> float:
        """The least mass of both partons."""
        return self.least_mass

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.least_mass**2), like.new_tensor(self.highest_mass**2)


def _positive(owner: str, name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{owner}: expected a positive {name} in GeV, got {value!r}")


def _same_for_all(u: Tensor, momenta: Tensor, energy: float) -> Incoming:
    n = len(u)
    weight = u.new_ones(n)
    return Incoming(momenta.expand(n, -1, -1), weight * energy, torch.zeros_like(weight), weight)
