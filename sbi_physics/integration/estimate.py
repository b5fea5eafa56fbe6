r"""What iterations of an integration say together.

Iteration k gives $I_k \pm \sigma_k$ from independent repetitions of a net of points.  Weighting them by
$1/\sigma_k^2$ is biased: where weights have tails, an iteration that is too low also believes itself too precise.
The variance of the iteration before, though known in time, is no better: what has come out high is then followed by
less.  Here an iteration is weighted by a power of its number of points alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Combination", "Iteration", "combine", "iteration_of"]


@dataclass(frozen=True)
class Iteration:
    """One iteration: its value, error, number of calls, weight in the combination, and repetitions."""

    value: float
    error: float
    calls: int
    weight: float
    repetitions: int

    @property
    def variance_per_call(self) -> float:
        """Variance of the value, times calls."""
        return self.error**2 * self.calls


@dataclass(frozen=True)
class Combination:
    """What several iterations give: value, error, chi2 of their differences, and its degrees of freedom."""

    value: float
    error: float
    chi2: float
    degrees: int


def iteration_of(terms: Tensor, repetition: Tensor, calls: int, weight: float) -> Iteration:
    """An iteration from the terms ``(n,)`` of the sums of its repetitions ``(n,)``."""
    count = int(repetition.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, repetition, terms)
    return Iteration(float(sums.mean()), float(sums.std()) / math.sqrt(count), calls, weight, count)


def combine(iterations: list[Iteration]) -> Combination:
    """The mean of iterations by their weights, with its error."""
    used = [each for each in iterations if each.weight > 0] or iterations[-1:]
    weights = [each.weight or 1.0 for each in used]
    total = sum(weights)
    value = sum(w * each.value for w, each in zip(weights, used, strict=True)) / total
    error = math.sqrt(sum((w * each.error) ** 2 for w, each in zip(weights, used, strict=True))) / total
    return Combination(value, error, _chi2([each for each in used if each.error > 0]), len(used) - 1)


def _chi2(iterations: list[Iteration]) -> float:
    """Of the iterations about the mean that has the least chi2."""
    if len(iterations) < 2:
        return 0.0
    weights = [each.error**-2 for each in iterations]
    mean = sum(w * each.value for w, each in zip(weights, iterations, strict=True)) / sum(weights)
    return sum(w * (each.value - mean) ** 2 for w, each in zip(weights, iterations, strict=True))
