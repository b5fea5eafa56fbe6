r"""The Fréchet and the kernel physics distance between features of real and generated events.

Both are those of Kansal et al. 2022 (arXiv:2211.10295; the package JetNet, and the CaloChallenge, arXiv:2410.21611):

* FPD, the squared Fréchet distance of Gaussian fits,
  $|\mu_1 - \mu_2|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})$, extrapolated to infinitely many
  events by a linear fit in 1/N, which takes out its bias of order 1/N;
* KPD, the unbiased squared maximum mean discrepancy with the kernel $(x \cdot y / D + 1)^4$, the median over batches.

Here the smaller samples are disjoint parts of the events rather than draws with replacement, since such draws carry the
bias of the pool that they are drawn from; and the extrapolated value is not forced to be positive, so that for equal
distributions it is zero on average.  Features are scaled by the standard deviation of the real ones;
``scaling="maximum"`` divides by their largest absolute value instead, as JetNet does, for numbers to be compared.

Weights, negative ones among them, go into all means; 1/N is then the sum of the squared weights over their squared sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.events import checked_events, checked_weights, shuffled, standardise
from sbi_physics.diagnostics.uniformity import checked_level

__all__ = ["FrechetPhysicsDistance", "KernelPhysicsDistance", "frechet_physics_distance", "kernel_physics_distance"]

Scaling = Literal["deviation", "maximum"]

# Divisible by all numbers of parts.
_BLOCKS = 24
_PARTS = (1, 2, 3, 4)
_NUMBERS_AT_ONCE = 1 << 22
_THREE_SIGMA = 0.0013498980316300933


@dataclass(frozen=True)
class FrechetPhysicsDistance:
    """The Fréchet physics distance; smaller is better, zero is expected for equal distributions.

    Attributes:
        value: extrapolated to infinitely many events; by chance it may be below zero.
        error: its standard deviation, by a jackknife over blocks of events.
        sizes: mean number of events in the parts that the fit uses, ``(4,)``.
        at_sizes: the distance between parts of that size, on average, ``(4,)``; it falls towards `value`.
        level: the probability that equal distributions flunk.
    """

    value: float
    error: float
    sizes: Tensor
    at_sizes: Tensor
    level: float

    @property
    def p_value(self) -> float:
        """That the distance for equal distributions is as large, where chance is normal."""
        sigmas = self.value / self.error if self.error > 0 else math.copysign(math.inf, self.value - 1e-12)
        return 0.5 * math.erfc(sigmas / math.sqrt(2))

    @property
    def passed(self) -> bool:
        """Whether it is no further above zero than chance makes it."""
        return self.p_value > self.level

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        said = "no difference in means and covariances" if self.passed else "means or covariances differ"
        return f"{said}: Fréchet physics distance {self.value:.3g} ± {self.error:.2g}, zero is expected"


@dataclass(frozen=True)
class KernelPhysicsDistance:
    """The kernel physics distance; smaller is better.

    Attributes:
        value: the median over batches; by chance it may be below zero.
        error: its standard deviation, from the spread of the batches.
        batches: the value of each batch, ``(B,)``.
        null: the median over batches after random exchanges of real and generated events, ``(K,)``.
        p_value: that equal distributions are as far apart, from `null`.
        level: the probability that equal distributions flunk.
    """

    value: float
    error: float
    batches: Tensor
    null: Tensor
    p_value: float
    level: float

    @property
    def passed(self) -> bool:
        """Whether the distance is no larger than chance makes it."""
        return self.p_value > self.level

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        said = "no difference up to fourth moments" if self.passed else "the distributions differ"
        return (
            f"{said}: kernel physics distance {self.value:.3g} ± {self.error:.2g}, by chance "
            f"{float(self.null.mean()):.2g} ± {float(self.null.std()):.2g} (p-value {self.p_value:.2g})"
        )


def frechet_physics_distance(
    real: Any,
    generated: Any,
    *,
    weights: Any = None,
    generated_weights: Any = None,
    scaling: Scaling = "deviation",
    level: float = _THREE_SIGMA,
    seed: int = 0,
) -> FrechetPhysicsDistance:
    """Fréchet physics distance between features of real and generated events.

    It takes about 200 eigenvalue problems of size D, so high-level features are meant, not thousands of pixels.

    Args:
        real: ``(n, D)``; at least 8 D, and the more the better the extrapolation.
        generated: ``(m, D)``.
        weights: of the real events ``(n,)``, ones where None; negative ones may be among them.
        generated_weights: likewise ``(m,)``.
        scaling: ``"deviation"`` or ``"maximum"`` of the real features.
        level: the probability that equal distributions flunk; three standard deviations by default.
        seed: of the order in which events fall into parts.

    Raises:
        ShapeError: the shapes do not fit, or there are too few events for D features.
        NonFiniteError: a number is NaN or infinite.
        SupportError: the weights of a set, or of a part of it, have no sum above zero.
        UsageError: an argument is out of range.
    """
    sets = _scaled(real, generated, scaling, (weights, generated_weights))
    (first, _), (second, _) = sets
    checked_level(level)
    fewest = max(2 * _BLOCKS, 8 * first.shape[1])
    if min(len(first), len(second)) < fewest:
        raise ShapeError(
            f"expected at least {fewest} real and generated events for {first.shape[1]} features, got {len(first)} and "
            f"{len(second)}"
        )
    blocks = [
        _moments(*(shuffled(part, derive(seed, word)).tensor_split(_BLOCKS) for part in one))
        for one, word in zip(sets, ("real", "generated"), strict=True)
    ]
    chosen, place = _choices()
    inverse, distance = _parts(blocks, chosen)
    inverse, distance = _averages(inverse[place]), _averages(distance[place])
    values = _intercept(inverse, distance)
    variance = sum((_BLOCKS - 1) * float(left.var(correction=0)) for left in values[1:].split(_BLOCKS))
    return FrechetPhysicsDistance(float(values[0]), math.sqrt(variance), 1 / inverse[0], distance[0], level)


def kernel_physics_distance(
    real: Any,
    generated: Any,
    *,
    weights: Any = None,
    generated_weights: Any = None,
    batches: int = 10,
    batch_size: int | None = None,
    scaling: Scaling = "deviation",
    exchanges: int = 199,
    level: float = 0.01,
    seed: int = 0,
) -> KernelPhysicsDistance:
    """Kernel physics distance between features of real and generated events.

    Args:
        real: ``(n, D)``.
        generated: ``(m, D)``.
        weights: of the real events ``(n,)``, ones where None; negative ones may be among them.
        generated_weights: likewise ``(m,)``.
        batches: how many batches, at least three; no event is in two of them.
        batch_size: real and as many generated events in each; by default 5000, or as many as there are.
        scaling: ``"deviation"`` or ``"maximum"`` of the real features.
        exchanges: how often real and generated events are exchanged at random, for the p-value.
        level: the probability that equal distributions flunk.
        seed: of the order of the events and of the exchanges.

    Raises:
        ShapeError: the shapes do not fit, or there are too few events for the batches.
        NonFiniteError: a number is NaN or infinite.
        SupportError: the weights of a set, or of a batch of it, have no sum above zero.
        UsageError: an argument is out of range.
    """
    sets = _scaled(real, generated, scaling, (weights, generated_weights))
    (first, _), (second, _) = sets
    checked_level(level)
    exchanges, count = positive_integer(exchanges, "exchanges"), positive_integer(batches, "batches")
    if (1 + exchanges) * level < 1:
        raise UsageError(f"exchanges: expected at least {1 / level - 1:.0f} for level {level:g}, got {exchanges}")
    there = min(len(first), len(second)) // count
    size = min(there, 5000) if batch_size is None else positive_integer(batch_size, "batch_size")
    if count < 3 or not 4 <= size <= there:
        raise ShapeError(
            f"expected at least three batches of four events, got {count} of {size} from {len(first)} real and "
            f"{len(second)} generated events"
        )
    (first, w), (second, v) = (
        tuple(shuffled(part, derive(seed, word)) for part in one)
        for one, word in zip(sets, ("real", "generated"), strict=True)
    )
    found = []
    for b in range(count):
        some = slice(b * size, (b + 1) * size)
        events, both = torch.cat([first[some], second[some]]), torch.cat([w[some], v[some]])
        if not (float(w[some].sum()) > 0 and float(v[some].sum()) > 0):
            raise SupportError(f"weights: expected a sum above zero in each of {count} batches; take fewer batches")
        found.append(_discrepancies(events, both, exchanges, derive(seed, "exchanges", b)))
    values = torch.stack(found)
    medians = values.quantile(0.5, dim=0)
    # The median of a normal sample is less certain than its mean by this factor.
    error = math.sqrt(math.pi / 2) * float(values[:, 0].std()) / math.sqrt(count)
    p_value = (1 + int((medians[1:] >= medians[0]).sum())) / (1 + exchanges)
    return KernelPhysicsDistance(float(medians[0]), error, values[:, 0], medians[1:], p_value, level)


def _scaled(
    real: Any, generated: Any, scaling: str, weights: tuple[Any, Any]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Scaled events ``(n, D)`` and weights ``(n,)`` of both kinds."""
    known_keys([scaling], ["deviation", "maximum"], "scaling")
    first, second = (events.cpu() for events in checked_events(real, generated))
    w, v = checked_weights(weights[0], len(first)), checked_weights(weights[1], len(second), "generated_weights")
    if scaling == "deviation":
        first, second = standardise(first, second, weights=None if weights[0] is None else w)
        return (first, w), (second, v)
    largest = first.abs().amax(0)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    return (first / largest, w), (second / largest, v)


