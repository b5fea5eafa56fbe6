"""One pass over simulated pairs: the posterior draws that every check of calibration looks at."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive
from sbi_physics.core.samples import Samples
from sbi_physics.core.validity import Failed, Rows, select_rows, select_valid

__all__ = ["PosteriorDraws", "posterior_draws"]

_NUMBERS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class PosteriorDraws:
    """Posterior draws for N pairs of theta and x.

    Attributes:
        theta: ``(N, P)`` true parameters.
        samples: ``(N, L, P)`` draws, on the CPU.
        names: P names; None where the posterior gives none.
        log_prob_samples: ``(N, K)`` log-densities in nats of the first K draws; None where they were not asked for.
        log_prob_theta: ``(N,)`` log-densities of the true parameters, or None.
        failed: simulations that were left out.
    """

    theta: Tensor
    samples: Tensor
    names: tuple[str, ...] | None = None
    log_prob_samples: Tensor | None = None
    log_prob_theta: Tensor | None = None
    failed: int = 0


def posterior_draws(
    posterior: Any,
    theta: Any,
    x: Any,
    *,
    draws: int = 256,
    log_prob: bool = False,
    density_draws: int | None = None,
    seed: int = 0,
    chunk: int | None = None,
    failed: Failed = "refuse",
    missing: bool = False,
    progress: bool = False,
) -> PosteriorDraws:
    """Sample a posterior for each of many simulated observations, in batches.

    Args:
        posterior: has ``sample(n, x_obs, seed=...)`` that gives draws ``(B, n, P)`` for B observations.
        theta: ``(N, P)`` drawn from the prior.
        x: ``(N, *x_shape)`` simulated from theta, or a dictionary of such.
        draws: posterior draws for each pair, L.
        log_prob: whether to evaluate the density too: ``posterior.log_prob(theta, x_obs)``.
        density_draws: of how many draws, K; None evaluates all.
        seed: of the draws.
        chunk: observations that are sampled together; None takes as many as make a million numbers.
        failed: ``"refuse"`` raises where a simulation failed, ``"drop"`` leaves it out.
        missing: whether NaN marks missing entries of x that the posterior can handle.
        progress: whether to show a bar.

    Raises:
        ShapeError: the shapes do not fit.
        NonFiniteError: a simulation failed and is to be refused.
        UsageError: the posterior gives weighted draws, or `failed` is another word.
    """
    truth, rows, left = select_valid(theta, x, failed=failed, missing=missing)
    if truth.ndim != 2:
        raise ShapeError(f"theta: expected shape (N, P), got {tuple(truth.shape)}")
    positive_integer(draws, "draws")
    evaluated = draws if density_draws is None else min(draws, positive_integer(density_draws, "density_draws"))
    size = _chunk(truth, rows, draws) if chunk is None else positive_integer(chunk, "chunk")
    parts: list[PosteriorDraws] = []
    with progress_bar(len(truth), "posterior draws", enabled=progress) as advance:
        for i, start in enumerate(range(0, len(truth), size)):
            block = slice(start, start + size)
            observed, at = select_rows(rows, block), truth[block]
            part = _sampled(posterior, at, observed, draws, derive(seed, "block", i))
            parts.append(_evaluated(posterior, part, observed, evaluated) if log_prob else part)
            advance(len(at))
    return PosteriorDraws(
        truth,
        torch.cat([part.samples for part in parts]),
        parts[0].names,
        torch.cat([part.log_prob_samples for part in parts]) if log_prob else None,  # type: ignore[misc]
        torch.cat([part.log_prob_theta for part in parts]) if log_prob else None,  # type: ignore[misc]
        left,
    )


def _chunk(theta: Tensor, x: Rows, draws: int) -> int:
    """Observations whose draws, and whose own numbers, stay below the bound."""
    tensors = x.values() if isinstance(x, dict) else [x]
    numbers = max(draws * theta.shape[-1], *(tensor[:1].numel() for tensor in tensors), 1)
    return max(1, _NUMBERS_AT_ONCE // numbers)


def _sampled(posterior: Any, theta: Tensor, x: Rows, draws: int, seed: int) -> PosteriorDraws:
    result, names = posterior.sample(draws, x, seed=seed), None
    if isinstance(result, Samples):
        if result.log_weights is not None:
            raise UsageError("posterior: expected equally weighted draws, got draws with weights; resample them first")
        names, result = result.names, result.values
    values = as_tensor(result, "posterior draws", dtype=None).cpu()
    if values.shape[:-1] == (draws,) and len(theta) == 1:  # one observation comes without their axis
        values = values.unsqueeze(0)
    batch_of(values, (draws, theta.shape[-1]), "posterior draws")
    if len(values) != len(theta):
        raise ShapeError(f"posterior draws: expected draws for {len(theta)} observations, got {len(values)}")
    return PosteriorDraws(theta, values, names)


def _evaluated(posterior: Any, part: PosteriorDraws, x: Rows, draws: int) -> PosteriorDraws:
    """Add the log-densities of some draws: theta ``(*, B, P)`` against B observations gives ``(*, B)``."""
    some = part.samples[:, :draws].movedim(0, 1)
    inside = as_tensor(posterior.log_prob(some, x), "posterior log_prob", dtype=torch.float64)
    truth = as_tensor(posterior.log_prob(part.theta, x), "posterior log_prob", dtype=torch.float64)
    rows = len(part.samples)
    batch_of(inside, (rows,), "posterior log_prob", minimum=draws)
    return replace(part, log_prob_samples=inside.cpu().T, log_prob_theta=truth.cpu().reshape(rows))
