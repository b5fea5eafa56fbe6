r"""Cross sections and widths as integrands on the unit cube.

$$ \sigma = \int dx_1\, dx_2 \int d\Phi_n\, \frac{|M|^2}{4 \sqrt{(p_1 p_2)^2 - m_1^2 m_2^2}}\, \Theta_\mathrm{cuts},
   \qquad \Gamma = \int d\Phi_n\, \frac{|M|^2}{2 M}\, \Theta_\mathrm{cuts}, $$

with (hbar c)^2 where an area is asked for.  The first numbers of u go to the initial state, the others to the phase
space.  The matrix element is evaluated only for events that pass the cuts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.initial_states import InitialState
from sbi_physics.core.kinematics import boost_along_z, mass_squared, minkowski_dot
from sbi_physics.core.processes import Decay, MatrixElement, Process
from sbi_physics.integration.decay_chain import DecayChain
from sbi_physics.integration.phase_space import (
    InvertiblePhaseSpace,
    PhaseSpace,
    checked_momenta,
    checked_numbers,
    uniform_or_edge,
)
from sbi_physics.integration.rambo_on_diet import RamboOnDiet

if TYPE_CHECKING:
    from astropy.units import Quantity

__all__ = ["CrossSection", "Events"]


@dataclass(frozen=True)
class Events:
    """A batch of weighted events.

    Attributes:
        incoming: momenta of what comes in, ``(n, 1 or 2, 4)``, (E, p_x, p_y, p_z) in GeV.
        outgoing: momenta of what goes out, ``(n, k, 4)``, in the same frame.
        weight: ``(n,)``, in the unit of the integral, whose mean over u it is; zero for events that fail a cut.
    """

    incoming: Tensor
    outgoing: Tensor
    weight: Tensor


class CrossSection:
    """A cross section, or the width of a decay, as a function on the unit cube whose mean is its value.

    Args:
        initial_state: what comes in: `Beams`, `HadronBeams`, `AtRest` or one like them.
        phase_space: map to the final state: `RamboOnDiet`, `DecayChain`, `Rambo` or one like them.
        squared_matrix_element: |M|^2 ``(n,)`` as a function of the momenta that come in ``(n, 1 or 2, 4)`` and that go
            out ``(n, k, 4)``; see `Process`.
        cuts: functions of the momenta that go out, giving ``(n,)`` of truth values; all must hold.
        unit: of the result: that of an area, or of an energy for widths.
        name: what it is called.

    Attributes:
        dims: how many numbers an event takes.

    Raises:
        UsageError: the initial state has too little energy, or the unit is not that of an area or energy.
    """

    def __init__(
        self,
        initial_state: InitialState,
        phase_space: PhaseSpace,
        squared_matrix_element: MatrixElement,
        *,
        cuts: Sequence[Callable[[Tensor], Tensor]] = (),
        unit: str = "pbarn",
        name: str = "",
    ) -> None:
        least = initial_state.least_energy()
        if least < sum(phase_space.masses):
            threshold = sum(phase_space.masses)
            raise UsageError(f"CrossSection: expected an energy of at least {threshold:g} GeV, got {least:g}")
        self.initial_state = initial_state
        self.phase_space = phase_space
        self.squared_matrix_element = squared_matrix_element
        self.cuts = tuple(cuts)
        self.unit = unit
        self.name = name
        self.dims = initial_state.dims + phase_space.dims
        self._in_unit = _natural_in(unit)

    @classmethod
    def of(cls, process: Process) -> "CrossSection":
        """The integrand of a process, with the phase space that its final state asks for."""
        energy = process.initial_state.least_energy()
        final = process.final_state
        phase_space = DecayChain(final, energy) if isinstance(final, Decay) else RamboOnDiet(final, energy)
        return cls(
            process.initial_state,
            phase_space,
            process.squared_matrix_element,
            cuts=process.cuts,
            unit=process.unit,
            name=process.name,
        )

    def through(self, phase_space: PhaseSpace, initial_state: InitialState | None = None) -> "CrossSection":
        """The same integral by another map, as one channel of many."""
        return CrossSection(
            self.initial_state if initial_state is None else initial_state,
            phase_space,
            self.squared_matrix_element,
            cuts=self.cuts,
            unit=self.unit,
            name=self.name,
        )

    def __call__(self, u: Tensor) -> Tensor:
        """Weights ``(n,)``, in `unit`, of numbers u ``(n, dims)`` in [0, 1].

        Raises:
            ShapeError: u, or what the matrix element gives, has another shape.
        """
        return self.events(u).weight

    def events(self, u: Tensor) -> Events:
        """The events of numbers u ``(n, dims)`` in [0, 1], with the weights that the call alone gives.

        Raises:
            ShapeError: u, or what the matrix element gives, has another shape.
        """
        incoming, outgoing, measure = self.momenta(u)
        return Events(incoming, outgoing, measure * self.differential(incoming, outgoing))

    def momenta(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Incoming ``(n, 1 or 2, 4)`` and outgoing ``(n, k, 4)`` momenta, and the measure ``(n,)`` per unit of u.

        Raises:
            ShapeError: u has another shape.
        """
        u = uniform_or_edge(checked_numbers(u, self.dims, "CrossSection"))
        start = self.initial_state(u[:, : self.initial_state.dims])
        momenta, weight = self.phase_space(u[:, self.initial_state.dims :], start.energy)
        outgoing = boost_along_z(momenta, start.rapidity.unsqueeze(-1)) if self.initial_state.dims else momenta
        return start.momenta, outgoing, start.weight * weight

    def numbers(self, outgoing: Tensor) -> tuple[Tensor, Tensor]:
        """The u ``(n, dims)`` that momenta ``(n, k, 4)`` belong to, and the measure ``(n,)`` there.

        Raises:
            UsageError: the phase space has no inverse.
            ShapeError: the momenta have another shape.
        """
        if not isinstance(self.phase_space, InvertiblePhaseSpace):
            raise UsageError(f"numbers: expected a phase space with an inverse, got {type(self.phase_space).__name__}")
        outgoing = checked_momenta(outgoing, len(self.phase_space.masses), "CrossSection")
        first, measure = self.initial_state.inverse(outgoing.sum(-2))
        start = self.initial_state(first)
        at_rest = boost_along_z(outgoing, -start.rapidity.unsqueeze(-1)) if self.initial_state.dims else outgoing
        second, weight = self.phase_space.inverse(at_rest, start.energy)
        return torch.cat([first, second], -1), measure * weight

    def differential(self, incoming: Tensor, outgoing: Tensor) -> Tensor:
        """What multiplies the measure: flux, |M|^2 and cuts at momenta ``(n, 1 or 2, 4)`` and ``(n, k, 4)``: ``(n,)``.

        Raises:
            ShapeError: the matrix element does not give one number for each event.
        """
        rows = self._kept(outgoing)
        kept_in, kept_out = incoming[rows], outgoing[rows]
        squared = self.squared_matrix_element(kept_in, kept_out)
        if squared.shape != rows.shape:
            raise ShapeError(f"squared_matrix_element: expected shape ({len(rows)},), got {tuple(squared.shape)}")
        values = squared * _flux_factor(kept_in) * self._in_unit
        return torch.zeros_like(outgoing[:, 0, 0]).index_put((rows,), values)

    def quantity(self, value: float) -> "Quantity":
        """A value with its unit."""
        from astropy.units import Quantity

        return Quantity(value, self.unit)

    def _kept(self, outgoing: Tensor) -> Tensor:
        """The rows that pass all cuts."""
        if not self.cuts:
            return torch.arange(len(outgoing), device=outgoing.device)
        kept = torch.ones(len(outgoing), dtype=torch.bool, device=outgoing.device)
        with torch.no_grad():
            for cut in self.cuts:
                kept = kept & cut(outgoing)
        return kept.nonzero()[:, 0]


