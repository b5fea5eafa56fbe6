r"""How many independent draws are the walks of the particles of a sequential Monte Carlo run worth?

Particles that descend from one ancestor by resampling are a family, until moves have made them forget it.  Families are
independent of one another, so that the variance of a mean over all walks follows from the sums over families alone
(Chan and Lai 2013, arXiv:1312.5114; Lee and Whiteley 2018, arXiv:1509.00394),

$$ \mathrm{var}(\bar f) = \frac{G}{G-1}\, N^{-2} \sum_e \Big( \sum_{i \in e} (\bar f_i - \bar f) \Big)^2 , $$

with $\bar f_i$ the mean over the walk of particle i and G families.  This counts slow walks, walks that never leave
their mode, and copies made by resampling; no autocorrelation function is needed.  The effective sample size is the
variance of f over that.  f is each parameter's normal score, as in the bulk effective sample size of Vehtari et al.
2021 (arXiv:1903.08008).
"""

import torch
from torch import Tensor

from sbi_physics.sampling.tempering import normal_scores

__all__ = ["family_sample_size", "group_r_hat", "scores_of_walks"]

_GROUPS = 4


def scores_of_walks(walks: Tensor) -> Tensor:
    """Normal scores of walks ``(B, K, N, P)`` of N particles and K steps, among all draws of a parameter."""
    b, k, n, p = walks.shape
    return normal_scores(walks.reshape(b, k * n, p), 1).reshape(b, k, n, p)


def family_sample_size(scores: Tensor, families: Tensor) -> Tensor:
    """Effective sample size ``(B, P)`` of scores ``(B, K, N, P)``, given the family ``(B, N)`` of each particle."""
    b, k, n, p = scores.shape
    walks = scores.mean(1)
    walks = walks - walks.mean(1, keepdim=True)
    sums = torch.zeros_like(walks).scatter_add_(1, families.unsqueeze(-1).expand_as(walks), walks)
    count = torch.zeros_like(walks[..., 0]).scatter_add_(1, families, torch.ones_like(walks[..., 0]))
    number = (count > 0).sum(-1, keepdim=True).double()
    variance = sums.square().sum(1) / n**2 * number / (number - 1).clamp(min=1)
    spread = scores.reshape(b, k * n, p).var(1)
    size = (spread / variance.clamp(min=1e-300)).clamp(max=k * n)
    return torch.where(number > 1, size, 1.0)


def group_r_hat(scores: Tensor) -> Tensor:
    """R-hat ``(B, P)`` between four groups of particles, each in the first and the second half of its steps."""
    k, n = scores.shape[1:3]
    width = n // _GROUPS * _GROUPS
    halves = [scores[:, : k // 2], scores[:, k - k // 2 :]] if k > 1 else [scores]
    chains = torch.cat([_groups(half[:, :, :width]) for half in halves], 1)
    length = chains.shape[2]
    within = chains.var(2).mean(1)
    between = chains.mean(2).var(1)
    return torch.sqrt((length - 1) / length + between / within.clamp(min=1e-300))


def _groups(scores: Tensor) -> Tensor:
    """Particles ``(B, K, N, P)``, every fourth to one group: ``(B, 4, K * N / 4, P)``."""
    b, k, n, p = scores.shape
    return scores.reshape(b, k, n // _GROUPS, _GROUPS, p).movedim(3, 1).flatten(2, 3)
