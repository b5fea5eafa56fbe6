r"""Relativistic kinematics of batches of four-momenta, in float64, differentiable, on any device.

A four-momentum is the last axis of a tensor, in the order (E, p_x, p_y, p_z), in GeV with c = 1, with the metric
(+, -, -, -) and the beams along z.  The two-body momentum uses Kallen's function in the form that does not cancel at
the threshold,

$$ |p| = \frac{\sqrt{(M - m_1 - m_2)(M + m_1 + m_2)(M - m_1 + m_2)(M + m_1 - m_2)}}{2M} . $$
"""

import math

import torch
from torch import Tensor

__all__ = [
    "azimuth",
    "boost_along_z",
    "boost_from_rest",
    "boost_to_rest",
    "cos_angle",
    "direction",
    "four_momentum",
    "invariant_mass",
    "mass_squared",
    "minkowski_dot",
    "one_minus_cos",
    "rapidity",
    "transverse_momentum",
    "turn_from_z",
    "turn_to_z",
    "two_body_momentum",
]


def minkowski_dot(p: Tensor, q: Tensor) -> Tensor:
    """The product E_p E_q - p . q of four-momenta ``(*, 4)``: ``(*)``, in GeV^2."""
    product: Tensor = p[..., 0] * q[..., 0] - (p[..., 1:] * q[..., 1:]).sum(-1)
    return product


def mass_squared(p: Tensor) -> Tensor:
    """E^2 - |p|^2 of four-momenta ``(*, 4)``: ``(*)``, in GeV^2; rounding may make it slightly negative."""
    length = torch.linalg.vector_norm(p[..., 1:], dim=-1)
    squared: Tensor = (p[..., 0] - length) * (p[..., 0] + length)
    return squared


def invariant_mass(p: Tensor) -> Tensor:
    """The mass of four-momenta ``(*, 4)``: ``(*)``, in GeV, zero where rounding makes its square negative."""
    return torch.sqrt(mass_squared(p).clamp(min=0.0))


def transverse_momentum(p: Tensor) -> Tensor:
    """The momentum across the beams of four-momenta ``(*, 4)``: ``(*)``, in GeV."""
    return torch.hypot(p[..., 1], p[..., 2])


def rapidity(p: Tensor) -> Tensor:
    """The rapidity artanh(p_z / E) of four-momenta ``(*, 4)``: ``(*)``; infinite along the beams without a mass."""
    across = torch.sqrt((mass_squared(p) + p[..., 1] ** 2 + p[..., 2] ** 2).clamp(min=0.0))
    return torch.asinh(p[..., 3] / across)


def azimuth(p: Tensor) -> Tensor:
    """The angle around the beams of four-momenta ``(*, 4)``: ``(*)``, in radians from 0 to 2 pi."""
    return torch.remainder(torch.atan2(p[..., 2], p[..., 1]), 2 * math.pi)


def cos_angle(p: Tensor, q: Tensor) -> Tensor:
    """The cosine of the angle between the three-momenta of ``(*, 4)`` and ``(*, 4)``: ``(*)``."""
    lengths = torch.linalg.vector_norm(p[..., 1:], dim=-1) * torch.linalg.vector_norm(q[..., 1:], dim=-1)
    cosine: Tensor = (p[..., 1:] * q[..., 1:]).sum(-1) / lengths
    return cosine.clamp(-1.0, 1.0)


def one_minus_cos(p: Tensor) -> Tensor:
    """1 - cos theta of four-momenta ``(*, 4)``, theta from the z axis: ``(*)``, exact to the last digits forward."""
    length = torch.linalg.vector_norm(p[..., 1:], dim=-1)
    across = p[..., 1] ** 2 + p[..., 2] ** 2
    return torch.where(p[..., 3] > 0, across / (length * (length + p[..., 3].abs())), 1 - p[..., 3] / length)


def direction(one_minus_cosine: Tensor, angle: Tensor) -> Tensor:
    """The unit vector ``(*, 3)`` of 1 - cos theta ``(*)`` from the z axis and an angle ``(*)`` around it."""
    sine = torch.sqrt(one_minus_cosine * (2 - one_minus_cosine))
    return torch.stack([sine * torch.cos(angle), sine * torch.sin(angle), 1 - one_minus_cosine], -1)