def _flux_factor(incoming: Tensor) -> Tensor:
    """One over the flux: 1 / 2M of one body, 1 / 4 sqrt((p_1 p_2)^2 - m_1^2 m_2^2) of two, ``(n,)``."""
    if incoming.shape[1] == 1:
        return 0.5 / incoming[:, 0, 0]
    product = minkowski_dot(incoming[:, 0], incoming[:, 1])
    masses = mass_squared(incoming[:, 0]) * mass_squared(incoming[:, 1])
    return 0.25 / torch.sqrt(product**2 - masses)


@lru_cache(maxsize=64)
def _natural_in(unit: str) -> float:
    """How many of a unit GeV^-2 (of an area) or GeV (of an energy) is."""
    from astropy import constants
    from astropy.units import Unit, UnitConversionError

    try:
        target = Unit(unit)
    except ValueError as error:
        raise UsageError(f"unit: expected an astropy unit string such as 'pbarn', got {unit!r}") from error
    gev = Unit("GeV")
    for natural in (1 * gev, (constants.hbar * constants.c) ** 2 / gev**2):
        try:
            return float(natural.to(target).value)
        except UnitConversionError:
            continue
    raise UsageError(f"unit: expected that of an area such as 'pbarn' or an energy such as 'GeV', got {unit!r}")
