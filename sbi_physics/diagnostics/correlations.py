r"""Do generated observables depend on each other as real ones do?

Pearson's correlation r of two standardised observables has, whatever their distribution, the standard deviation of
$z_1 z_2 - r (z_1^2 + z_2^2) / 2$ over $\sqrt{n}$; for Gaussian ones that is $(1 - r^2) / \sqrt{n}$.  It needs enough
events that the fourth moments are known: an observable that is nearly always zero has no reliable error.  Where that is
in doubt, the largest difference of all pairs, in errors of both sets together, is compared with those after random
exchanges of real and generated events; that needs no moments, and allows for the many pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.events import checked_events, checked_weights, observable_names, standardise
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
        sigmas: the largest difference in its error, that of both sets together.
        null: the same after random exchanges of real and generated events, ``(K,)``; empty where none were made.
    """

    names: tuple[str, ...]
    real: Tensor
    generated: Tensor
    error: Tensor
    level: float
    sigmas: float
    null: Tensor

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
    def p_value(self) -> float:
        """That equal distributions differ as much in any pair: from `null`, or from `p_values` where it is empty."""
        if len(self.null):
            return (1 + int((self.null >= self.sigmas).sum())) / (1 + len(self.null))
        return min(1.0, float(self.p_values.min()) * self._pairs)

    @property
    def passed(self) -> bool:
        """Whether no correlation differs significantly."""
        return self.p_value > self.level

    @property
    def verdict(self) -> str:
        """One plain sentence that names the pair that differs most."""
        first, second, generated, real, error = self.worst
        found = f"{first} and {second}, {generated:.3f} where real events have {real:.3f} ± {error:.1g}"
        if self.passed:
            return f"correlations agree: the largest difference is that of {found}"
        return f"{max(1, int(self._wrong.sum()) // 2)} of {self._pairs} correlations differ, most {found}"

    @property
    def worst(self) -> tuple[str, str, float, float, float]:
        """The pair that differs most: names, generated and real correlation, and the error of their difference.

        Where some differ significantly it is the largest of those differences.
        """
        if self.passed:
            score = self._score
        else:
            score = torch.where(self._wrong if bool(self._wrong.any()) else self._least_likely, self._score, -1.0)
        i, j = divmod(int(score.argmax()), len(self.names))
        return (
            self.names[i],
            self.names[j],
            float(self.generated[i, j]),
            float(self.real[i, j]),
            float(self.error[i, j]),
        )

    @property
    def _wrong(self) -> Tensor:
        return self.p_values <= self.level / self._pairs

    @property
    def _least_likely(self) -> Tensor:
        return self.p_values == self.p_values.min()

    @property
    def _score(self) -> Tensor:
        """Absolute differences above the diagonal, zero elsewhere, so that each pair is there once."""
        return self.difference.abs().triu(1)

    @property
    def _pairs(self) -> int:
        return len(self.names) * (len(self.names) - 1) // 2


def correlation_difference(
    real: Any,
    generated: Any,
    *,
    names: Sequence[str] | None = None,
    weights: Any = None,
    generated_weights: Any = None,
    exchanges: int = 0,
    level: float = 0.01,
    seed: int = 0,
) -> CorrelationDifference:
    """Differences between the correlations of generated and of real observables.

    Args:
        real: ``(n, *event)``, D numbers each, D of at least two.
        generated: ``(m, *event)``.
        names: D names of the observables.
        weights: of the real events ``(n,)``, ones where None; negative ones may be among them.
        generated_weights: likewise ``(m,)``.
        exchanges: how often real and generated events are exchanged at random; zero takes the errors to be normal.
        level: the probability that equal distributions flunk.
        seed: of the exchanges.

    Raises:
        ShapeError: the shapes do not fit, or there are fewer than 20 events.
        NonFiniteError: a number is NaN or infinite.
        SupportError: the weights of a set have no sum above zero.
        UsageError: an argument is out of range, or there are too few exchanges for the level.
    """
    first, second = (events.cpu() for events in checked_events(real, generated, minimum=_FEWEST))
    if first.shape[1] < 2:
        raise ShapeError("expected at least two observables, got one")
    checked_level(level)
    if not (isinstance(exchanges, int) and (exchanges == 0 or (1 + exchanges) * level >= 1)):
        raise UsageError(
            f"exchanges: expected 0 or at least {1 / level - 1:.0f} for level {level:g}, got {exchanges!r}"
        )
    labels = observable_names(names, first.shape[1])
    w = checked_weights(weights, len(first)), checked_weights(generated_weights, len(second), "generated_weights")
    (r, variance), (s, other) = (_correlations(*one) for one in zip((first, second), w, strict=True))
    found = _largest_differences(torch.cat([first, second]), torch.cat(w), len(first), exchanges, seed)
    return CorrelationDifference(
        labels, r, s, (variance + other).sqrt(), level, float(found[0]), torch.as_tensor(found[1:])
    )


