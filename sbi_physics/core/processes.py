"""How a scattering or decay is described, so that whoever integrates it need know nothing else of it.

A `Process` says what comes in, what goes out and in which order it is thought to decay, the squared matrix element, and
the cuts.  A tree of decays is written as it is spoken: t -> b W, W -> l nu is

    Decay(Particle(4.7), Decay(Particle(), Particle(), mass=BreitWigner(80.4, 2.1)))

with the final state numbered from left to right.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Union

from torch import Tensor

from sbi_physics.core.checks import not_negative
from sbi_physics.core.errors import UsageError
from sbi_physics.core.initial_states import InitialState
from sbi_physics.core.mappings import Flat, Mapping

__all__ = ["Decay", "MatrixElement", "Particle", "Process", "leaf_masses"]

MatrixElement = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Particle:
    """A particle of the final state.

    Args:
        mass: in GeV.

    Raises:
        UsageError: the mass is negative or not finite.
    """

    mass: float = 0.0

    def __post_init__(self) -> None:
        not_negative(self.mass, "mass")


@dataclass(frozen=True)
class Decay:
    """One body that decays into two, each of which may decay again.

    Args:
        first: what it decays into.
        second: the other.
        mass: map of its squared mass; without effect at the root, whose mass is given.
        angle: map of 1 - cos theta from 0 to 2, theta between `first` and the axis in the rest frame of the decay,
            reached from that of the root by boosts without rotations.  A t-channel exchange between the beam along z
            and `first` is a `PowerLaw` with a small offset.
        axis: "z", or "flight" for the direction in which the body moves; the root, at rest, has none.
        least_mass: masses below it, in GeV, are left out; as by a cut, but no event is spent on them.

    Raises:
        UsageError: the least mass is negative, the axis is not known, or the map of the angle has no finite integral.
    """

    first: Union["Decay", Particle]
    second: Union["Decay", Particle]
    mass: Mapping = field(default_factory=Flat)
    angle: Mapping = field(default_factory=Flat)
    least_mass: float = 0.0
    axis: Literal["z", "flight"] = "z"

    def __post_init__(self) -> None:
        not_negative(self.least_mass, "least_mass")
        if self.axis not in ("z", "flight"):
            raise UsageError(f"Decay: expected the axis 'z' or 'flight', got {self.axis!r}")
        if self.angle.needs_positive_low():
            raise UsageError(f"Decay: expected a map of 1 - cos theta with a positive offset, got {self.angle}")

    @property
    def threshold(self) -> float:
        """The least mass, in GeV."""
        return max(self.least_mass, _threshold(self.first) + _threshold(self.second))


def _threshold(node: Decay | Particle) -> float:
    return node.mass if isinstance(node, Particle) else node.threshold


def leaf_masses(node: Decay | Particle) -> tuple[float, ...]:
    """The masses of the final state in GeV, from left to right."""
    if isinstance(node, Particle):
        return (node.mass,)
    return leaf_masses(node.first) + leaf_masses(node.second)


@dataclass(frozen=True)
class Process:
    """A scattering or decay to be integrated.

    Args:
        name: what it is called.
        initial_state: what comes in.
        final_state: a tree of decays, or masses in GeV for phase space without structure.
        squared_matrix_element: function of the momenta that come in ``(n, 1 or 2, 4)`` and that go out ``(n, k, 4)``,
            both in the frame of the beams, giving |M|^2 ``(n,)``: averaged over initial and summed over final spins and
            colours, with the factor of identical particles, and for partons with their densities.
        cuts: functions of the momenta that go out ``(n, k, 4)``, giving ``(n,)`` of truth values; all must hold.
        unit: astropy unit string of the result, that of a cross section or of a width (astropy's "pb" are bits).
    """

    name: str
    initial_state: InitialState
    final_state: Decay | tuple[float, ...]
    squared_matrix_element: MatrixElement
    cuts: tuple[Callable[[Tensor], Tensor], ...] = ()
    unit: str = "pbarn"
