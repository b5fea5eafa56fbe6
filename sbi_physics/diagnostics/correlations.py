r"""Do generated observables depend on each other as real ones do?

Pearson's correlation r of two standardised observables has, whatever their distribution, the standard deviation of
$z_1 z_2 - r (z_1^2 + z_2^2) / 2$ over $\sqrt{n}$; for Gaussian ones that is $(1 - r^2) / \sqrt{n}$.  It needs enough
events that the fourth moments are known: an observable that is nearly always zero has no reliable error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError
from sbi_physics.diagnostics.events import checked_events, observable_names, standardise
from sbi_physics.diagnostics.uniformity import checked_level

__all__ = ["CorrelationDifference", "correlation_difference"]

_FEWEST = 20


@dataclass(frozen=True)
class CorrelationDifference:
    """Correlations of D observables, generated less real.

    Attributes:
        names: D names.
        real: correlations of real events, ``(D, D)``; zero with an observable that never varies.
        generated: those of generated events, ``(D, D)``.
        error: standard deviation of the difference, ``(D, D)``.
        level: the probability that equal distributions flunk, over all pairs together.
    """

    names: tuple[str, ...]
    real: Tensor
    generated: Tensor
    error: Tensor
    level: float

    @property
    def difference(self) -> Tensor:
        """Generated less real correlations, ``(D, D)``."""
        return self.generated - self.real

    @property
    def largest(self) -> float:
        """The largest absolute difference, of which some is chance."""
        return float(self._score.max())

    @property
    def largest_error(self) -> float:
        """Standard deviation of the difference that is largest."""
        return float(self.error.reshape(-1)[self._score.argmax()])

    @property
    def p_values(self) -> Tensor:
        """That equal distributions differ as much, ``(D, D)``; one on the diagonal."""
        sigmas = _sigmas(self.difference, self.error)
        return torch.special.erfc(sigmas / math.sqrt(2))

    @property
    def passed(self) -> bool:
        """Whether no correlation differs significantly."""
        return bool((self.p_values > self.level / self._pairs).all())

    @property
    def verdict(self) -> str:
        """One plain sentence that names the pair that differs most."""
        wrong = self.p_values <= self.level / self._pairs
        score = torch.where(wrong, self._score, -1.0) if bool(wrong.any()) else self._score
        i, j = divmod(int(score.argmax()), len(self.names))
        found = (
            f"{self.names[i]} and {self.names[j]}, {float(self.generated[i, j]):.3f} where real events have "
            f"{float(self.real[i, j]):.3f} ± {float(self.error[i, j]):.1g}"
        )
        if self.passed:
            return f"correlations agree: the largest difference is that of {found}"
        return f"{int(wrong.sum()) // 2} of {self._pairs} correlations differ, most {found}"

    @property
    def _score(self) -> Tensor:
        """Absolute differences above the diagonal, zero elsewhere, so that each pair is there once."""
        return self.difference.abs().triu(1)

    @property
    def _pairs(self) -> int:
        return len(self.names) * (len(self.names) - 1) // 2


def correlation_difference(
    real: Any, generated: Any, *, names: Sequence[str] | None = None, level: float = 0.01
) -> CorrelationDifference:
    """Differences between the correlations of generated and of real observables.

    Args:
        real: ``(n, *event)``, D numbers each, D of at least two.
        generated: ``(m, *event)``.
        names: D names of the observables.
        level: the probability that equal distributions flunk.

    Raises:
        ShapeError: the shapes do not fit, or there are fewer than 20 events.
        NonFiniteError: a number is NaN or infinite.
        UsageError: an argument is out of range.
    """
    first, second = checked_events(real, generated, minimum=_FEWEST)
    if first.shape[1] < 2:
        raise ShapeError("expected at least two observables, got one")
    labels = observable_names(names, first.shape[1])
    (r, variance), (s, other) = _correlations(first.cpu()), _correlations(second.cpu())
    return CorrelationDifference(labels, r, s, (variance + other).sqrt(), checked_level(level))


def _correlations(events: Tensor) -> tuple[Tensor, Tensor]:
    """Correlations ``(D, D)`` and their variances."""
    n = len(events)
    z = standardise(events)[0] * math.sqrt(n / (n - 1))
    r = z.T @ z / n
    square = z.square()
    both, cube, fourth = square.T @ square / n, (square * z).T @ z / n, square.square().mean(0)
    spread = both - r * (cube + cube.T) + 0.25 * r.square() * (fourth + fourth.unsqueeze(1) + 2 * both)
    apart = 1 - torch.eye(len(r), dtype=r.dtype)
    # By Cauchy and Schwarz this is at least zero, up to rounding.
    return r * apart + torch.eye(len(r), dtype=r.dtype), spread.clamp(min=0.0) / n * apart


def _sigmas(difference: Tensor, error: Tensor) -> Tensor:
    rounding = 1e-9
    far = torch.where(difference.abs() > rounding, math.inf, 0.0).to(error)
    return torch.where(error > 0, difference.abs() / error.clamp(min=1e-300), far)
