r"""Unweighted events: points of a proposal q, kept with probability $w / w_\mathrm{max}$ for $w = |f|/q$.

The largest weight of a sample grows with the sample, and one event would decide how many of the others are kept.  So
$w_\mathrm{max}$ is not the maximum:

=============  ========================================================================================================
``quantile``   events above it make up a stated share of the integral (as event generators do; arXiv:2109.11964)
``bootstrap``  the median, over many resampled sets of as many events as are wanted, of the largest weight of a set
               (Gao et al. 2020, arXiv:2001.10028)
=============  ========================================================================================================

An event above it is kept with its weight $w / w_\mathrm{max} > 1$, so that nothing is biased; such events are counted.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive

__all__ = ["EventSample", "MaximumWeight", "accept", "maximum_weight"]

MaximumWeight = Literal["quantile", "bootstrap"]

_SETS = 50


@dataclass(frozen=True)
class EventSample:
    """Events that follow an integrand.

    Attributes:
        points: of the unit cube, ``(n, D)`` float64.
        weights: ``(n,)``: of weighted events f/q, whose mean is the integral; of unweighted ones 1, or more where the
            weight was above the largest one; with the sign of the integrand.
        efficiency: share of the points drawn that were kept; 1 for weighted events.
        overweight: how many events have a weight above 1 in size; 0 for weighted events.
        overweight_share: what they have above 1, as a share of all weight.
        largest_weight: the weight with which points were compared; NaN for weighted events.
        calls: evaluations of the integrand that the events took.
    """

    points: Tensor
    weights: Tensor
    efficiency: float
    overweight: int
    overweight_share: float
    largest_weight: float
    calls: int

    def __len__(self) -> int:
        return len(self.points)

    @property
    def effective_sample_size(self) -> float:
        """Kish's effective number of events."""
        return float(self.weights.abs().sum()) ** 2 / float(self.weights.square().sum())


def maximum_weight(
    weights: Tensor,
    *,
    strategy: MaximumWeight = "quantile",
    share: float = 1e-3,
    events: int | None = None,
    probability: Tensor | None = None,
    seed: int = 0,
) -> float:
    """The weight that counts as the largest.

    Args:
        weights: sizes of the weights of points of the proposal, ``(m,)``, some of them positive.
        strategy: see the module.
        share: what weights above it may have beyond it, as a share of the sum of all, for ``quantile``.
        events: size of the sets, for ``bootstrap``; None takes as many as there are weights.
        probability: of the points, where they are not equally probable, ``(m,)``.
        seed: of the sets.

    Raises:
        UsageError: the strategy is unknown, `share` is not in (0, 1), or no weight is positive.
    """
    if strategy not in ("quantile", "bootstrap"):
        raise UsageError(f"strategy: expected 'quantile' or 'bootstrap', got {strategy!r}")
    if not 0 < share < 1:
        raise UsageError(f"share: expected a number between 0 and 1, got {share!r}")
    if not bool((weights > 0).any()):
        raise UsageError("maximum_weight: expected some positive weights, got none")
    chance = torch.ones_like(weights) if probability is None else probability
    chance = chance / chance.sum()
    if strategy == "quantile":
        return _excess_quantile(weights, chance, share)
    random = torch.Generator().manual_seed(derive(seed, "maxima"))
    size = len(weights) if events is None else events
    maxima = [
        weights[torch.multinomial(chance, min(size, 1 << 22), replacement=True, generator=random)].max()
        for _ in range(_SETS)
    ]
    return float(torch.stack(maxima).median())


def _excess_quantile(weights: Tensor, chance: Tensor, share: float) -> float:
    """The w for which the mean of max(weight - w, 0) is a share of the mean weight."""
    falling, order = weights.sort(descending=True)
    chance = chance[order]
    above = chance.cumsum(0)
    # Mean excess over each of the weights in turn; linear between two of them.
    excess = (chance * falling).cumsum(0) - above * falling
    allowed = share * (chance * falling).sum()
    last = int((excess <= allowed).nonzero()[-1])
    return float(falling[last] - (allowed - excess[last]) / above[last])


def accept(points: Tensor, weights: Tensor, largest: float, seed: int) -> tuple[Tensor, Tensor]:
    """Keep points ``(m, D)`` of weights ``(m,)`` with probability ``|w| / largest``.

    Returns:
        The kept points ``(k, D)`` and their weights ``(k,)``: the sign of w, times ``|w| / largest`` where that is
        above one.
    """
    random = torch.Generator().manual_seed(derive(seed, "accept"))
    ratio = weights.abs() / largest
    kept = torch.rand(len(weights), generator=random, dtype=torch.float64) < ratio
    return points[kept], weights[kept].sign() * ratio[kept].clamp(min=1.0)
