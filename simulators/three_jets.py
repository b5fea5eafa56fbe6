r"""e- e+ -> q q-bar g at leading order, through photon and Z; masses neglected.

With incoming e- p_1, e+ p_2 and outgoing q q_1, q-bar q_2, gluon k, the sum over helicities of the gluon is, for each
pair of chiralities of electron and quark,

$$ |M|^2 = 8 N_c C_F g_s^2\, s\, |A_{hh'}(s)|^2\;
   \frac{(p_1 q_2)^2 + (p_2 q_1)^2}{(q_1 k)(q_2 k)} \ \ (h = h'), \qquad
   \frac{(p_1 q_1)^2 + (p_2 q_2)^2}{(q_1 k)(q_2 k)} \ \ (h \neq h'), $$

to be averaged over the four spins of the beams (Ellis, Ross and Terrano 1981, Nucl. Phys. B178, 421).  Without regard
to directions it is the known

$$ \frac{d\sigma}{dx_1 dx_2} = \sigma_0\, \frac{C_F \alpha_s}{2\pi}\, \frac{x_1^2 + x_2^2}{(1 - x_1)(1 - x_2)}, \qquad
   x_i = \frac{2 E_i}{\sqrt{s}}
$$

of Ellis, Gaillard and Ross (1976, Nucl. Phys. B111, 253).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbi_physics.core.cuts import PairMassCut
from sbi_physics.core.errors import UsageError
from sbi_physics.core.initial_states import Beams
from sbi_physics.core.kinematics import minkowski_dot
from sbi_physics.core.mappings import PowerLaw
from sbi_physics.core.processes import Decay, Particle, Process
from simulators.electroweak import Electroweak, squared_exchanges

__all__ = ["QUARKS", "ThreeJets", "three_jets"]

QUARKS = ("u", "d", "s", "c", "b")
_COLOURS, _CASIMIR = 3, 4 / 3


@dataclass(frozen=True)
class ThreeJets:
    """The squared matrix element.

    Args:
        exchange: which of "photon" and "Z" are exchanged.
        quarks: flavours that are summed over.
        alpha_s: strong coupling.
        parameters: of the electroweak theory.

    Raises:
        UsageError: nothing is exchanged, or something else; or a quark is not known.
    """

    exchange: tuple[str, ...] = ("photon", "Z")
    quarks: tuple[str, ...] = QUARKS
    alpha_s: float = 0.118
    parameters: Electroweak = field(default_factory=Electroweak)

    def __post_init__(self) -> None:
        self.parameters.bosons(self.exchange)
        if not self.quarks or not set(self.quarks) <= set(QUARKS):
            raise UsageError(f"quarks: expected some of {', '.join(QUARKS)}; got {self.quarks!r}")

    def __call__(self, incoming: Tensor, outgoing: Tensor) -> Tensor:
        """|M|^2 ``(n,)`` of momenta of e-, e+ ``(n, 2, 4)`` and of q, q-bar, g ``(n, 3, 4)``, in GeV."""
        electron, positron = incoming.unbind(1)
        quark, antiquark, gluon = outgoing.unbind(1)
        s = 2 * minkowski_dot(electron, positron)
        bosons = self.parameters.bosons(self.exchange)
        equal, unequal = torch.zeros_like(s), torch.zeros_like(s)
        for name in self.quarks:
            sums = squared_exchanges(bosons, "e", name, s)
            equal, unequal = equal + sums[0], unequal + sums[1]
        across = minkowski_dot(electron, antiquark) ** 2 + minkowski_dot(positron, quark) ** 2
        along = minkowski_dot(electron, quark) ** 2 + minkowski_dot(positron, antiquark) ** 2
        soft = minkowski_dot(quark, gluon) * minkowski_dot(antiquark, gluon)
        factor = 8 * _COLOURS * _CASIMIR * 4 * math.pi * self.alpha_s / 4
        return factor * s * (equal * across + unequal * along) / soft


def three_jets(
    energy: float = 91.188,
    y_cut: float = 0.01,
    exchange: tuple[str, ...] = ("photon", "Z"),
    quarks: tuple[str, ...] = QUARKS,
    alpha_s: float = 0.118,
    parameters: Electroweak | None = None,
    even: bool = False,
) -> Process:
    """The process with every pair of partons at s_ij > y_cut s.

    Args:
        energy: sqrt(s) in GeV.
        y_cut: between 0 and 1/3.
        exchange: which of "photon" and "Z" are exchanged.
        quarks: flavours that are summed over.
        alpha_s: strong coupling.
        parameters: of the electroweak theory.
        even: whether phase space is filled evenly, rather than as the poles of the gluon along both quarks would.

    Raises:
        UsageError: an argument is out of its range.
    """
    if not 0 < y_cut < 1 / 3:
        raise UsageError(f"y_cut: expected a number between 0 and 1/3, got {y_cut!r}")
    matrix_element = ThreeJets(exchange, quarks, alpha_s, parameters or Electroweak())
    least = math.sqrt(y_cut) * energy
    pair = Decay(
        Particle(),
        Particle(),
        mass=PowerLaw(1.0),
        angle=PowerLaw(1.0, offset=2 * y_cut),
        axis="flight",
        least_mass=least,
    )
    final_state = (0.0, 0.0, 0.0) if even else Decay(Particle(), pair)
    return Process("three_jets", Beams(energy), final_state, matrix_element, (PairMassCut(least=least),))