class _Moments(NamedTuple):
    """Sums in 24 blocks of events: of weights and their squares ``(24,)``, of events ``(24, D)`` and of products."""

    weight: Tensor
    square: Tensor
    events: Tensor
    products: Tensor


def _moments(blocks: Sequence[Tensor], weights: Sequence[Tensor]) -> _Moments:
    pairs = list(zip(weights, blocks, strict=True))
    return _Moments(
        torch.stack([w.sum() for w in weights]),
        torch.stack([w.square().sum() for w in weights]),
        torch.stack([w @ events for w, events in pairs]),
        torch.stack([events.T @ (w.unsqueeze(1) * events) for w, events in pairs]),
    )


def _choices() -> tuple[Tensor, Tensor]:
    """Which blocks of real and generated events make up a part ``(J, 2, 24)``, and the parts of each fit ``(49, 10)``.

    The first fit has all events, the others leave out one block of real or of generated ones.
    """
    whole = torch.zeros(sum(_PARTS), 2, _BLOCKS, dtype=torch.float64)
    cuts = [(i * _BLOCKS // parts, (i + 1) * _BLOCKS // parts) for parts in _PARTS for i in range(parts)]
    for row, (start, stop) in enumerate(cuts):
        whole[row, :, start:stop] = 1.0
    chosen, place = list(whole), [list(range(len(whole)))]
    for side in (0, 1):
        for block in range(_BLOCKS):
            place.append(list(place[0]))
            for row in whole[:, side, block].nonzero()[:, 0].tolist():
                place[-1][row] = len(chosen)
                chosen.append(whole[row].clone())
                chosen[-1][side, block] = 0.0
    return torch.stack(chosen), torch.tensor(place)


def _parts(blocks: Sequence[_Moments], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of 1/N, and the distance, between real and generated events of each part ``(J,)``."""
    size = max(1, _NUMBERS_AT_ONCE // blocks[0].products[0].numel())
    found = []
    for some in chosen.split(size):
        (n, *real), (m, *generated) = (_gaussians(blocks[side], some[:, side]) for side in (0, 1))
        found.append(torch.stack([0.5 * (n + m), _frechet(*real, *generated)]))
    inverse, distance = torch.cat(found, 1)
    return inverse, distance


def _gaussians(blocks: _Moments, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1/N ``(J,)``, means ``(J, D)`` and covariances ``(J, D, D)`` of chosen blocks ``(J, 24)``."""
    weight = chosen @ blocks.weight
    if not bool((weight > 0).all()):
        raise SupportError("weights: expected a sum above zero in each part of the events; there are too few of them")
    inverse = chosen @ blocks.square / weight.square()
    mean = chosen @ blocks.events / weight.unsqueeze(1)
    products = torch.einsum("jb,bpq->jpq", chosen, blocks.products) / weight[:, None, None]
    covariance = products - mean.unsqueeze(1) * mean.unsqueeze(2)
    return inverse, mean, covariance / (1 - inverse)[:, None, None]


def _frechet(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    """Squared Fréchet distances ``(J,)`` of pairs of Gaussians, from symmetric products only."""
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0.0).sqrt().unsqueeze(-2)) @ vectors.mT
    product = root @ other_covariance @ root
    overlap = torch.linalg.eigvalsh(0.5 * (product + product.mT)).clamp(min=0.0).sqrt().sum(-1)
    traces = (covariance + other_covariance).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (mean - other_mean).square().sum(-1) + traces - 2 * overlap


def _averages(parts: Tensor) -> Tensor:
    """Means ``(K, 4)`` over the parts ``(K, 10)`` into which all events are cut, for each number of parts."""
    return torch.stack([some.mean(1) for some in parts.split(list(_PARTS), 1)], 1)


def _intercept(inverse: Tensor, distance: Tensor) -> Tensor:
    """Where straight lines through K sets of averages ``(K, 4)`` are at 1/N = 0: ``(K,)``."""
    centred = inverse - inverse.mean(1, keepdim=True)
    slope = (centred * distance).sum(1) / centred.square().sum(1)
    return distance.mean(1) - slope * inverse.mean(1)


def _discrepancies(events: Tensor, weights: Tensor, exchanges: int, seed: int) -> Tensor:
    """Unbiased squared discrepancy of the two halves of ``(2n, D)``, then of random exchanges of them: ``(1 + K,)``."""
    n = len(events) // 2
    generator = torch.Generator().manual_seed(seed)
    real = torch.zeros(2 * n, 1 + exchanges, dtype=torch.float64)
    real[:n, 0] = 1.0
    for k in range(1, 1 + exchanges):
        real[:, k] = real[torch.randperm(2 * n, generator=generator), 0]
    real *= weights.unsqueeze(1)
    alike, other, crossed = torch.zeros(3, 1 + exchanges, dtype=torch.float64).unbind()
    rows = max(1, _NUMBERS_AT_ONCE // (2 * n))
    for start in range(0, 2 * n, rows):
        some = slice(start, start + rows)
        kernel = (events[some] @ events.T / events.shape[1] + 1).square().square()
        # Towards all events, real ones, and so generated ones.
        first, second = kernel @ real, (kernel @ weights).unsqueeze(1)
        left, right = real[some], weights[some].unsqueeze(1) - real[some]
        alike += (left * first).sum(0)
        other += (right * (second - first)).sum(0)
        crossed += (right * first).sum(0)
        alike -= kernel.diagonal(start) @ left.square()
        other -= kernel.diagonal(start) @ right.square()
    sums, squares = real.sum(0), real.square().sum(0)
    rest, rest_squares = weights.sum() - sums, weights.square().sum() - squares
    return alike / (sums.square() - squares) + other / (rest.square() - rest_squares) - 2 * crossed / (sums * rest)
