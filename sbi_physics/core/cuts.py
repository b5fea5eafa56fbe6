"""Cuts on final states: callables from four-momenta to yes or no, joined by ``&``, ``|`` and ``~``.

A cut takes momenta ``(n, k, 4)`` of k particles, (E, p_x, p_y, p_z) in GeV, and gives ``(n,)`` of truth values.  The
particles that it looks at are named by their places; none named means all of them.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.kinematics import (
    cos_angle,
    invariant_mass,
    one_minus_cos,
    rapidity,
    transverse_momentum,
)

__all__ = ["BeamAngleCut", "Cut", "PairAngleCut", "PairMassCut", "RapidityCut", "TransverseMomentumCut"]


class Cut(ABC):
    """A condition on final states."""

    @abstractmethod
    def __call__(self, momenta: Tensor) -> Tensor:
        """Whether events with momenta ``(n, k, 4)`` are kept: ``(n,)``."""

    def __and__(self, other: "Cut") -> "Cut":
        return _Both(self, other)

    def __or__(self, other: "Cut") -> "Cut":
        return _Either(self, other)

    def __invert__(self) -> "Cut":
        return _Not(self)


@dataclass(frozen=True)
class _Both(Cut):
    first: Cut
    second: Cut

    def __call__(self, momenta: Tensor) -> Tensor:
        return self.first(momenta) & self.second(momenta)


@dataclass(frozen=True)
class _Either(Cut):
    first: Cut
    second: Cut

    def __call__(self, momenta: Tensor) -> Tensor:
        return self.first(momenta) | self.second(momenta)


@dataclass(frozen=True)
class _Not(Cut):
    cut: Cut

    def __call__(self, momenta: Tensor) -> Tensor:
        return ~self.cut(momenta)


@dataclass(frozen=True)
class TransverseMomentumCut(Cut):
    """Each of the particles has a transverse momentum within bounds, in GeV."""

    least: float = 0.0
    most: float = math.inf
    particles: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _in_order(self, self.least, self.most)

    def __call__(self, momenta: Tensor) -> Tensor:
        """Whether events are kept."""
        values = transverse_momentum(_chosen(momenta, self.particles))
        return ((values >= self.least) & (values <= self.most)).all(-1)


@dataclass(frozen=True)
class RapidityCut(Cut):
    """Each of the particles has a rapidity of at most so much in absolute value."""

    most: float
    particles: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _in_order(self, 0.0, self.most)

    def __call__(self, momenta: Tensor) -> Tensor:
        """Whether events are kept."""
        return (rapidity(_chosen(momenta, self.particles)).abs() <= self.most).all(-1)


@dataclass(frozen=True)
class PairMassCut(Cut):
    """Each pair of the particles has an invariant mass within bounds, in GeV."""

    least: float = 0.0
    most: float = math.inf
    particles: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _in_order(self, self.least, self.most)

    def __call__(self, momenta: Tensor) -> Tensor:
        """Whether events are kept."""
        first, second = _pairs(_chosen(momenta, self.particles))
        values = invariant_mass(first + second)
        return ((values >= self.least) & (values <= self.most)).all(-1)


@dataclass(frozen=True)
class PairAngleCut(Cut):
    """Each pair of the particles is at least so far apart, in radians."""

    least: float
    particles: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _in_order(self, 0.0, self.least)

    def __call__(self, momenta: Tensor) -> Tensor:
        """Whether events are kept."""
        return (cos_angle(*_pairs(_chosen(momenta, self.particles))) <= math.cos(self.least)).all(-1)


@dataclass(frozen=True)
class BeamAngleCut(Cut):
    """Each of the particles is at least so far from both beams, in radians."""

    least: float
    particles: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _in_order(self, 0.0, self.least)

    def __call__(self, momenta: Tensor) -> Tensor:
        """Whether events are kept."""
        cosine = 1 - one_minus_cos(_chosen(momenta, self.particles))
        return (cosine.abs() <= math.cos(self.least)).all(-1)


def _in_order(cut: Cut, least: float, most: float) -> None:
    if not 0 <= least <= most:
        raise UsageError(f"{type(cut).__name__}: expected 0 <= least <= most, got {least!r} and {most!r}")


def _chosen(momenta: Tensor, particles: tuple[int, ...] | None) -> Tensor:
    return momenta if particles is None else momenta[..., list(particles), :]


def _pairs(momenta: Tensor) -> tuple[Tensor, Tensor]:
    """Both members of every pair of particles: ``(n, pairs, 4)`` each."""
    places = torch.tensor(list(combinations(range(momenta.shape[-2]), 2)), device=momenta.device)
    return momenta[..., places[:, 0], :], momenta[..., places[:, 1], :]
