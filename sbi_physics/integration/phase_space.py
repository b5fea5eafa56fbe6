r"""Phase space: what its maps have in common, and its volume.

A map turns numbers u in [0, 1] into the momenta of n particles in their rest frame, (E, p_x, p_y, p_z) in GeV, with a
weight w such that the mean of w f over u is

$$ \int f\, d\Phi_n, \qquad d\Phi_n = \prod_{i=1}^{n} \frac{d^3 p_i}{(2\pi)^3\, 2E_i}\;
   (2\pi)^4\, \delta^4\Big(P - \sum_i p_i\Big) . $$

Without masses the volume is known (Kleiss, Stirling and Ellis 1986, Comput. Phys. Commun. 40, 359),

$$ \Phi_n = (2\pi)^{4-3n} \left(\frac{\pi}{2}\right)^{n-1} \frac{s^{n-2}}{\Gamma(n)\,\Gamma(n-1)} . $$

Everything is float64, differentiable in u (and in the energy) inside the cube, and runs where u lies.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbi_physics.core.checks import batch_of, not_negative
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.kinematics import two_body_momentum

__all__ = [
    "InvertiblePhaseSpace",
    "PhaseSpace",
    "checked_masses",
    "checked_momenta",
    "checked_numbers",
    "closed_volume",
    "energies_like",
    "massless_volume",
    "uniform_or_edge",
]

# Beyond the corners of the cube lie infinite slopes; this is as near as float64 can tell 1 - u from 1.
_EDGE = 2.0**-53


@runtime_checkable
class PhaseSpace(Protocol):
    """A map from the unit cube to the momenta of a final state in its rest frame."""

    dims: int
    masses: tuple[float, ...]
    energy: float

    def __call__(self, u: Tensor, energy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Momenta ``(n_events, n, 4)`` and weights ``(n_events,)`` of u ``(n_events, dims)``.

        An energy ``(n_events,)`` replaces the one that the map was made with.
        """


@runtime_checkable
class InvertiblePhaseSpace(PhaseSpace, Protocol):
    """A map whose numbers can be found from the momenta."""

    def inverse(self, momenta: Tensor, energy: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Numbers ``(n_events, dims)`` and weights ``(n_events,)`` of momenta ``(n_events, n, 4)`` at rest together."""


def massless_volume(n: int, energy: Tensor | float) -> Tensor | float:
    """The volume of the phase space of n massless particles at an energy in GeV, in GeV^(2n - 4)."""
    constant = (2 * math.pi) ** (4 - 3 * n) * (math.pi / 2) ** (n - 1) / (math.gamma(n) * math.gamma(n - 1))
    return constant * energy ** (2 * n - 4)


def closed_volume(masses: tuple[float, ...], energy: float) -> float:
    """The volume of phase space, in GeV^(2n - 4), without masses or for two particles.

    Raises:
        UsageError: it has no closed form.
    """
    if not any(masses):
        return float(massless_volume(len(masses), energy))
    if len(masses) == 2:
        momentum = two_body_momentum(torch.tensor(energy, dtype=torch.float64), *masses)
        return float(momentum) / (4 * math.pi * energy)
    raise UsageError("volume: expected massless particles, or two; of others it is the mean of the weights")


def checked_masses(masses: Sequence[float], energy: float, owner: str) -> tuple[float, ...]:
    """Return the masses of at least two particles that an energy in GeV can make.

    Raises:
        UsageError: there are fewer than two, one is negative, or the energy is not above their sum.
    """
    checked = tuple(not_negative(mass, f"{owner}: mass") for mass in masses)
    if len(checked) < 2:
        raise UsageError(f"{owner}: expected the masses of at least 2 particles, got {len(checked)}")
    if not (energy > sum(checked) and math.isfinite(energy)):
        raise UsageError(f"{owner}: expected an energy above the sum of masses, {sum(checked):g} GeV, got {energy!r}")
    return checked


def checked_numbers(u: Tensor, dims: int, owner: str) -> Tensor:
    """Return u ``(n_events, dims)`` in float64.

    Raises:
        ShapeError: it has another shape.
    """
    return batch_of(u, (dims,), f"{owner}: u", minimum=0).to(torch.float64)


def checked_momenta(momenta: Tensor, n: int, owner: str) -> Tensor:
    """Return momenta ``(n_events, n, 4)`` in float64.

    Raises:
        ShapeError: they have another shape.
    """
    return batch_of(momenta, (n, 4), f"{owner}: momenta", minimum=0).to(torch.float64)


def energies_like(energy: Tensor | None, default: float, rows: Tensor) -> Tensor:
    """The energy of each row ``(n_events,)``, in float64.

    Raises:
        ShapeError: a given energy has another shape.
    """
    if energy is None:
        return rows.new_full((len(rows),), default)
    if energy.shape != (len(rows),):
        raise ShapeError(f"energy: expected shape ({len(rows)},), got {tuple(energy.shape)}")
    return energy.to(torch.float64)


def uniform_or_edge(u: Tensor) -> Tensor:
    """Numbers of [0, 1], those at the very ends drawn in by a rounding error."""
    return u.clamp(_EDGE, 1 - _EDGE)
