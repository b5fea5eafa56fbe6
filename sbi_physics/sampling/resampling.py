r"""Equally weighted draws from a proposal: sampling-importance-resampling, and rejection.

Both start from draws $\theta_i$ of a proposal q and their weights $w_i = p(\theta_i)/q(\theta_i)$.

* Sampling-importance-resampling (Rubin 1988) draws n of m n weighted draws in proportion to their weights; its error
  vanishes as the oversampling m grows, and a draw of large weight may come several times.
* Rejection (von Neumann 1951) keeps a draw with probability $w_i/M$ for a bound M on the weights.  It is exact where
  the bound is one.  A bound that is learned, the largest weight seen so far, thins the draws kept before whenever it
  rises: each carries its uniform number $u_i$ along and is kept as long as $u_i < w_i/M$.
"""

import math
import time

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import BudgetError, ConvergenceError, UsageError
from sbi_physics.core.protocols import LogDensity
from sbi_physics.core.random import derive, seeded
from sbi_physics.sampling.importance import Proposal, importance_sample, propose
from sbi_physics.sampling.tempering import systematic_rows

__all__ = ["rejection_sample", "sampling_importance_resampling"]

_ROWS_AT_ONCE, _ROWS_AT_FIRST = 1 << 15, 1 << 8
_CALLS_FOR_A_DRAW = 10_000
_CALLS_IN_VAIN = 1 << 17


def sampling_importance_resampling(
    proposal: Proposal,
    log_density: LogDensity,
    n: int,
    *,
    oversampling: int = 10,
    seed: int = 0,
    max_calls: int | None = None,
    max_seconds: float | None = None,
    max_pareto_k: float = 0.7,
) -> tuple[Tensor, dict[str, float]]:
    """Draw n of ``oversampling * n`` proposals in proportion to their weights.

    Args:
        proposal: ``proposal(n, seed)`` gives draws ``(n, P)`` and their normalised log-density ``(n,)``.
        log_density: the target, not necessarily normalised.
        n: number of draws.
        oversampling: proposals for each draw.
        seed: of the proposals and the choice.
        max_calls: most evaluations of the target; fewer proposals are made when it is smaller.
        max_seconds: wall-clock budget.
        max_pareto_k: the largest shape of the tail of the weights that is accepted.

    Returns:
        Draws ``(m, P)`` in random order, m = n unless a budget left fewer proposals than that, and the numbers
        ``distinct`` (the share of the draws that are not copies) and those of `importance_sample`.

    Raises:
        ConvergenceError: the Pareto k is above `max_pareto_k`, or no proposal has a finite weight.
        BudgetError: the budget allows no proposal.
        ShapeError, NonFiniteError: the proposal or the target gives no log-densities.
    """
    wanted = positive_integer(n, "n")
    theta, log_weights, numbers = importance_sample(
        proposal,
        log_density,
        wanted * positive_integer(oversampling, "oversampling"),
        seed=derive(seed, "proposals"),
        max_calls=max_calls,
        max_seconds=max_seconds,
        max_pareto_k=max_pareto_k,
    )
    random = torch.Generator().manual_seed(derive(seed, "choice"))
    rows = systematic_rows(log_weights.unsqueeze(0), random, min(wanted, len(theta)))[0]
    return theta[rows.to(theta.device)], {"distinct": len(rows.unique()) / len(rows), **numbers}


