"""`annealed_hmc`: Hamiltonian chains that start where an annealed cloud ends, for many posteriors at once.

A chain that follows gradients explores its mode fast, in any number of dimensions, and hardly ever leaves it; a cloud
annealed from the prior (`tempered_smc`) finds the modes and their weights, but moves without gradients.  So each chain
starts at a particle of such a cloud.  Where modes are far apart, their weights stay those of the cloud, and R-hat says
that the chains do not mix.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive
from sbi_physics.core.samples import Cost, Samples
from sbi_physics.sampling.hmc import hmc
from sbi_physics.sampling.smc import tempered_smc

__all__ = ["annealed_hmc"]

_FEWEST_STEPS = 200


def annealed_hmc(
    log_likelihood: Callable[..., Tensor],
    parameters: Parameters,
    n: int,
    *,
    batch: int | None = None,
    particles: int | None = None,
    chains: int = 32,
    warmup: int = 200,
    dense: bool = False,
    acceptance: float = 0.9,
    seed: int = 0,
    device: str | torch.device = "cpu",
    max_seconds: float | None = None,
) -> Samples:
    """Sample posteriors that share one prior, by Hamiltonian Monte Carlo from an annealed cloud.

    Args:
        log_likelihood: differentiable by torch; its arguments are those of `tempered_smc`.
        parameters: the prior.
        n: draws of each posterior.
        batch: number of posteriors, B; None for a single one.
        particles: of each annealed cloud, at least as many as chains; None takes as many as `tempered_smc` does.
        chains: of each posterior.
        warmup: transitions of each chain that learn step size and mass matrix.
        dense: whether to learn a full mass matrix, for strong correlations.
        acceptance: mean acceptance that the step size aims at.
        seed: of everything that is random.
        device: where the chains live.
        max_seconds: wall-clock budget.

    Returns:
        Draws ``(n, P)``, or ``(B, n, P)``, float64; fewer where the budget ended.  The diagnostics are those of `hmc`,
        and ``log_evidence`` and ``log_evidence_error`` of the cloud.

    Raises:
        UsageError: an argument has a value that it cannot have, or the likelihood is not differentiable.
        ShapeError, NonFiniteError: the likelihood gives no log-densities.
        ConvergenceError: an observation is impossible under the prior, or its likelihood too narrow for it.
        BudgetError: the budget ended before there was a result.
    """
    began, wanted, walkers = time.monotonic(), positive_integer(n, "n"), positive_integer(chains, "chains")
    size = max(1000, 100 * len(parameters), 2 * walkers) if particles is None else particles
    common: dict[str, Any] = {"batch": batch, "particles": size, "device": device, "max_seconds": max_seconds}
    cloud = tempered_smc(log_likelihood, parameters, size, seed=derive(seed, "cloud"), **common)
    start = cloud.resample(walkers, seed=derive(seed, "start"), replace=False)
    which = () if batch is None else (torch.arange(batch, device=start.values.device),)

    def log_prob(theta: Tensor) -> Tensor:
        value = log_likelihood(theta, *which)
        if theta.requires_grad and not value.requires_grad:
            raise UsageError("log_likelihood: expected one that torch can differentiate by theta")
        return parameters.log_prob(theta) + value.double()

    left = None if max_seconds is None else max(max_seconds - (time.monotonic() - began), 1e-3)
    steps = max(math.ceil(wanted / walkers), _FEWEST_STEPS)
    moved = hmc(
        log_prob,
        start,
        steps=steps,
        warmup=warmup,
        parameters=parameters,
        dense=dense,
        acceptance=acceptance,
        seed=derive(seed, "chains"),
        device=device,
        max_seconds=left,
        progress=False,
    )
    # Evenly along the chains, which are as long as it takes to judge them.
    rows = torch.arange(min(wanted, len(moved))) * len(moved) // min(wanted, len(moved))
    calls = cloud.cost.likelihood_calls + moved.cost.likelihood_calls
    evidence = {name: cloud.diagnostics[name] for name in ("log_evidence", "log_evidence_error")}
    return Samples.of(
        moved.values[..., rows, :],
        parameters,
        cost=Cost(time.monotonic() - began, 0, calls),
        diagnostics={**moved.diagnostics, **evidence, "likelihood_calls": calls},
    )
