r"""Make an amortised posterior better for one observation, where the likelihood is known.

Draws of the network q are weighted by $w = p(\theta)\,p(x|\theta) / q(\theta|x)$, and the network is trained further on
the weighted draws, $-\sum_i w_i \ln q(\theta_i|x)$, with x as it is; then again from the network that this gives
(population Monte Carlo: Cappé et al. 2008, arXiv:0710.4242; for networks that infer gravitational waves: Dax et al.
2023, arXiv:2210.05686).  In contrast to the reverse divergence of variational inference it needs no gradient of the
likelihood and does not lose modes.  The weights of a round are Pareto-smoothed and count with their effective number;
the round whose fresh draws are the most efficient is what is kept.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.core.errors import BudgetError, ConvergenceError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.weights import importance_efficiency, pareto_smooth
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.density import train_density

__all__ = ["Refined", "refine_density"]

_EPOCHS, _PATIENCE, _LEARNING_RATE = 12, 3, 3e-3
_LEAST_EFFECTIVE = 10.0


@dataclass(frozen=True)
class Refined:
    """A density for one observation.

    Attributes:
        density: the best.
        efficiency: of the importance weights of each round, those of the density it began with first.
        pareto_k: of the same.
        calls: evaluations of the target.
    """

    density: ConditionalDensity
    efficiency: list[float]
    pareto_k: list[float]
    calls: int


def refine_density(
    density: ConditionalDensity,
    context: Tensor | None,
    target: Callable[[Tensor], Tensor],
    *,
    rounds: int,
    draws: int,
    enough: float,
    seed: int,
    max_calls: int | None = None,
    max_seconds: float | None = None,
    progress: bool = True,
) -> Refined:
    """Train a copy of a density on its own draws, weighted towards a target, in rounds.

    Args:
        density: what to begin with.
        context: the one it is conditioned on ``(*context_shape)``, or None.
        target: log-density, not necessarily normalised, of theta ``(n, P)``: ``(n,)``.
        rounds: trainings at most.
        draws: in each round.
        enough: efficiency with which it ends.
        seed: of draws and trainings.
        max_calls: evaluations of the target at most.
        max_seconds: wall-clock budget, looked at between rounds.
        progress: whether to show a progress bar.

    Raises:
        ConvergenceError: hardly a draw has any weight.
        BudgetError: the budget does not allow a first round.
    """
    began, calls = time.monotonic(), 0
    current, best = density, density
    efficiency: list[float] = []
    shapes: list[float] = []
    pool: list[tuple[Tensor, Tensor]] = []
    with progress_bar(rounds, "refining", enabled=progress) as advance:
        for number in range(rounds + 1):
            late = max_seconds is not None and time.monotonic() - began > max_seconds
            if late or (max_calls is not None and calls + draws > max_calls):
                break
            theta, log_q = current.sample_and_log_prob(draws, context, seed=derive(seed, "draws", number))
            log_weights = target(theta).double().cpu() - log_q.double().cpu()
            calls += draws
            found, shape, weights = _judged(log_weights)
            efficiency.append(found)
            shapes.append(shape)
            if found >= max(efficiency):
                best = current
            advance(0 if number == 0 else 1, f"efficiency {found:.1%}, Pareto k {shape:.2f}")
            if number == rounds or max(efficiency) >= enough:
                break
            pool.append((theta, weights))
            current = _trained(best, context, pool, derive(seed, "train", number))
    if not efficiency:
        raise BudgetError(f"refine: the budget does not allow the {draws} draws of a first round")
    return Refined(best, efficiency, shapes, calls)


def _judged(log_weights: Tensor) -> tuple[float, float, Tensor]:
    """Efficiency, Pareto k and smoothed weights, which add up to their effective number."""
    if not bool(torch.isfinite(log_weights).any()):
        raise ConvergenceError(f"refine: none of {len(log_weights)} draws has a finite posterior density")
    smoothed, shape = pareto_smooth(log_weights)
    weights = torch.exp(smoothed - smoothed.logsumexp(0))
    effective = float(1 / weights.square().sum())
    if effective < _LEAST_EFFECTIVE:
        raise ConvergenceError(
            f"refine: {len(log_weights)} draws are worth {effective:.1f}, expected at least {_LEAST_EFFECTIVE:.0f}: "
            "make more draws, or train the network with more simulations"
        )
    return float(importance_efficiency(log_weights)), float(shape), effective * weights


def _trained(
    density: ConditionalDensity, context: Tensor | None, pool: list[tuple[Tensor, Tensor]], seed: int
) -> ConditionalDensity:
    """A copy of the density, trained on all draws so far."""
    trained = copy.deepcopy(density)
    theta, weights = (torch.cat(parts) for parts in zip(*pool, strict=True))
    kept = weights > 0
    encoded, _ = trained.encode(theta[kept])
    data = [encoded.detach()]
    if context is not None:
        scaled = trained.context_scaling(context.unsqueeze(0)).detach()
        data.append(scaled.expand(len(encoded), *scaled.shape[1:]))
    config = TrainConfig(epochs=_EPOCHS, patience=_PATIENCE, learning_rate=_LEARNING_RATE)
    train_density(trained, data, weights=weights[kept].float(), config=config, seed=seed, progress=False)
    return trained