def _correlations(events: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Correlations ``(D, D)`` and their variances."""
    share = (weights / weights.sum()).unsqueeze(1)
    z = _standard(events, weights)
    r = z.T @ (share * z)
    square, part = z.square(), share.square()
    both, cube, fourth = square.T @ (part * square), (square * z).T @ (part * z), (part * square.square()).sum(0)
    spread = both - r * (cube + cube.T) + 0.25 * r.square() * (fourth + fourth.unsqueeze(1) + 2 * both)
    apart = 1 - torch.eye(len(r), dtype=r.dtype)
    # By Cauchy and Schwarz this is at least zero, up to rounding.
    return r * apart + torch.eye(len(r), dtype=r.dtype), spread.clamp(min=0.0) * apart


def _standard(events: Tensor, weights: Tensor) -> Tensor:
    """Events whose weighted mean is zero, and whose weighted mean square is one, or all are zero."""
    z = standardise(events, weights=weights)[0]
    # Of a number that never varies rounding may leave something.
    return torch.where((events != events[0]).any(0), z, 0.0)


def _largest_differences(events: Tensor, weights: Tensor, n: int, exchanges: int, seed: int) -> list[float]:
    """The largest difference of correlations of the first n events and the others, then after each exchange."""
    variance = _correlations(events, weights)[1]
    # The error of both sets is that of all events, but for their numbers: that of one, by which all are divided.
    sizes = (
        weights[:n].square().sum() / weights[:n].sum().square(),
        weights[n:].square().sum() / weights[n:].sum().square(),
    )
    whole = weights.square().sum() / weights.sum().square()
    error = (variance / whole * (sizes[0] + sizes[1])).sqrt()
    z = _standard(events, weights)
    generator = torch.Generator().manual_seed(derive(seed, "exchanges"))
    totals, found = _sums(z, weights), []
    for k in range(1 + exchanges):
        chosen = torch.randperm(len(z), generator=generator)[:n] if k else torch.arange(n)
        sums = _sums(z[chosen], weights[chosen])
        r, s = (_correlation(*one) for one in (sums, tuple(a - b for a, b in zip(totals, sums, strict=True))))
        found.append(float(_sigmas(r - s, error).max()))
    return found


def _sums(z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return weights.sum(), weights @ z, z.T @ (weights.unsqueeze(1) * z)


def _correlation(weight: Tensor, sums: Tensor, products: Tensor) -> Tensor:
    """Correlations ``(D, D)`` from sums; zero with an observable that does not vary."""
    mean = sums / weight
    covariance = products / weight - mean.unsqueeze(1) * mean
    deviation = covariance.diagonal().clamp(min=0.0).sqrt()
    varies = deviation > 1e-9
    scale = torch.where(varies, 1 / deviation.clamp(min=1e-9), 0.0)
    r = covariance * scale.unsqueeze(1) * scale
    return r * (1 - torch.eye(len(r), dtype=r.dtype))


def _sigmas(difference: Tensor, error: Tensor) -> Tensor:
    rounding = 1e-9
    far = torch.where(difference.abs() > rounding, math.inf, 0.0).to(error)
    return torch.where(error > 0, difference.abs() / error.clamp(min=1e-300), far)