def rejection_sample(
    proposal: Proposal,
    log_density: LogDensity,
    n: int,
    *,
    log_bound: float | None = None,
    seed: int = 0,
    max_calls: int | None = None,
    max_seconds: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Draw n independent points from `log_density` by keeping some of the proposals.

    Args:
        proposal: ``proposal(n, seed)`` gives draws ``(n, P)`` and their normalised log-density ``(n,)``.
        log_density: the target, not necessarily normalised.
        n: number of draws.
        log_bound: the largest log-weight that there is, ``ln p - ln q``; None learns it from the draws.
        seed: of the proposals and the choice.
        max_calls: most evaluations of the target; None allows 10,000 for each draw.
        max_seconds: wall-clock budget, looked at between blocks of rows.

    Returns:
        Draws ``(m, P)``, m = n unless a budget ended first, and the numbers ``efficiency`` (the share of the proposals
        that the bound would keep), ``log_bound``, ``log_evidence``, ``log_evidence_error`` and ``likelihood_calls``.

    Raises:
        ConvergenceError: a log-weight exceeds the bound given, or no proposal has a finite weight.
        BudgetError: a budget ended before a single draw.
        UsageError: the bound is not a finite number.
        ShapeError, NonFiniteError: the proposal or the target gives no log-densities.
    """
    wanted = positive_integer(n, "n")
    if log_bound is not None and not math.isfinite(log_bound):
        raise UsageError(f"log_bound: expected a finite number or None, got {log_bound!r}")
    most = _CALLS_FOR_A_DRAW * wanted if max_calls is None else max_calls
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    kept = _Kept(log_bound)
    while kept.number < wanted and kept.tried < most and time.monotonic() < deadline:
        if kept.tried >= _CALLS_IN_VAIN and not kept.possible:
            break
        rows = min(_rows(wanted, kept), most - kept.tried)
        theta, log_weights = propose(proposal, log_density, rows, derive(seed, "rejection", kept.tried))
        with seeded(derive(seed, "choice", kept.tried)):
            kept.add(theta, log_weights, torch.rand(rows, dtype=torch.float64))
    if not kept.number:
        if kept.tried and not kept.possible:
            raise ConvergenceError(
                f"none of {kept.tried} proposals has a finite posterior density: the observation is impossible under "
                "the prior, or the proposal misses the posterior altogether"
            )
        raise BudgetError(
            f"rejection: the budget (max_calls={max_calls}, max_seconds={max_seconds}) ended without a draw after "
            f"{kept.tried} proposals"
        )
    return kept.theta[:wanted], kept.numbers()


def _rows(wanted: int, kept: "_Kept") -> int:
    """How many proposals to make next: about as many as are still needed, but no more than so far."""
    efficiency = max(kept.number, 1) / max(kept.tried, 1)
    needed = math.ceil((wanted - kept.number) / efficiency)
    return min(_ROWS_AT_ONCE, max(_ROWS_AT_FIRST, min(needed, kept.tried)))


class _Kept:
    """The draws that have passed, with what it takes to thin them again."""

    def __init__(self, log_bound: float | None) -> None:
        self.given = log_bound is not None
        self.log_bound = -math.inf if log_bound is None else log_bound
        self.tried = 0
        self.theta, self._passes = torch.empty(0), torch.empty(0, dtype=torch.float64)
        self._log_sum, self._log_squares = (torch.tensor(-math.inf, dtype=torch.float64) for _ in range(2))

    @property
    def possible(self) -> bool:
        """Whether any proposal had a weight."""
        return bool(self._log_sum > -math.inf)

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self._passes)

    def add(self, theta: Tensor, log_weights: Tensor, uniform: Tensor) -> None:
        """Sift proposals ``(n, P)`` with log-weights and uniform numbers ``(n,)``."""
        self.tried += len(theta)
        self._log_sum = torch.logaddexp(self._log_sum, torch.logsumexp(log_weights, 0))
        self._log_squares = torch.logaddexp(self._log_squares, torch.logsumexp(2 * log_weights, 0))
        largest = float(log_weights.max())
        if largest > self.log_bound:
            if self.given:
                row = int(log_weights.argmax())
                raise ConvergenceError(
                    f"log_bound: {self.log_bound:g} is no bound: the log-weight is {largest:g} at theta = "
                    f"{theta[row].tolist()}; give a larger one, or None to learn it"
                )
            self.log_bound = largest
        passes = log_weights - torch.log(uniform)
        theta = torch.cat([self.theta.to(theta), theta]) if self.number else theta
        passes = torch.cat([self._passes, passes])
        good = passes > self.log_bound
        self.theta, self._passes = theta[good.to(theta.device)], passes[good]

    def numbers(self) -> dict[str, float]:
        """What the draws say of the target and of the cost."""
        log_mean = float(self._log_sum) - math.log(self.tried)
        relative = math.exp(float(self._log_squares) - 2 * float(self._log_sum)) * self.tried - 1
        return {
            "efficiency": math.exp(log_mean - self.log_bound),
            "log_bound": self.log_bound,
            "log_evidence": log_mean,
            "log_evidence_error": math.sqrt(max(relative, 0.0) / self.tried),
            "likelihood_calls": float(self.tried),
        }
