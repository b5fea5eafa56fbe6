r"""Metropolis with independent proposals (Tierney 1994, Annals of Statistics 22, 1701).

A move from theta to a draw theta' of the proposal q is accepted with probability
$\min\{1, [p(\theta')/q(\theta')]\,/\,[p(\theta)/q(\theta)]\}$, which leaves p invariant whatever q is, provided that q
covers p.  With a learned posterior as q this is asymptotically exact, and parallel chains cost one batch a step.
"""

import math
import time

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import BudgetError, ConvergenceError
from sbi_physics.core.protocols import LogDensity
from sbi_physics.core.random import derive, seeded
from sbi_physics.sampling.importance import Proposal, propose

__all__ = ["independence_metropolis"]


def independence_metropolis(
    proposal: Proposal,
    log_density: LogDensity,
    n: int,
    *,
    chains: int = 500,
    warmup: int = 20,
    seed: int = 0,
    max_calls: int | None = None,
    max_seconds: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Draw n points from `log_density` by parallel chains that propose from `proposal`.

    Args:
        proposal: ``proposal(n, seed)`` gives draws ``(n, P)`` and their log-density ``(n,)``.
        log_density: the target, not necessarily normalised.
        n: number of draws.
        chains: parallel chains.
        warmup: steps of each chain that are thrown away.
        seed: of the proposals and the acceptances.
        max_calls: most evaluations of the target.
        max_seconds: wall-clock budget, looked at after each step.

    Returns:
        Draws ``(m, P)``, m = n unless a budget ended first, and the numbers ``acceptance`` and
        ``likelihood_calls``.

    Raises:
        BudgetError: a budget ended before the warm-up did.
        ConvergenceError: fewer than 1 % of the proposals are accepted, or none has a finite density.
        ShapeError, NonFiniteError: the proposal or the target gives no log-densities.
    """
    chains = min(positive_integer(chains, "chains"), positive_integer(n, "n"))
    steps = warmup + math.ceil(n / chains)
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds
    most = math.inf if max_calls is None else max_calls
    if chains * (warmup + 2) > most:
        raise BudgetError(
            f"the budget of {most} calls ends within the warm-up of the chains: expected at least {chains} chains * "
            f"(a start + {warmup} steps of warm-up + 1 step) = {chains * (warmup + 2)}"
        )
    state, log_ratio = propose(proposal, log_density, chains, derive(seed, "chain", 0))
    calls, accepted, kept = chains, 0, []
    for step in range(1, steps + 1):
        if calls + chains > most or time.monotonic() > deadline:
            break
        candidate, candidate_ratio = propose(proposal, log_density, chains, derive(seed, "chain", step))
        calls += chains
        with seeded(derive(seed, "accept", step)):
            uniform = torch.rand(chains, dtype=torch.float64)
        # A chain that starts where the target vanishes takes the first point where it does not.
        stranded = torch.isneginf(log_ratio) & candidate_ratio.isfinite()
        accept = stranded | (torch.log(uniform) < candidate_ratio - log_ratio)
        state = torch.where(accept.to(state.device).unsqueeze(-1), candidate, state)
        log_ratio = torch.where(accept, candidate_ratio, log_ratio)
        if step > warmup:
            kept.append(state)
            accepted += int(accept.sum())
    if not kept:
        raise BudgetError(f"the budget ended after {calls} calls, within the warm-up of the chains")
    if not bool(torch.isfinite(log_ratio).any()):
        raise ConvergenceError(
            f"none of {calls} proposals has a finite posterior density: the observation is impossible under the prior, "
            "or the proposal misses the posterior altogether; check units, and that the prior holds the truth"
        )
    acceptance = accepted / (len(kept) * chains)
    if acceptance < 0.01:
        raise ConvergenceError(
            f"only {acceptance:.2%} of the proposals are accepted: the learned posterior is too far from the exact "
            "one; train it with more simulations, or run mcmc from scratch"
        )
    numbers = {"acceptance": acceptance, "likelihood_calls": float(calls)}
    return torch.cat(kept)[:n], numbers