def turn_from_z(vector: Tensor, axis: Tensor) -> Tensor:
    """Turn vectors ``(*, 3)`` as the z axis turns into an axis ``(*, 3)`` of any length, by its polar angles."""
    sine, cosine, x, y = _polar(axis)
    across, up = cosine * vector[..., 0] + sine * vector[..., 2], cosine * vector[..., 2] - sine * vector[..., 0]
    return torch.stack([x * across - y * vector[..., 1], y * across + x * vector[..., 1], up], -1)


def turn_to_z(vector: Tensor, axis: Tensor) -> Tensor:
    """Turn vectors ``(*, 3)`` as an axis ``(*, 3)`` turns into the z axis; the inverse of `turn_from_z`."""
    sine, cosine, x, y = _polar(axis)
    across, aside = x * vector[..., 0] + y * vector[..., 1], x * vector[..., 1] - y * vector[..., 0]
    return torch.stack([cosine * across - sine * vector[..., 2], aside, sine * across + cosine * vector[..., 2]], -1)


def _polar(axis: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sine and cosine of the polar angle of an axis, cosine and sine of its azimuth."""
    across = torch.hypot(axis[..., 0], axis[..., 1])
    length = torch.linalg.vector_norm(axis, dim=-1)
    return across / length, axis[..., 2] / length, axis[..., 0] / across, axis[..., 1] / across


def four_momentum(vector: Tensor, squared_mass: Tensor | float) -> Tensor:
    """The four-momentum ``(*, 4)`` on the shell of a squared mass ``(*)`` with a three-momentum ``(*, 3)``."""
    energy = torch.sqrt((vector**2).sum(-1) + squared_mass)
    return torch.cat([energy.unsqueeze(-1), vector], -1)


def two_body_momentum(mass: Tensor, first: Tensor | float, second: Tensor | float) -> Tensor:
    """The momentum of each of two bodies in the rest frame of what decays into them.

    Args:
        mass: of what decays, ``(*)``, in GeV.
        first: mass of one, ``(*)``.
        second: mass of the other, ``(*)``.

    Returns:
        ``(*)``, in GeV; zero below the threshold (Particle Data Group, review of kinematics).
    """
    heavy = (mass - first - second) * (mass + first + second)
    light = (mass - first + second) * (mass + first - second)
    return torch.sqrt((heavy * light).clamp(min=0.0)) / (2 * mass)


def boost_from_rest(p: Tensor, frame: Tensor, mass: Tensor) -> Tensor:
    """Carry four-momenta from the rest frame of a body to the frame in which it moves.

    Args:
        p: ``(*, 4)`` in the rest frame.
        frame: four-momentum of the body, ``(*, 4)``, broadcast against p.
        mass: of the body, ``(*)``, which its momentum knows less exactly.

    Returns:
        ``(*, 4)``.
    """
    return _boost(p, frame[..., 0], frame[..., 1:], mass)


def boost_to_rest(p: Tensor, frame: Tensor, mass: Tensor) -> Tensor:
    """Carry four-momenta ``(*, 4)`` to the rest frame of a body; the inverse of `boost_from_rest`."""
    return _boost(p, frame[..., 0], -frame[..., 1:], mass)


def _boost(p: Tensor, frame_energy: Tensor, frame_vector: Tensor, mass: Tensor) -> Tensor:
    energy = (p[..., 0] * frame_energy + (p[..., 1:] * frame_vector).sum(-1)) / mass
    along = (p[..., 0] + energy) / (frame_energy + mass)
    return torch.cat([energy.unsqueeze(-1), p[..., 1:] + along.unsqueeze(-1) * frame_vector], -1)


def boost_along_z(p: Tensor, shift: Tensor) -> Tensor:
    """Add a shift ``(*)`` to the rapidities of four-momenta ``(*, 4)``."""
    cosh, sinh = torch.cosh(shift), torch.sinh(shift)
    energy = p[..., 0] * cosh + p[..., 3] * sinh
    along = p[..., 3] * cosh + p[..., 0] * sinh
    return torch.stack([energy, p[..., 1], p[..., 2], along], -1)
