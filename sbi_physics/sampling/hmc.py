"""`hmc`: Hamiltonian Monte Carlo with torch's gradients, for many chains and many densities at once.

Trajectories of random length (`sampling.hamiltonian`), step size and mass matrix learned in a warm-up from all chains
of a density (`sampling.adaptation`).  For densities of one mode that are differentiable, in any number of dimensions;
where there may be several modes, `tempered_smc` finds them (an angle about the place where its circle is cut has two).
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, positive_integer, resolve_device
from sbi_physics.core.errors import BudgetError, ShapeError, SupportError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive
from sbi_physics.core.samples import Cost, Samples
from sbi_physics.diagnostics.chains import bulk_effective_sample_size, split_r_hat
from sbi_physics.sampling.adaptation import DualAveraging, mass_factor, starting_step_size, windows
from sbi_physics.sampling.hamiltonian import Chains, Density, Transition, transition
from sbi_physics.sampling.verdict import judge, plain

__all__ = ["hmc"]

_SHORTEST = 4
_MOST_DIVERGENT = 0.01


def hmc(
    log_prob: Callable[[Tensor], Tensor],
    initial: Any,
    *,
    steps: int = 1000,
    warmup: int = 500,
    parameters: Parameters | None = None,
    dense: bool = False,
    acceptance: float = 0.9,
    trajectory: float = 2.0,
    most_leapfrogs: int = 64,
    seed: int = 0,
    device: str | torch.device = "auto",
    max_calls: int | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
) -> Samples:
    """Sample `log_prob` by Hamiltonian Monte Carlo.

    Args:
        log_prob: log-density, not necessarily normalised and differentiable by torch, of theta of the shape of
            `initial`, float64 on `device`: ``(C,)``, or ``(B, C)`` for B separate densities.
        initial: where the chains start, with finite density: ``(C, P)``, or ``(B, C, P)``.
        steps: transitions of each chain that are kept.
        warmup: transitions before them, that learn step size and mass matrix.
        parameters: their bounds give the unbounded space in which the chains move, and they name the result.
        dense: whether to learn a full mass matrix, for strong correlations, or a diagonal one.
        acceptance: mean acceptance that the step size aims at; higher for densities with narrow places.
        trajectory: mean length of a trajectory, in standard deviations; a quarter of a turn is 1.57.
        most_leapfrogs: most steps of a trajectory.
        seed: of everything that is random.
        device: where `log_prob` is evaluated.
        max_calls: most rows at which the gradient is evaluated.
        max_seconds: wall-clock budget.
        progress: whether to show a progress bar.

    Returns:
        The draws of each density, chain after chain: ``(C * steps, P)``, or ``(B, C * steps, P)``; fewer where a budget
        ended.  The diagnostics are numbers, or lists of B of them: ``acceptance``, ``step_size``, ``divergences``,
        ``r_hat`` and ``effective_sample_size`` (of the worst parameter), ``converged`` and ``verdict``; and ``chains``,
        ``steps``, ``warmup`` and ``likelihood_calls`` for all.

    Raises:
        UsageError: an argument has a value that it cannot have, or `log_prob` is not differentiable.
        ShapeError, NonFiniteError: `initial` or `log_prob` has another shape, or is not finite; NaN of `log_prob`
            counts as zero density.
        SupportError: a chain starts outside the bounds, or where there is no density.
        BudgetError: the budget ended in the warm-up, or allows fewer than two steps.
    """
    start, single = _start(initial, parameters, resolve_device(device))
    wanted, warm = positive_integer(steps, "steps"), positive_integer(warmup, "warmup")
    if not 0 < acceptance < 1 or not (math.isfinite(trajectory) and trajectory > 0):
        raise UsageError(
            f"expected 0 < acceptance < 1 and a trajectory of finite length, got {acceptance!r} and {trajectory!r}"
        )
    most = positive_integer(most_leapfrogs, "most_leapfrogs")
    density = Density(log_prob, parameters.bijection if parameters else None, single, max_calls, max_seconds)
    random = torch.Generator(start.device).manual_seed(derive(seed, "hmc"))
    kept: list[Transition] = []
    try:
        chains = _first(density, start)
        with progress_bar(warm + wanted, "hmc", enabled=progress) as advance:
            chains, factor, step_size = _warm_up(
                chains, density, warm, dense, acceptance, trajectory, most, random, advance
            )
            for _ in range(wanted):
                kept.append(transition(chains, density, factor, step_size, trajectory, most, random))
                chains = kept[-1].chains
                advance()
    except BudgetError:
        if len(kept) < 2:
            raise BudgetError(
                f"hmc: the budget (max_calls={max_calls}, max_seconds={max_seconds}) ended after {density.calls} "
                f"gradients with {len(kept)} steps kept; expected a warm-up of {warm} transitions and at least 2 steps"
            ) from None
    return _collect(kept, density, step_size, parameters, single, wanted, warm)


def _start(initial: Any, parameters: Parameters | None, device: torch.device) -> tuple[Tensor, bool]:
    """The starting points ``(B, C, P)`` in the unbounded space, and whether there is one density."""
    given = initial.values if isinstance(initial, Samples) else initial
    theta = finite(as_tensor(given, "initial", dtype=torch.float64), "initial").to(device)
    if theta.ndim not in (2, 3) or 0 in theta.shape:
        raise ShapeError(f"initial: expected shape (C, P) or (B, C, P), got {tuple(theta.shape)}")
    single = theta.ndim == 2
    theta = theta.unsqueeze(0) if single else theta
    if parameters is None:
        return theta, single
    return parameters.bijection.to_unbounded(parameters.check_within(theta, "initial"))[0], single


def _first(density: Density, z: Tensor) -> Chains:
    chains = density(z)
    bad = int((~torch.isfinite(chains.log_density)).sum())
    if bad:
        raise SupportError(
            f"initial: {bad} of {chains.log_density.numel()} chains start where there is no density or no gradient"
        )
    return chains


def _warm_up(
    chains: Chains,
    density: Density,
    warmup: int,
    dense: bool,
    acceptance: float,
    trajectory: float,
    most: int,
    random: torch.Generator,
    advance: Callable[[], None],
) -> tuple[Chains, Tensor, Tensor]:
    """Chains at the end of the warm-up, a factor of their covariance ``(B, P, P)`` or ``(B, 1, P)``, and step sizes."""
    b, _, p = chains.z.shape
    factor = chains.z.new_ones((b, 1, p))
    size = starting_step_size(chains, density, factor, factor[:, 0, 0], random)
    learner = DualAveraging(size, acceptance)
    first, ends = windows(warmup)
    window: list[Tensor] = []
    for i in range(1, warmup + 1):
        outcome = transition(chains, density, factor, learner.step_size, trajectory, most, random)
        chains = outcome.chains
        learner.update(outcome.acceptance.mean(-1))
        if i > first:
            window.append(chains.z)
        if i in ends:
            factor = mass_factor(torch.cat(window, 1), factor, dense)
            size = starting_step_size(chains, density, factor, torch.ones_like(size), random)
            learner, window = DualAveraging(size, acceptance), []
        advance()
    return chains, factor, learner.average


def _collect(
    kept: list[Transition],
    density: Density,
    step_size: Tensor,
    parameters: Parameters | None,
    single: bool,
    wanted: int,
    warmup: int,
) -> Samples:
    theta, _ = density.to_support(torch.stack([outcome.chains.z for outcome in kept], 2))
    b, chains, steps, p = theta.shape
    diverged = torch.stack([outcome.diverged for outcome in kept]).sum((0, 2))
    acceptance = torch.stack([outcome.acceptance for outcome in kept]).mean((0, 2))
    diagnostics = {
        "acceptance": plain(acceptance, single),
        "step_size": plain(step_size, single),
        "divergences": plain(diverged, single),
        **_convergence(theta, diverged, single, wanted),
        "chains": chains,
        "steps": steps,
        "warmup": warmup,
        "likelihood_calls": density.calls,
    }
    values = theta.reshape(b, chains * steps, p)
    names = parameters.names if parameters else tuple(f"theta_{i}" for i in range(p))
    units = parameters.units if parameters else ()
    labels = parameters.labels if parameters else ()
    bounds = parameters.bounds if parameters else None
    cost = Cost(time.monotonic() - density.began, 0, density.calls)
    periodic = parameters.periodic if parameters else ()
    drawn = values[0] if single else values
    return Samples(drawn, names, units, labels, None, cost, diagnostics, bounds, periodic)


def _convergence(theta: Tensor, diverged: Tensor, single: bool, wanted: int) -> dict[str, Any]:
    """What the chains ``(B, C, S, P)`` say about themselves."""
    b, chains, steps, p = theta.shape
    if steps < _SHORTEST:
        verdict = [f"not converged: {steps} steps are too few to say, expected at least {_SHORTEST}"] * b
        return {"converged": plain([False] * b, single), "verdict": plain(verdict, single)}
    walks = theta.permute(2, 1, 0, 3).reshape(steps, chains, b * p)
    r_hat = split_r_hat(walks).reshape(b, p).nan_to_num(nan=math.inf).amax(-1)
    effective = bulk_effective_sample_size(walks).reshape(b, p).nan_to_num(nan=1.0).amin(-1)
    # Draws that avoid their predecessors are worth more than independent ones for a mean, but not for a quantile.
    effective = effective.clamp(max=chains * steps)
    advice = "run longer" if steps == wanted else f"the budget ended after {steps} of {wanted} steps"
    converged, verdict = judge(effective, r_hat, chains * steps, advice)
    for i, number in enumerate(diverged.tolist()):
        if number > _MOST_DIVERGENT * chains * steps:
            converged[i] = False
            verdict[i] = (
                f"not converged: {number} of {chains * steps} trajectories lost their energy, expected at most "
                f"{_MOST_DIVERGENT:.0%}: the density has places too narrow for the step; aim at a higher acceptance"
            )
    return {
        "r_hat": plain(r_hat, single),
        "effective_sample_size": plain(effective, single),
        "converged": plain(converged, single),
        "verdict": plain(verdict, single),
    }
