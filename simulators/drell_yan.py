r"""p p -> l- l+ at leading order, through photon, Z and a heavy Z' with all interferences, with toy parton densities.

$$ |M|^2 = \frac{1}{3} \sum_q \left[ q(x_1)\, \bar q(x_2)\, |M_q(\hat t, \hat u)|^2
   + \bar q(x_1)\, q(x_2)\, |M_q(\hat u, \hat t)|^2 \right] $$

with the densities of the partons in it, so that the integral over x_1, x_2 and phase space is the cross section (Drell
and Yan 1970, Phys. Rev. Lett. 25, 316).  The Z' is sequential: it couples as the Z does, times a strength (Langacker
2009, arXiv:0801.1345).  Integrated over angles, each pair of quarks has

$$ \hat\sigma_q = \frac{1}{3} \frac{\hat s}{48 \pi} \sum_{hh'} |A_{hh'}(\hat s)|^2 . $$
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from sbi_physics.core.cuts import Cut, RapidityCut, TransverseMomentumCut
from sbi_physics.core.errors import UsageError
from sbi_physics.core.initial_states import HadronBeams
from sbi_physics.core.kinematics import minkowski_dot
from sbi_physics.core.mappings import BreitWigner, Mapping, PowerLaw
from sbi_physics.core.processes import Decay, Particle, Process
from simulators.electroweak import Boson, Electroweak, pair_squared, squared_exchanges
from simulators.toy_partons import ToyPartons

__all__ = ["DrellYan", "drell_yan"]

_FLAVOURS = ("u", "d", "s")
_COLOURS = 3


@dataclass(frozen=True)
class DrellYan:
    """The squared matrix element with the densities of partons.

    Args:
        energy: sqrt(S) of both protons, in GeV.
        z_prime_mass: in GeV.
        z_prime_width: in GeV.
        strength: of the couplings of the Z', as multiples of those of the Z; zero for none.
        parameters: of the electroweak theory.
        partons: their densities.

    Raises:
        UsageError: a mass or width is not positive.
    """

    energy: float = 13_000.0
    z_prime_mass: float = 1_000.0
    z_prime_width: float = 30.0
    strength: float = 1.0
    parameters: Electroweak = field(default_factory=Electroweak)
    partons: ToyPartons = field(default_factory=ToyPartons)

    def __post_init__(self) -> None:
        for name in ("energy", "z_prime_mass", "z_prime_width"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise UsageError(f"DrellYan: expected a positive {name} in GeV, got {getattr(self, name)!r}")

    @cached_property
    def bosons(self) -> tuple[Boson, ...]:
        """Photon, Z, and the Z' where it couples at all."""
        known = self.parameters.bosons(("photon", "Z"))
        if self.strength == 0:
            return known
        couplings = self.parameters.z_like_couplings(self.strength)
        return (*known, Boson(self.z_prime_mass, self.z_prime_width, couplings))

    def __call__(self, incoming: Tensor, outgoing: Tensor) -> Tensor:
        """|M|^2 ``(n,)`` of momenta of both partons ``(n, 2, 4)`` and of l-, l+ ``(n, 2, 4)``, in GeV."""
        x_first, x_second = (2 * incoming[:, i, 0] / self.energy for i in (0, 1))
        s = 2 * minkowski_dot(incoming[:, 0], incoming[:, 1])
        t = -2 * minkowski_dot(incoming[:, 0], outgoing[:, 0])
        u = -2 * minkowski_dot(incoming[:, 0], outgoing[:, 1])
        total = torch.zeros_like(s)
        for flavour in _FLAVOURS:
            upwards, downwards = self._luminosities(flavour, x_first, x_second)
            total = total + upwards * pair_squared(self.bosons, flavour, "mu", s, t, u)
            total = total + downwards * pair_squared(self.bosons, flavour, "mu", s, u, t)
        return total / _COLOURS

    def rate(self, x_first: Tensor, x_second: Tensor) -> Tensor:
        """The density d sigma / dx_1 dx_2 over all angles, at shares ``(n,)`` of both: ``(n,)``, in GeV^-2."""
        s = x_first * x_second * self.energy**2
        total = torch.zeros_like(s)
        for flavour in _FLAVOURS:
            equal, unequal = squared_exchanges(self.bosons, flavour, "mu", s)
            total = total + sum(self._luminosities(flavour, x_first, x_second)) * (equal + unequal)
        return total * s / (48 * math.pi * _COLOURS)

    def _luminosities(self, flavour: str, x_first: Tensor, x_second: Tensor) -> tuple[Tensor, Tensor]:
        """q(x_1) q-bar(x_2) and q-bar(x_1) q(x_2)."""
        both = x_first * x_second
        upwards = self.partons.quark(flavour, x_first) * self.partons.antiquark(flavour, x_second)
        downwards = self.partons.antiquark(flavour, x_first) * self.partons.quark(flavour, x_second)
        return upwards / both, downwards / both


def drell_yan(
    energy: float = 13_000.0,
    z_prime_mass: float = 1_000.0,
    z_prime_width: float = 30.0,
    strength: float = 1.0,
    *,
    least_mass: float = 200.0,
    most_mass: float | None = None,
    least_pt: float = 25.0,
    most_rapidity: float = 2.5,
    mapping: Literal["continuum", "resonance"] = "continuum",
    parameters: Electroweak | None = None,
) -> Process:
    """The process for pairs of leptons that a detector sees.

    Args:
        energy: sqrt(S) of both protons, in GeV.
        z_prime_mass: in GeV.
        z_prime_width: in GeV.
        strength: of the couplings of the Z', as multiples of those of the Z; zero for none.
        least_mass: of the pair, in GeV.
        most_mass: of the pair, in GeV; all energy unless given.
        least_pt: of each lepton, in GeV; zero for all.
        most_rapidity: of each lepton, in absolute value; infinite for all.
        mapping: whether the masses of pairs are drawn as the continuum falls or as the Z' has them.
        parameters: of the electroweak theory.

    Raises:
        UsageError: an argument is out of its range.
    """
    matrix_element = DrellYan(energy, z_prime_mass, z_prime_width, strength, parameters or Electroweak())
    maps: dict[str, Mapping] = {
        "continuum": PowerLaw(2.0),
        "resonance": BreitWigner(z_prime_mass, z_prime_width),
    }
    if mapping not in maps:
        raise UsageError(f"mapping: expected 'continuum' or 'resonance', got {mapping!r}")
    cuts: list[Cut] = []
    if least_pt > 0:
        cuts.append(TransverseMomentumCut(least=least_pt))
    if math.isfinite(most_rapidity):
        cuts.append(RapidityCut(most=most_rapidity))
    beams = HadronBeams(energy, least_mass, most_mass, maps[mapping])
    return Process("drell_yan", beams, Decay(Particle(), Particle()), matrix_element, tuple(cuts))
