r"""`tempered_smc`: from the prior to the posterior by annealing the likelihood, for many observations at once.

A cloud of particles starts as draws of the prior and passes through the densities $p(\theta)\,L(\theta)^t$ with t from
0 to 1: the particles are weighted by $L^{\Delta t}$, resampled, and moved until they have forgotten where they were
(Del Moral, Doucet and Jasra 2006, Journal of the Royal Statistical Society B 68, 411; adaptive steps of t as in Jasra
et al. 2011).  No start is needed, no gradient, and modes keep their weights, since a mode is populated before it
separates from the others.  The product of the mean weights estimates the evidence $\int p\,L$.

Each observation has its own temperatures and is left out once it has its draws; the moves (`sampling.ensemble`) work in
the unbounded space of the parameters.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer, resolve_device
from sbi_physics.core.errors import BudgetError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive
from sbi_physics.core.samples import Cost, Samples
from sbi_physics.sampling.annealing import Annealing
from sbi_physics.sampling.evaluation import BatchedLogLikelihood, Evaluation
from sbi_physics.sampling.families import family_sample_size, group_r_hat, scores_of_walks
from sbi_physics.sampling.prior_clouds import prior_clouds
from sbi_physics.sampling.target import checked_log_density
from sbi_physics.sampling.verdict import judge, plain

__all__ = ["tempered_smc"]


def tempered_smc(
    log_likelihood: Callable[..., Tensor],
    parameters: Parameters,
    n: int,
    *,
    batch: int | None = None,
    particles: int | None = None,
    effective_share: float = 0.5,
    seed: int = 0,
    device: str | torch.device = "cpu",
    max_calls: int | None = None,
    max_seconds: float | None = None,
    progress: bool = False,
) -> Samples:
    """Sample posteriors that share one prior, by annealing their likelihoods.

    Args:
        log_likelihood: for a single posterior, of theta ``(m, P)`` float64 on `device`: ``(m,)``; for a batch, of
            theta ``(k, m, P)`` and the numbers ``(k,)`` of the k observations that its rows belong to: ``(k, m)``.
            Minus infinity is a value it may have, NaN and plus infinity are not.
        parameters: the prior.
        n: draws of each posterior.
        batch: number of posteriors, B; None for a single one.
        particles: in the cloud of each posterior, an even number; None takes ``max(1000, 100 P)``.
        effective_share: of the particles, which a step of the temperature leaves; more for smaller steps.
        seed: of everything that is random.
        device: where the particles live.
        max_calls: most rows at which the likelihood is evaluated, of all posteriors together.
        max_seconds: wall-clock budget.
        progress: whether to show a progress bar.

    Returns:
        Draws ``(n, P)``, or ``(B, n, P)`` for a batch, float64; fewer of each where a budget ended.  The diagnostics
        are numbers, or lists of B of them for a batch: ``acceptance`` (at temperature 1), ``effective_sample_size`` and
        ``r_hat`` (of the worst parameter; see `sampling.families`), ``temperatures``, ``log_evidence``,
        ``log_evidence_error``, ``converged`` and ``verdict``; and ``likelihood_calls``, one number.

    Raises:
        UsageError: an argument has a value that it cannot have.
        ShapeError, NonFiniteError: the likelihood gives no log-densities.
        ConvergenceError: an observation is impossible under the prior, or its likelihood too narrow for it.
        BudgetError: a budget ended before all posteriors were reached.
    """
    wanted = positive_integer(n, "n")
    count = 1 if batch is None else positive_integer(batch, "batch")
    size = _particles(particles, len(parameters))
    if not 0 < effective_share < 1:
        raise UsageError(f"effective_share: expected a number between 0 and 1, got {effective_share!r}")
    where = resolve_device(device)
    likelihood = log_likelihood if batch is not None else _of_one(log_likelihood)
    evaluate = Evaluation(likelihood, parameters, max_calls, max_seconds)
    random = torch.Generator(where).manual_seed(derive(seed, "smc"))
    run: Annealing | None = None
    try:
        clouds, families, log_share, variance = prior_clouds(evaluate, parameters, count, size, seed, where)
        run = Annealing(clouds, families, math.ceil(wanted / size), effective_share, evaluate, random)
        run.log_evidence += log_share
        run.variance += variance
        _advance(run, progress)
    except BudgetError:
        if run is None or not run.stop():
            raise _ended(run, evaluate.calls, max_calls, max_seconds) from None
    return _collect(run, parameters, wanted, batch is None, evaluate)


def _particles(particles: int | None, dims: int) -> int:
    if particles is None:
        return max(1000, 100 * dims)
    size = positive_integer(particles, "particles")
    least = max(20, 4 * dims)
    if size % 2 or size < least:
        raise UsageError(f"particles: expected an even number of at least {least}, got {size}")
    return size


def _of_one(log_likelihood: Callable[..., Tensor]) -> BatchedLogLikelihood:
    """Give a likelihood of rows ``(m, P)`` the signature of a batch of one."""

    def batched(theta: Tensor, observations: Tensor) -> Tensor:
        value = checked_log_density(log_likelihood(theta[0]), theta[0], "log_likelihood")
        return value.unsqueeze(0)

    return batched


def _advance(run: Annealing, progress: bool) -> None:
    total = run.copies * len(run.kept)
    with progress_bar(total, "smc", enabled=progress) as advance:
        done = 0
        while run.advance():
            kept = int(run.kept.sum())
            advance(kept - done, f"lowest temperature {float(run.temperature.min()):.2g}")
            done = kept


def _ended(run: Annealing | None, calls: int, max_calls: int | None, max_seconds: float | None) -> BudgetError:
    reached, slowest = "the prior", ""
    if run is not None:
        reached = f"temperature {float(run.temperature.min()):.2g}"
        slowest = f" of observation {int(run.temperature.argmin())}" if len(run.temperature) > 1 else ""
    return BudgetError(
        f"tempered_smc: the budget (max_calls={max_calls}, max_seconds={max_seconds}) ended at {reached}{slowest} "
        f"after {calls} likelihood calls; expected to reach temperature 1, the posterior"
    )


def _collect(run: Annealing, parameters: Parameters, n: int, single: bool, evaluate: Evaluation) -> Samples:
    kept = int(run.kept.min())
    walks = run.draws[:, :kept]
    b, _, particles, p = walks.shape
    draws = min(n, kept * particles)
    values, _ = parameters.bijection.to_support(walks.reshape(b, -1, p)[:, :draws])
    scores = scores_of_walks(walks)
    effective = family_sample_size(scores, run.families).amin(-1).clamp(max=draws)
    r_hat = group_r_hat(scores).amax(-1)
    advice = "ask for more draws or more particles"
    if draws < n:
        advice = f"the budget ended at {draws} of {n} draws"
    converged, verdict = judge(effective, r_hat, draws, advice)
    diagnostics = {
        "acceptance": plain(run.acceptance, single),
        "effective_sample_size": plain(effective, single),
        "r_hat": plain(r_hat, single),
        "temperatures": plain(run.steps, single),
        "log_evidence": plain(run.log_evidence, single),
        "log_evidence_error": plain(run.variance.sqrt(), single),
        "likelihood_calls": evaluate.calls,
        "converged": plain(converged, single),
        "verdict": plain(verdict, single),
    }
    cost = Cost(time.monotonic() - evaluate.began, 0, evaluate.calls)
    return Samples.of(values[0] if single else values, parameters, cost=cost, diagnostics=diagnostics)
