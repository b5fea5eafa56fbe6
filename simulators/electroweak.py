r"""Electroweak exchanges between massless fermions, one amplitude for each pair of chiralities.

A vector boson V of mass M and width Gamma that couples to the left- and right-handed parts of fermions a and b gives

$$ A_{hh'}(s) = \sum_V \frac{g^V_{a h}\, g^V_{b h'}}{s - M_V^2 + i M_V \Gamma_V}, \qquad h, h' \in \{L, R\}, $$

and f f-bar -> f' f'-bar has |M|^2 = 4 u^2 |A|^2 for equal chiralities, 4 t^2 |A|^2 for unequal ones.  The photon
couples with e Q; the Z with

$$ g^Z_L = \frac{e}{\sin\theta_W \cos\theta_W} (T_3 - Q \sin^2\theta_W), \qquad
   g^Z_R = -\frac{e}{\sin\theta_W \cos\theta_W} Q \sin^2\theta_W $$

at tree level (Particle Data Group, review of the electroweak model; Peskin and Schroeder 1995, ch. 20).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError

__all__ = ["FERMIONS", "Boson", "Electroweak", "pair_squared", "squared_exchanges"]

# Charge and third component of the weak isospin of the left-handed part.
FERMIONS = {
    "e": (-1.0, -0.5),
    "mu": (-1.0, -0.5),
    "u": (2 / 3, 0.5),
    "c": (2 / 3, 0.5),
    "d": (-1 / 3, -0.5),
    "s": (-1 / 3, -0.5),
    "b": (-1 / 3, -0.5),
}


@dataclass(frozen=True)
class Boson:
    """A neutral vector boson.

    Attributes:
        mass: in GeV.
        width: in GeV.
        couplings: of the left- and the right-handed part of each fermion, by its name.
    """

    mass: float
    width: float
    couplings: dict[str, tuple[float, float]] = field(hash=False)

    def partial_width(self, fermion: str, colours: int = 1) -> float:
        """The width in GeV into a massless fermion and its antiparticle, N_c M (g_L^2 + g_R^2) / 24 pi."""
        left, right = self.couplings[fermion]
        return colours * self.mass * (left**2 + right**2) / (24 * math.pi)


@dataclass(frozen=True)
class Electroweak:
    """Parameters of the electroweak theory at tree level (Particle Data Group 2024).

    Attributes:
        alpha: e^2 / 4 pi, at the mass of the Z unless given.
        sin2_theta: sin^2 of the weak mixing angle.
        z_mass: in GeV.
        z_width: in GeV.
    """

    alpha: float = 1 / 127.95
    sin2_theta: float = 0.23122
    z_mass: float = 91.188
    z_width: float = 2.4955

    @property
    def charge(self) -> float:
        """The electric charge e."""
        return math.sqrt(4 * math.pi * self.alpha)

    def photon(self) -> Boson:
        """The photon."""
        return Boson(0.0, 0.0, {name: (self.charge * q, self.charge * q) for name, (q, _) in FERMIONS.items()})

    def z(self) -> Boson:
        """The Z."""
        return Boson(self.z_mass, self.z_width, self.z_like_couplings(1.0))

    def z_like_couplings(self, strength: float) -> dict[str, tuple[float, float]]:
        """The couplings of the Z times a strength, as a sequential Z' has them."""
        sin2 = self.sin2_theta
        scale = strength * self.charge / math.sqrt(sin2 * (1 - sin2))
        return {name: (scale * (t3 - q * sin2), -scale * q * sin2) for name, (q, t3) in FERMIONS.items()}

    def bosons(self, exchange: tuple[str, ...]) -> tuple[Boson, ...]:
        """The bosons of names "photon" and "Z".

        Raises:
            UsageError: there is none, or one of another name.
        """
        known = {"photon": self.photon, "Z": self.z}
        if not exchange or not set(exchange) <= set(known):
            raise UsageError(f"exchange: expected some of 'photon', 'Z'; got {exchange!r}")
        return tuple(known[name]() for name in exchange)


def squared_exchanges(bosons: tuple[Boson, ...], first: str, second: str, s: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of |A|^2 over equal and over unequal chiralities.

    Args:
        bosons: that are exchanged.
        first: name of one fermion.
        second: name of the other.
        s: squared mass of the pair ``(n,)``, in GeV^2.

    Returns:
        |A_LL|^2 + |A_RR|^2 and |A_LR|^2 + |A_RL|^2, each ``(n,)``, in GeV^-4.
    """
    sums = []
    for pairs in (((0, 0), (1, 1)), ((0, 1), (1, 0))):
        total = torch.zeros_like(s)
        for h, k in pairs:
            amplitude = torch.zeros_like(s, dtype=torch.complex128)
            for boson in bosons:
                coupling = boson.couplings[first][h] * boson.couplings[second][k]
                amplitude = amplitude + coupling / torch.complex(
                    s - boson.mass**2, torch.full_like(s, boson.mass * boson.width)
                )
            total = total + amplitude.real**2 + amplitude.imag**2
        sums.append(total)
    return sums[0], sums[1]


def pair_squared(bosons: tuple[Boson, ...], first: str, second: str, s: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """|M|^2 of f f-bar -> f' f'-bar, averaged over initial and summed over final spins, without colours.

    Args:
        bosons: that are exchanged.
        first: name of f.
        second: name of f'.
        s: squared mass of the pair ``(n,)``, in GeV^2.
        t: minus the squared transfer from f to f' ``(n,)``.
        u: the same from f to the antiparticle of f'.

    Returns:
        ``(n,)``.
    """
    equal, unequal = squared_exchanges(bosons, first, second, s)
    return equal * u**2 + unequal * t**2
