r"""e- e+ -> mu- mu+ at tree level, through photon and Z with their interference; masses of the leptons neglected.

By the photon alone the cross section is 4 pi alpha^2 / 3 s; by the Z alone, at its pole,
12 pi Gamma_ee Gamma_mumu / (M_Z^2 Gamma_Z^2) (Particle Data Group, review of cross sections).
"""

from dataclasses import dataclass, field

from torch import Tensor

from sbi_physics.core.initial_states import Beams
from sbi_physics.core.kinematics import minkowski_dot
from sbi_physics.core.processes import Decay, Particle, Process
from simulators.electroweak import Electroweak, pair_squared

__all__ = ["MuonPairs", "muon_pairs"]


@dataclass(frozen=True)
class MuonPairs:
    """The squared matrix element.

    Args:
        exchange: which of "photon" and "Z" are exchanged.
        parameters: of the electroweak theory.

    Raises:
        UsageError: nothing is exchanged, or something else.
    """

    exchange: tuple[str, ...] = ("photon", "Z")
    parameters: Electroweak = field(default_factory=Electroweak)

    def __post_init__(self) -> None:
        self.parameters.bosons(self.exchange)

    def __call__(self, incoming: Tensor, outgoing: Tensor) -> Tensor:
        """|M|^2 ``(n,)`` of momenta of e-, e+ ``(n, 2, 4)`` and of mu-, mu+ ``(n, 2, 4)``, in GeV."""
        s = 2 * minkowski_dot(incoming[:, 0], incoming[:, 1])
        t = -2 * minkowski_dot(incoming[:, 0], outgoing[:, 0])
        u = -2 * minkowski_dot(incoming[:, 0], outgoing[:, 1])
        return pair_squared(self.parameters.bosons(self.exchange), "e", "mu", s, t, u)


def muon_pairs(
    energy: float = 91.188, exchange: tuple[str, ...] = ("photon", "Z"), parameters: Electroweak | None = None
) -> Process:
    """The process at an energy in GeV of both beams together; the first beam is that of electrons.

    Raises:
        UsageError: the energy is not positive, or something else is exchanged.
    """
    matrix_element = MuonPairs(exchange, parameters or Electroweak())
    return Process("muon_pairs", Beams(energy), Decay(Particle(), Particle()), matrix_element)
