"""`mcmc`: the reference sampler, emcee's affine-invariant ensemble over a log-density in torch.

All walkers of a half-ensemble are evaluated in one batch on the device of the caller's choice (Goodman and Weare 2010;
Foreman-Mackey et al. 2013, arXiv:1202.3665).  The result says how long the chain is in autocorrelation times: the
ensemble counts as converged when, after burn-in, it is longer than 50 of them (emcee's own advice) and the walkers
agree.
"""

import math
import time
from typing import Any

import emcee
import numpy as np
import torch
from emcee.ensemble import walkers_independent

from sbi_physics.core.checks import as_tensor, finite, positive_integer, resolve_device
from sbi_physics.core.circle import on_one_turn, wrapped
from sbi_physics.core.errors import BudgetError, ShapeError, SupportError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.protocols import LogDensity
from sbi_physics.core.random import derive, numpy_generator
from sbi_physics.core.samples import Cost, Samples
from sbi_physics.diagnostics.chains import autocorrelation_time, chain_report
from sbi_physics.sampling.stretch import CircularStretchMove
from sbi_physics.sampling.target import checked_log_density

__all__ = ["mcmc"]

_SHORTEST = 8


def mcmc(
    log_prob: LogDensity,
    initial: Any,
    *,
    steps: int,
    walkers: int | None = None,
    parameters: Parameters | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    max_calls: int | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
) -> Samples:
    """Sample `log_prob` with emcee.

    Args:
        log_prob: log-density, not necessarily normalised, of theta ``(n, P)`` float64 on `device`: ``(n,)``.
        initial: `Samples` or an array of points ``(m, P)`` with finite density from which the walkers start, chosen
            without replacement; more than 2 P of them.
        steps: steps of each walker.
        walkers: number of walkers; None takes ``max(2 P + 2, 32)``.
        parameters: gives the result its names and units; walkers go round the circle of those that are periodic, and
            `log_prob` sees them within their bounds.
        seed: of the starting points and the moves.
        device: where `log_prob` is evaluated.
        max_calls: most evaluations of `log_prob`.
        max_seconds: wall-clock budget.
        progress: whether to show a progress bar.

    Returns:
        The draws after burn-in (two autocorrelation times, at least a tenth), walker after walker, with the diagnostics
        ``acceptance``, ``steps``, ``burn_in``, ``chains``, ``converged`` and, unless the chain is too short to say,
        ``autocorrelation_time`` (in steps), ``lengths`` (of the chain, in those), ``r_hat``,
        ``effective_sample_size`` and ``verdict``.

    Raises:
        UsageError, ShapeError: too few starting points, of the wrong shape, or all on a line or a plane.
        ShapeError, NonFiniteError: `log_prob` returns another shape, or plus infinity; NaN counts as zero density.
        SupportError: a starting point has zero density.
        BudgetError: the budget allows fewer than two steps.
    """
    start = _starting_points(initial, walkers, parameters, seed)
    walkers, dims = start.shape
    where = resolve_device(device)
    calls = 0

    def evaluate(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nonlocal calls
        calls += len(points)
        with torch.no_grad():
            theta = torch.as_tensor(points, dtype=torch.float64, device=where)
            # A density in NumPy is as good as one in torch.
            value = as_tensor(log_prob(theta), "log_prob", dtype=torch.float64).to(where)
            # NaN never moves a walker: emcee would stop, and the caller may return it outside the support.
            value = torch.where(torch.isnan(value), -torch.inf, value)
            return checked_log_density(value, theta, "log_prob").cpu().numpy()

    most = positive_integer(steps, "steps")
    if max_calls is not None:
        most = min(most, max_calls // walkers - 1)  # the starting points cost as much as a step
        _check_budget(most, max_calls, max_seconds)
    began = time.monotonic()
    first = evaluate(start)
    if not np.isfinite(first).all():
        raise SupportError(
            f"initial: {int((~np.isfinite(first)).sum())} of {walkers} starting points have zero density"
        )
    circular = parameters is not None and any(parameters.periodic)
    move = CircularStretchMove(parameters.bounds, parameters.periodic) if parameters and circular else None
    sampler = emcee.EnsembleSampler(walkers, dims, evaluate, vectorize=True, moves=move)
    sampler.log_prob_fn = evaluate  # the wrapper that emcee puts around it prints a traceback beside the error
    random = np.random.RandomState(derive(seed, "emcee") % 2**32)
    state = emcee.State(start, log_prob=first, random_state=random.get_state())
    done = _advance(sampler, state, most, began, max_seconds, progress)
    _check_budget(done, max_calls, max_seconds)
    return _collect(sampler, done, parameters, dims, Cost(time.monotonic() - began, 0, calls))


def _starting_points(
    initial: Any, walkers: int | None, parameters: Parameters | None, seed: int
) -> np.ndarray[Any, Any]:
    values = initial.values if isinstance(initial, Samples) else initial
    points = finite(as_tensor(values, "initial", dtype=torch.float64), "initial").cpu()
    if points.ndim != 2:
        raise ShapeError(f"initial: expected shape (m, P), got {tuple(points.shape)}")
    if parameters is not None:
        parameters.check_width(points)
        points = wrapped(points, parameters.bounds, parameters.periodic)
    points = torch.unique(points, dim=0)
    m, dims = points.shape
    count = max(2 * dims + 2, 32) if walkers is None else positive_integer(walkers, "walkers")
    count += count % 2
    if count < 2 * dims + 2:
        raise UsageError(f"walkers: expected at least 2 P + 2 = {2 * dims + 2}, got {count}")
    if m < count:
        raise UsageError(f"initial: expected at least {count} distinct starting points, one for each walker, got {m}")
    chosen = points[torch.as_tensor(numpy_generator(derive(seed, "start")).permutation(m)[:count])].numpy()
    if not walkers_independent(chosen):
        raise UsageError(
            f"initial: expected starting points that span all {dims} dimensions, got some that lie on a line or a "
            "plane; walkers that start there never leave it"
        )
    return chosen


def _check_budget(steps: int, max_calls: int | None, max_seconds: float | None) -> None:
    if steps < 2:
        raise BudgetError(
            f"mcmc: the budget allows only {max(steps, 0)} steps, expected at least 2 (max_calls={max_calls}, "
            f"max_seconds={max_seconds})"
        )


def _advance(
    sampler: emcee.EnsembleSampler,
    state: emcee.State,
    steps: int,
    began: float,
    max_seconds: float | None,
    progress: bool,
) -> int:
    """Run up to `steps` steps within the seconds; the number done."""
    done = 0
    with progress_bar(steps, "emcee", enabled=progress) as advance:
        for _ in sampler.sample(state, iterations=steps):
            done += 1
            advance()
            if max_seconds is not None and time.monotonic() - began > max_seconds:
                break
    return done


def _on_one_turn(chain: np.ndarray[Any, Any], parameters: Parameters | None) -> np.ndarray[Any, Any]:
    """Chains ``(steps, walkers, P)`` whose periodic parameters do not jump where their circle is cut."""
    if parameters is None or not any(parameters.periodic):
        return chain
    chain = chain.copy()
    for i in np.flatnonzero(parameters.periodic):
        low, high = parameters.bounds[i].tolist()
        values = torch.as_tensor(chain[..., i].reshape(-1))
        chain[..., i] = on_one_turn(values, torch.ones_like(values), low, high - low).view(chain.shape[:2])
    return chain


def _collect(
    sampler: emcee.EnsembleSampler, done: int, parameters: Parameters | None, dims: int, cost: Cost
) -> Samples:
    chain = sampler.get_chain()[:done]
    judged = _on_one_turn(chain, parameters)
    longest = float(autocorrelation_time(judged).max()) if done >= _SHORTEST else math.inf
    burn_in = min(max(done // 10, math.ceil(2 * longest) if math.isfinite(longest) else done), done // 2)
    kept = chain[burn_in:]
    values = torch.as_tensor(np.ascontiguousarray(kept.swapaxes(0, 1)).reshape(-1, dims))
    diagnostics: dict[str, Any] = {
        "acceptance": float(sampler.acceptance_fraction.mean()),
        "steps": done,
        "burn_in": burn_in,
        "chains": sampler.nwalkers,
        "converged": False,
    }
    if len(kept) >= _SHORTEST:
        report = chain_report(judged[burn_in:], parameters.names if parameters else None)
        diagnostics |= {
            "autocorrelation_time": float(report.autocorrelation_time.max()),
            "lengths": report.lengths,
            "r_hat": float(report.r_hat.max()),
            "effective_sample_size": float(report.effective_sample_size.min()),
            "converged": report.converged,
            "verdict": report.verdict,
        }
    names = parameters.names if parameters else tuple(f"theta_{i}" for i in range(dims))
    units = parameters.units if parameters else ()
    labels = parameters.labels if parameters else ()
    bounds = parameters.bounds if parameters else None
    periodic = parameters.periodic if parameters else ()
    return Samples(values, names, units, labels, None, cost, diagnostics, bounds, periodic)
