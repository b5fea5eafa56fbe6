r"""Importance sampling with Pareto-smoothed weights (Vehtari et al. 2024, arXiv:1507.02646).

Draws theta_i from a proposal q get the weights $w_i \propto p(\theta_i)/q(\theta_i)$.  The largest weights are
replaced by quantiles of the generalised Pareto distribution fitted to them; its shape k says whether the weights can
be trusted: below 0.7 they can, above it the proposal misses part of the target and no number of draws will do.
"""

import time
from typing import Protocol

import torch
from torch import Tensor

from sbi_physics.core.checks import finite, positive_integer
from sbi_physics.core.errors import BudgetError, ConvergenceError
from sbi_physics.core.protocols import LogDensity
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.weights import importance_efficiency, pareto_smooth
from sbi_physics.sampling.target import checked_log_density

__all__ = ["Proposal", "importance_sample", "propose"]

_ROWS_AT_ONCE = 1 << 15
_ROWS_AT_FIRST = 1 << 8


class Proposal(Protocol):
    """A normalised density that can be drawn from."""

    def __call__(self, n: int, seed: int, /) -> tuple[Tensor, Tensor]:
        """Draws ``(n, P)`` with their log-densities ``(n,)``."""


def propose(proposal: Proposal, log_density: LogDensity, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draws ``(n, P)`` of the proposal with their log-weights ``ln p - ln q``, float64 ``(n,)`` on the CPU.

    Raises:
        ShapeError, NonFiniteError: the proposal or the target gives no log-densities.
    """
    theta, log_q = proposal(n, seed)
    log_q = finite(checked_log_density(log_q, theta, "proposal"), "proposal")
    log_p = checked_log_density(log_density(theta), theta)
    return theta, log_p.detach().double().cpu() - log_q.detach().double().cpu()


def importance_sample(
    proposal: Proposal,
    log_density: LogDensity,
    n: int,
    *,
    seed: int = 0,
    max_calls: int | None = None,
    max_seconds: float | None = None,
    max_pareto_k: float = 0.7,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Draw from `proposal` and weight towards `log_density`.

    Args:
        proposal: ``proposal(n, seed)`` gives draws ``(n, P)`` and their normalised log-density ``(n,)``.
        log_density: the target, not necessarily normalised.
        n: number of draws.
        seed: of the draws.
        max_calls: most evaluations of the target; fewer than n draws are made when it is smaller.
        max_seconds: wall-clock budget, looked at between blocks of rows, each as large as all before it.
        max_pareto_k: the largest shape of the weights that is accepted.

    Returns:
        Draws ``(m, P)``, smoothed log-weights ``(m,)`` and the numbers ``efficiency`` (effective sample size of the raw
        weights over m), ``pareto_k``, ``log_evidence``, ``log_evidence_error`` and ``likelihood_calls``.

    Raises:
        ConvergenceError: the Pareto k is above `max_pareto_k`, or no draw has a finite weight.
        BudgetError: the budget allows no draw.
        ShapeError, NonFiniteError: the proposal or the target gives no log-densities.
    """
    wanted = positive_integer(n, "n") if max_calls is None else min(positive_integer(n, "n"), max_calls)
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    draws: list[Tensor] = []
    log_weights: list[Tensor] = []
    done = 0
    while done < wanted and (deadline is None or time.monotonic() < deadline):
        # How long a row takes is not known: blocks that double overrun the budget by about its own length at most.
        rows = _ROWS_AT_ONCE if deadline is None else min(_ROWS_AT_ONCE, max(_ROWS_AT_FIRST, done))
        theta, weights = propose(proposal, log_density, min(rows, wanted - done), derive(seed, "importance", done))
        draws.append(theta)
        log_weights.append(weights)
        done += len(theta)
    if not done:
        raise BudgetError(
            f"importance sampling: the budget allows no draw (max_calls={max_calls}, max_seconds={max_seconds})"
        )
    raw = torch.cat(log_weights)
    if not bool(torch.isfinite(raw).any()):
        raise ConvergenceError(
            f"none of {done} proposals has a finite posterior density: the observation is impossible under the prior, "
            "or the proposal misses the posterior altogether; check units, and that the prior holds the truth"
        )
    smoothed, shape = pareto_smooth(raw)
    pareto_k, efficiency = float(shape), float(importance_efficiency(raw))
    if not pareto_k <= max_pareto_k:
        raise ConvergenceError(
            f"the importance weights cannot be trusted: Pareto k = {pareto_k:.2f} (at most {max_pareto_k:g} is "
            f"acceptable), efficiency {efficiency:.2g}; train the posterior with more simulations or for longer, "
            "or correct it by MCMC"
        )
    diagnostics = {"efficiency": efficiency, "pareto_k": pareto_k, "likelihood_calls": float(done), **_evidence(raw)}
    return torch.cat(draws), smoothed, diagnostics


def _evidence(log_weights: Tensor) -> dict[str, float]:
    """Ln of the mean weight, and its standard error by the delta method."""
    n = len(log_weights)
    log_mean = float(torch.logsumexp(log_weights, 0)) - float(torch.log(torch.tensor(float(n))))
    relative = torch.exp(log_weights - log_mean)
    error = float(relative.std()) / n**0.5 if n > 1 else float("nan")
    return {"log_evidence": log_mean, "log_evidence_error": error}
