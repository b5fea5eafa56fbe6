r"""t -> b W+ -> b l+ nu at tree level, with the W off its shell; masses of the leptons neglected.

$$ |M|^2 = \frac{2 g^4 (p_t p_l)(p_b p_\nu)}{(s_W - M_W^2)^2 + M_W^2 \Gamma_W^2}, \qquad
   g^2 = 4 \sqrt{2}\, G_F M_W^2, $$

averaged over the spins of the top and summed over colours, with |V_tb| = 1.  In the limit of a narrow W the width is
that of t -> b W,

$$ \Gamma_t = \frac{G_F m_t^3}{8 \pi \sqrt 2}\, \lambda^{1/2}(1, x, r) \left[(1 - r)^2 + x (1 + r) - 2 x^2\right],
   \qquad x = \frac{M_W^2}{m_t^2}, \quad r = \frac{m_b^2}{m_t^2}, $$

times the branching ratio G_F M_W^3 / (6 pi sqrt 2 Gamma_W); without the mass of the b it is the known
(1 - x)^2 (1 + 2x) (Jezabek and Kuehn 1989, Nucl. Phys. B314, 1).  For any width of the W, it is the same formula at
the mass sqrt(s_W), spread over s_W by the propagator.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.initial_states import AtRest
from sbi_physics.core.kinematics import minkowski_dot
from sbi_physics.core.mappings import BreitWigner
from sbi_physics.core.processes import Decay, Particle, Process

__all__ = ["TopDecay", "top_decay"]


@dataclass(frozen=True)
class TopDecay:
    """The squared matrix element, and what is known of its integral (Particle Data Group 2024).

    Args:
        top_mass: in GeV.
        bottom_mass: in GeV; it may be zero.
        w_mass: in GeV.
        w_width: in GeV.
        fermi: G_F, in GeV^-2.

    Raises:
        UsageError: the top is not heavier than b and W together, or a mass or width is out of its range.
    """

    top_mass: float = 172.57
    bottom_mass: float = 0.0
    w_mass: float = 80.3692
    w_width: float = 2.085
    fermi: float = 1.1663788e-5

    def __post_init__(self) -> None:
        if min(self.w_mass, self.w_width) <= 0 or self.bottom_mass < 0:
            raise UsageError(
                "TopDecay: expected positive w_mass and w_width and no negative bottom_mass, got "
                f"{self.w_mass!r}, {self.w_width!r} and {self.bottom_mass!r}"
            )
        if not self.top_mass > self.w_mass + self.bottom_mass:
            raise UsageError(f"TopDecay: expected top_mass above those of b and W, got {self.top_mass!r}")

    def __call__(self, incoming: Tensor, outgoing: Tensor) -> Tensor:
        """|M|^2 ``(n,)`` of momenta of t ``(n, 1, 4)`` and of b, l+, nu ``(n, 3, 4)``, in GeV."""
        top = incoming[:, 0]
        bottom, lepton, neutrino = outgoing.unbind(1)
        squared_mass = 2 * minkowski_dot(lepton, neutrino)
        propagator = (squared_mass - self.w_mass**2) ** 2 + (self.w_mass * self.w_width) ** 2
        coupling = 4 * math.sqrt(2) * self.fermi * self.w_mass**2
        return 2 * coupling**2 * minkowski_dot(top, lepton) * minkowski_dot(bottom, neutrino) / propagator

    def width_to_w(self) -> float:
        """The width of t -> b W in GeV, the W on its shell."""
        x, r = (self.w_mass / self.top_mass) ** 2, (self.bottom_mass / self.top_mass) ** 2
        kallen = (1 - x - r) ** 2 - 4 * x * r
        bracket = (1 - r) ** 2 + x * (1 + r) - 2 * x**2
        return self.fermi * self.top_mass**3 / (8 * math.pi * math.sqrt(2)) * math.sqrt(kallen) * bracket

    def w_to_leptons(self) -> float:
        """The width of W -> l nu in GeV."""
        return self.fermi * self.w_mass**3 / (6 * math.pi * math.sqrt(2))

    def narrow_width(self) -> float:
        """The width of t -> b l nu in GeV, the W narrow."""
        return self.width_to_w() * self.w_to_leptons() / self.w_width


def top_decay(
    top_mass: float = 172.57, bottom_mass: float = 0.0, w_mass: float = 80.3692, w_width: float = 2.085
) -> Process:
    """The decay of a top at rest, with a width in GeV for a result.

    Raises:
        UsageError: the top is not heavier than b and W together, or a mass or width is out of its range.
    """
    matrix_element = TopDecay(top_mass, bottom_mass, w_mass, w_width)
    w = Decay(Particle(), Particle(), mass=BreitWigner(w_mass, w_width), axis="flight")
    return Process("top_decay", AtRest(top_mass), Decay(Particle(bottom_mass), w), matrix_element, unit="GeV")
