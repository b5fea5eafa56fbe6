r"""What a Hamiltonian sampler learns in its warm-up: a step size and a mass matrix, for each of B densities.

The step size follows the dual averaging of Hoffman and Gelman 2014 (arXiv:1111.4246, section 3.2): with $\alpha$ the
acceptance, averaged over chains, the iterations

$$ \ln\epsilon_{t+1} = \mu - \frac{\sqrt t}{\gamma\,(t+t_0)} \sum_{i\le t} (\delta - \alpha_i), $$

and their running average bring $\alpha$ to $\delta$.  The mass matrix is the inverse covariance, or the inverse
variances, of the draws of all chains in windows of doubling length.
"""

import math

import torch
from torch import Tensor

from sbi_physics.sampling.hamiltonian import Chains, Density, transition

__all__ = ["DualAveraging", "mass_factor", "starting_step_size", "windows"]

_GAMMA, _T_0, _KAPPA = 0.05, 10.0, 0.75
_MOST_DOUBLINGS = 60


class DualAveraging:
    """Step sizes ``(B,)`` on their way to an acceptance.

    Args:
        step_size: where to begin.
        acceptance: what to aim at.
    """

    def __init__(self, step_size: Tensor, acceptance: float) -> None:
        self._centre = torch.log(10 * step_size)
        self._target, self._sum, self._count = acceptance, torch.zeros_like(step_size), 0
        self.step_size, self._average = step_size, torch.zeros_like(step_size)

    def update(self, acceptance: Tensor) -> None:
        """Take in the acceptance ``(B,)`` of one transition."""
        self._count += 1
        t = self._count
        self._sum += self._target - acceptance
        log_size = self._centre - math.sqrt(t) / (_GAMMA * (t + _T_0)) * self._sum
        weight = t**-_KAPPA
        self._average = weight * log_size + (1 - weight) * self._average
        self.step_size = torch.exp(log_size)

    @property
    def average(self) -> Tensor:
        """The step sizes ``(B,)`` to go on with."""
        return torch.exp(self._average) if self._count else self.step_size


def starting_step_size(
    chains: Chains, density: Density, factor: Tensor, step_size: Tensor, random: torch.Generator
) -> Tensor:
    """Double or halve step sizes ``(B,)`` until the acceptance of one step crosses a half."""
    growing = torch.zeros_like(step_size, dtype=torch.bool)
    done = torch.zeros_like(growing)
    for i in range(_MOST_DOUBLINGS):
        outcome = transition(chains, density, factor, step_size, 0.0, 1, random)
        good = outcome.acceptance.mean(-1) > 0.5
        growing = good if i == 0 else growing
        done = done | (good != growing)
        if bool(done.all()):
            break
        step_size = torch.where(done, step_size, torch.where(growing, 2 * step_size, step_size / 2))
    return step_size


def windows(warmup: int) -> tuple[int, list[int]]:
    """When to start to collect draws for the mass matrix, and when to estimate it: transitions of the warm-up."""
    start, slow = round(0.15 * warmup), 0.65 * warmup
    ends = [start + round(slow * share) for share in (1 / 7, 3 / 7, 1)]
    return start, sorted({end for end in ends if end - start >= 5})


def mass_factor(draws: Tensor, before: Tensor, dense: bool) -> Tensor:
    """A factor A of the covariance of draws ``(B, n, P)``: ``(B, P, P)`` if dense, else its diagonal ``(B, 1, P)``.

    Where a parameter never moved, the scale from `before` stays.
    """
    n = draws.shape[1]
    old = before if before.shape[1] == 1 else torch.linalg.vector_norm(before, dim=2).unsqueeze(1)
    deviation = draws.std(1, keepdim=True)
    deviation = torch.where(deviation > 0, deviation, old)
    if not dense:
        return deviation
    white = (draws - draws.mean(1, keepdim=True)) / deviation
    # Shrunk as in Stan: few draws say little of the correlations.
    correlation = white.transpose(1, 2) @ white / (n + 5)
    identity = torch.eye(draws.shape[2], dtype=draws.dtype, device=draws.device)
    correlation = correlation + identity * (1 - torch.diagonal(correlation, dim1=1, dim2=2)).unsqueeze(1)
    return deviation.transpose(1, 2) * torch.linalg.cholesky(correlation)
