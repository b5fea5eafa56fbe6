r"""Maps of [0, 1] to an interval whose slope follows a known peak, so that a peaked integrand becomes a flat one.

With a density g that can be integrated, s(u) solves

$$ u = \int_{a}^{s} g(s')\,ds' \Big/ \int_{a}^{b} g(s')\,ds', \qquad
   \frac{ds}{du} = \frac{1}{g(s)} \int_{a}^{b} g(s')\,ds', $$

for squared masses in GeV^2 between thresholds, or for 1 - cos theta between 0 and 2.  The shapes are those of the
propagators of an s-channel resonance, of a massless particle and of a t-channel exchange (Byckling and Kajantie,
Particle Kinematics, 1973, ch. VI).  Slopes are given with the same relative accuracy in both directions.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sbi_physics.core.checks import not_negative
from sbi_physics.core.errors import UsageError

__all__ = ["BreitWigner", "Flat", "Mapping", "PowerLaw"]


@runtime_checkable
class Mapping(Protocol):
    """An increasing map of [0, 1] to [low, high], with its slope; everything is broadcast."""

    def forward(self, u: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The value at u ``(n,)``, and its slope in u ``(n,)``."""

    def inverse(self, value: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The u that a value ``(n,)`` belongs to, and the slope of the value in u there ``(n,)``."""

    def needs_positive_low(self) -> bool:
        """Whether the interval must begin above zero, as the density cannot be integrated from there."""


@dataclass(frozen=True)
class Flat:
    """All values of the interval alike."""

    def forward(self, u: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The value at u ``(n,)``, and its slope."""
        width = high - low
        return _within(low + u * width, low, high), width.expand(u.shape)

    def inverse(self, value: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The u of a value ``(n,)``, and the slope of the value."""
        width = high - low
        return (value - low) / width, width.expand(value.shape)

    def needs_positive_low(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class PowerLaw:
    r"""The density $g(s) = (s + a)^{-\nu}$: of a massless propagator at nu = 1 or 2.

    Args:
        exponent: nu, at least 0.
        offset: a, at least 0, in units of the value; it must be positive where the interval begins at zero and nu is
            1 or more.

    Raises:
        UsageError: one of them is negative or not finite.
    """

    exponent: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        not_negative(self.exponent, "exponent")
        not_negative(self.offset, "offset")

    def forward(self, u: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The value at u ``(n,)``, and its slope."""
        first, last = low + self.offset, high + self.offset
        if self.exponent == 1:
            shifted = first * torch.exp(u * torch.log(last / first))
        else:
            power = 1 - self.exponent
            shifted = (first**power + u * (last**power - first**power)) ** (1 / power)
        value = _within(shifted - self.offset, low, high)
        return value, self._slope(value + self.offset, first, last)

    def inverse(self, value: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The u of a value ``(n,)``, and the slope of the value."""
        shifted, first, last = value + self.offset, low + self.offset, high + self.offset
        if self.exponent == 1:
            u = torch.log(shifted / first) / torch.log(last / first)
        else:
            power = 1 - self.exponent
            u = (shifted**power - first**power) / (last**power - first**power)
        return u, self._slope(shifted, first, last)

    def needs_positive_low(self) -> bool:
        """Where nu is 1 or more and the offset zero."""
        return self.exponent >= 1 and self.offset == 0

    def _slope(self, shifted: Tensor, first: Tensor, last: Tensor) -> Tensor:
        if self.exponent == 1:
            return shifted * torch.log(last / first)
        power = 1 - self.exponent
        return shifted**self.exponent * (last**power - first**power) / power


@dataclass(frozen=True)
class BreitWigner:
    r"""The density $g(s) = 1 / ((s - M^2)^2 + M^2 \Gamma^2)$ of an s-channel resonance.

    Args:
        mass: M, in GeV, positive.
        width: Gamma, in GeV, positive.

    Raises:
        UsageError: one of them is not positive.
    """

    mass: float
    width: float

    def __post_init__(self) -> None:
        for name, value in (("mass", self.mass), ("width", self.width)):
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"BreitWigner: expected a positive {name}, got {value!r}")

    def forward(self, u: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The value at u ``(n,)``, and its slope."""
        first, last = self._angle(low), self._angle(high)
        tangent = torch.tan(first + u * (last - first))
        value = _within(self.mass**2 + self.mass * self.width * tangent, low, high)
        return value, self._slope(value, first, last)

    def inverse(self, value: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The u of a value ``(n,)``, and the slope of the value."""
        first, last = self._angle(low), self._angle(high)
        return (self._angle(value) - first) / (last - first), self._slope(value, first, last)

    def needs_positive_low(self) -> bool:
        """Never."""
        return False

    def _angle(self, value: Tensor) -> Tensor:
        return torch.atan((value - self.mass**2) / (self.mass * self.width))

    def _slope(self, value: Tensor, first: Tensor, last: Tensor) -> Tensor:
        scale = self.mass * self.width
        return ((value - self.mass**2) ** 2 + scale**2) / scale * (last - first)


def _within(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Rounding must not carry a value over a threshold."""
    return torch.minimum(torch.maximum(value, low), high)
