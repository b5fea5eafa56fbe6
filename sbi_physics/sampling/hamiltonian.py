r"""Hamiltonian dynamics of many chains at once, for B densities with C chains each.

A chain at z gets a momentum r from a unit Gaussian and follows

$$ \dot z = A\, r, \qquad \dot r = A^T\, \nabla \ln p(z), $$

by leapfrog steps, where $A A^T$ is about the covariance of the density (the inverse mass matrix); the end is accepted
with probability $\min\{1, e^{H_0-H_1}\}$ (Duane et al. 1987; Neal 2011, arXiv:1206.1901).  The length of the
trajectories is random, so that none closes upon itself.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.core.bijection import SupportBijection
from sbi_physics.core.errors import BudgetError, UsageError
from sbi_physics.sampling.target import checked_log_density

__all__ = ["Chains", "Density", "Transition", "transition"]

_DIVERGENCE = 1000.0
_SHORTEST, _LONGEST = 0.5, 1.5
"""The range of trajectory lengths, about their mean."""


@dataclass
class Chains:
    """Where B times C chains are.

    Attributes:
        z: places ``(B, C, P)``, float64.
        log_density: ``(B, C)``; minus infinity where there is no density, or no gradient.
        gradient: of that, ``(B, C, P)``; zero where there is none.
    """

    z: Tensor
    log_density: Tensor
    gradient: Tensor

    def replaced(self, where: Tensor, other: "Chains") -> "Chains":
        """The chains of `other` where ``(B, C)``, these elsewhere."""
        rows = where.unsqueeze(-1)
        return Chains(
            torch.where(rows, other.z, self.z),
            torch.where(where, other.log_density, self.log_density),
            torch.where(rows, other.gradient, self.gradient),
        )


class Density:
    """A log-density with its gradient in the unbounded space, counted and paid for.

    Args:
        log_prob: of theta ``(B, C, P)``, or ``(C, P)`` for a single density.
        bijection: from the unbounded space to that of theta; None for none.
        single: whether `log_prob` takes ``(C, P)``.
        max_calls: most rows.
        max_seconds: wall-clock budget from now on.

    Attributes:
        calls: rows so far.
        began: when it was made, in the time of `time.monotonic`.
    """

    def __init__(
        self,
        log_prob: Callable[[Tensor], Tensor],
        bijection: SupportBijection | None,
        single: bool,
        max_calls: int | None,
        max_seconds: float | None,
    ) -> None:
        self.began, self.calls = time.monotonic(), 0
        self._log_prob, self._bijection, self._single = log_prob, bijection, single
        self._most = math.inf if max_calls is None else max_calls
        self._deadline = math.inf if max_seconds is None else self.began + max_seconds

    def to_support(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Theta at z ``(*, P)``, with the logarithm of the Jacobian ``(*,)``."""
        return (z, torch.zeros_like(z[..., 0])) if self._bijection is None else self._bijection.to_support(z)

    def __call__(self, z: Tensor) -> Chains:
        """Evaluate at z ``(B, C, P)``.

        Raises:
            BudgetError: the budget does not allow it.
            ShapeError, NonFiniteError: `log_prob` returns another shape, or plus infinity; NaN counts as zero density.
            UsageError: `log_prob` is not differentiable.
        """
        rows = z.shape[0] * z.shape[1]
        if self.calls + rows > self._most or time.monotonic() > self._deadline:
            raise BudgetError("the budget ended")
        self.calls += rows
        with torch.enable_grad():
            place = z.detach().requires_grad_()
            theta, ladj = self.to_support(place)
            value = self._value(theta[0]).unsqueeze(0) if self._single else self._value(theta)
            total = value + ladj
            # Without the rows that have no density, whose gradient would be no number.
            gradient = torch.autograd.grad(torch.where(torch.isfinite(total), total, 0.0).sum(), place)[0]
        good = torch.isfinite(total.detach()) & torch.isfinite(gradient).all(-1)
        log_density = torch.where(good, total.detach(), -torch.inf)
        return Chains(z.detach(), log_density, torch.where(good.unsqueeze(-1), gradient, 0.0))

    def _value(self, theta: Tensor) -> Tensor:
        value = self._log_prob(theta)
        with torch.no_grad():
            plain = value.detach().double()
            plain = checked_log_density(torch.where(torch.isnan(plain), -torch.inf, plain), theta, "log_prob")
        if value.requires_grad:
            return value.double()
        finite = plain[torch.isfinite(plain)]
        if len(finite) and bool((finite != finite[0]).any()):
            raise UsageError("log_prob: expected a function that torch can differentiate, got values without gradient")
        return plain + 0 * theta.sum(-1)


@dataclass
class Transition:
    """The outcome of one trajectory of each chain: the chains after it, and of each ``(B, C)`` what happened.

    Attributes:
        chains: after the acceptance.
        acceptance: its probability.
        diverged: whether the energy was lost.
    """

    chains: Chains
    acceptance: Tensor
    diverged: Tensor


def transition(
    chains: Chains,
    density: Density,
    factor: Tensor,
    step_size: Tensor,
    length: float,
    most_steps: int,
    random: torch.Generator,
) -> Transition:
    """Move all chains by one trajectory.

    Args:
        chains: where they are.
        density: what they sample.
        factor: A, ``(B, P, P)``, or its diagonal ``(B, 1, P)``.
        step_size: ``(B,)``.
        length: mean length of the trajectories, in units of the unit Gaussian; zero for a single step.
        most_steps: most steps of a trajectory.
        random: of momenta, lengths and acceptances.
    """
    device, dtype = chains.z.device, chains.z.dtype
    uniform = torch.rand(len(step_size), generator=random, device=device, dtype=dtype)
    lengths = length * (_SHORTEST + (_LONGEST - _SHORTEST) * uniform)
    steps = torch.ceil(lengths / step_size).clamp(1, most_steps)
    momentum = torch.randn(chains.z.shape, generator=random, device=device, dtype=dtype)
    energy = 0.5 * momentum.square().sum(-1) - chains.log_density
    size = step_size.reshape(-1, 1, 1)
    end, broken = chains, torch.zeros_like(energy, dtype=torch.bool)
    for i in range(int(steps.max())):
        underway = (i < steps).unsqueeze(-1) & ~broken
        half = momentum + 0.5 * size * _apply(factor, end.gradient, transpose=True)
        reached = density(torch.where(underway.unsqueeze(-1), end.z + size * _apply(factor, half), end.z))
        after = half + 0.5 * size * _apply(factor, reached.gradient, transpose=True)
        broken = broken | (underway & ~torch.isfinite(reached.log_density))
        moved = underway & ~broken
        end = end.replaced(moved, reached)
        momentum = torch.where(moved.unsqueeze(-1), after, momentum)
    gain = energy - (0.5 * momentum.square().sum(-1) - end.log_density)
    diverged = broken | ~(gain > -_DIVERGENCE)
    acceptance = torch.where(diverged, 0.0, torch.exp(gain.clamp(max=0)))
    accepted = torch.rand(energy.shape, generator=random, device=device, dtype=dtype) < acceptance
    return Transition(chains.replaced(accepted, end), acceptance, diverged)


def _apply(factor: Tensor, rows: Tensor, *, transpose: bool = False) -> Tensor:
    """A times each row of ``(B, C, P)``."""
    if factor.shape[1] != factor.shape[2]:
        return factor * rows
    return rows @ (factor if transpose else factor.transpose(1, 2))
