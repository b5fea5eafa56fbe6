r"""From prior to posterior in steps: the next temperature, and the resampling between two of them.

The likelihood is raised to a power t, the inverse temperature, that grows from 0 to 1.  The particles at t become
particles at $t' > t$ by weights $L^{t'-t}$; $t'$ is as large as leaves a stated share of them effective (Jasra et al.
2011, Scandinavian Journal of Statistics 38, 1).  The mean weight is the ratio of the evidences at t' and t.
"""

import math

import torch
from torch import Tensor

__all__ = ["next_temperature", "normal_scores", "systematic_rows"]

_MOST_HALVINGS = 1000.0
"""Differences of log-likelihoods reach 1e300 at most."""


def next_temperature(log_likelihood: Tensor, temperature: Tensor, share: float) -> Tensor:
    """The largest temperature up to 1 that leaves a share of the particles effective.

    Args:
        log_likelihood: finite, ``(B, N)``.
        temperature: the present one, ``(B,)``.
        share: Kish's effective sample size over N that is to be left, in (0, 1).

    Returns:
        ``(B,)``; 1 exactly where that leaves more than the share.
    """
    left = 1 - temperature
    relative = log_likelihood - log_likelihood.amax(-1, keepdim=True)

    def good(step: Tensor) -> Tensor:
        weights = torch.exp(step.unsqueeze(-1) * relative)
        return weights.sum(-1) ** 2 >= share * weights.shape[-1] * weights.square().sum(-1)

    # The first steps may be smaller than any fraction of 1 that is worth a name: bisect their logarithm.
    low, high = torch.zeros_like(left), torch.full_like(left, _MOST_HALVINGS)
    all_at_once = good(left)
    for _ in range(50):
        middle = (low + high) / 2
        fine = good(left * torch.exp2(-middle))
        low, high = torch.where(fine, low, middle), torch.where(fine, middle, high)
    return torch.where(all_at_once, 1.0, temperature + left * torch.exp2(-high))


def systematic_rows(log_weights: Tensor, random: torch.Generator, count: int | None = None) -> Tensor:
    """Systematic resampling: rows ``(B, count)``, N if None, by weights ``(B, N)``, in random order."""
    b, n = log_weights.shape
    m = n if count is None else count
    device = log_weights.device
    cumulative = torch.softmax(log_weights, -1).cumsum(-1)
    offset = torch.rand((b, 1), generator=random, device=device, dtype=torch.float64)
    levels = (torch.arange(m, device=device, dtype=torch.float64) + offset) / m * cumulative[:, -1:]
    # To the right of ties, so that no row without weight is chosen; the last level may round to the end.
    rows = torch.searchsorted(cumulative, levels, right=True).clamp(max=n - 1)
    return rows[:, torch.randperm(m, generator=random, device=device)]


def normal_scores(values: Tensor, dim: int) -> Tensor:
    """Replace values along an axis by the normal quantiles of their ranks, float64, without tails or units."""
    ranks = values.argsort(dim).argsort(dim).double()
    return math.sqrt(2) * torch.erfinv((2 * ranks + 1) / values.shape[dim] - 1)
