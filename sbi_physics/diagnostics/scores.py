r"""Scores of a classifier on events of two kinds: the curve of its errors, and the area under it.

The curve gives the share of real events above a threshold against that of generated ones; the area under it, with
weights w and v, is $\sum_{ij} w_i v_j [s_i > s_j] / \sum_{ij} w_i v_j$, a tie counting half.  Its error is that of
DeLong et al. 1988 (doi:10.2307/2531595), the classifier as it is.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Scored", "area_under_curve", "operating_curve"]


class Scored(NamedTuple):
    """Scores and weights, float64 ``(n,)`` on the CPU, of events of one kind; the weights have a sum above zero."""

    score: Tensor
    weights: Tensor

    @property
    def equal(self) -> bool:
        """Whether all weights are one."""
        return bool((self.weights == 1).all())

    def mean_of(self, values: Tensor) -> float:
        """The weighted mean of values ``(n,)``."""
        return float((self.weights * values.double()).sum() / self.weights.sum())

    def error_of(self, values: Tensor, mean: float) -> float:
        """Standard deviation of the weighted mean of values ``(n,)`` about their mean."""
        share = self.weights / self.weights.sum()
        return math.sqrt(float((share * (values - mean)).square().sum() / (1 - share.square().sum())))

    def share_below(self, scores: Tensor) -> Tensor:
        """The share of events below each score ``(m,)``, equal ones counting half."""
        order = self.score.argsort()
        ordered, heap = self.score[order], self.weights[order].cumsum(0)
        heap = torch.cat([heap.new_zeros(1), heap])
        left, right = torch.searchsorted(ordered, scores), torch.searchsorted(ordered, scores, right=True)
        return 0.5 * (heap[left] + heap[right]) / heap[-1]


def area_under_curve(real: Scored, generated: Scored) -> tuple[float, float, float]:
    """The area, its error, and the standard deviation that it has for equal distributions."""
    above, below = generated.share_below(real.score), 1 - real.share_below(generated.score)
    area, n, m = real.mean_of(above), len(real.score), len(generated.score)
    error = math.hypot(real.error_of(above, area), generated.error_of(below, area))
    # Where the scores do not overlap there is no spread: then what one more event could change.
    error = max(error, 0.5 / (min(n, m) + 2) if area in (0.0, 1.0) else 0.0)
    if real.equal and generated.equal:
        return area, error, math.sqrt((n + m + 1) / (12 * n * m))
    return area, error, math.hypot(real.error_of(above, 0.5), generated.error_of(below, 0.5))


def operating_curve(real: Scored, generated: Scored, points: int = 200) -> tuple[Tensor, Tensor]:
    """Shares of generated and of real events above a falling threshold, ``(points + 2,)`` each, from 0 to 1."""
    both = torch.cat([real.score, generated.score]).sort(descending=True).values
    at = both[torch.linspace(0, len(both) - 1, min(points, len(both))).long()]
    found = [1 - one.share_below(at) for one in (generated, real)]
    ends = [torch.cat([rate.new_zeros(1), rate, rate.new_ones(1)]) for rate in found]
    return ends[0], ends[1]
