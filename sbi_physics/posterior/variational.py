r"""Variational inference with a flow, where the likelihood is known.

The flow q is moved towards the posterior of one observation by minimising

$$ E_{q(\theta)}\big[\ln q(\theta) - \ln p(\theta) - \beta \ln p(x|\theta)\big], $$

the reverse Kullback-Leibler divergence at beta = 1, with beta raised in stages from near 0, where q is the prior: modes
that the prior covers are then less easily lost (Rezende and Mohamed 2015, arXiv:1505.05770).  What is lost all the same
shows in the Pareto k of `Posterior.correct`, which makes the result exact where it can.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import as_tensor, finite, positive_integer, resolve_device
from sbi_physics.core.errors import BudgetError, ConvergenceError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.models.build import Architecture, build_density
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.flows.build import FLOWS
from sbi_physics.posterior.circles import tell_cut_circles
from sbi_physics.posterior.direct import DirectPosterior
from sbi_physics.sampling.target import posterior_target
from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.loop import train

__all__ = ["VI"]

# Inverse temperatures, and the share of the steps that each gets.
_STAGES = ((0.01, 0.1), (0.1, 0.15), (0.4, 0.15), (1.0, 0.6))
_PRIOR_DRAWS = 10_000
_STEPS_IN_EPOCH = 25
# Where the likelihood vanishes there is no gradient; the number keeps the loss finite.
_IMPOSSIBLE = -1e6


class VI:
    """Variational inference for one observation.

    Args:
        prior: `Parameters`, or any torch distribution over P numbers.
        log_likelihood: ``(theta (n, P), x (*x_shape))`` to ``(n,)``, differentiable, as
            `TractableSimulator.log_likelihood`.
        model: ``"nsf"``, ``"maf"``, ``"maf-spline"`` or ``"nsf-box"``; the couplings draw and differentiate fastest.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        learning_rate: peak in each stage.
        **options: of the named flow.
    """

    def __init__(
        self,
        prior: Any,
        log_likelihood: Callable[[Tensor, Tensor], Tensor],
        model: str = "nsf",
        device: str | torch.device = "auto",
        *,
        learning_rate: float = 5e-3,
        **options: Any,
    ) -> None:
        self.parameters = Parameters.from_prior(prior)
        if not callable(log_likelihood):
            raise UsageError(f"log_likelihood: expected a function, got {type(log_likelihood).__name__}")
        if model not in FLOWS:
            raise UsageError(f"model: expected one of {', '.join(FLOWS)}, got {model!r}")
        self.log_likelihood, self.model, self.options = log_likelihood, model, options
        self.device, self.learning_rate = resolve_device(device), learning_rate

    def fit(
        self,
        x_obs: Any,
        *,
        steps: int = 2_000,
        draws: int = 256,
        seed: int = 0,
        max_calls: int | None = None,
        max_seconds: float | None = None,
        progress: bool = True,
    ) -> DirectPosterior:
        """Fit the flow to the posterior of x_obs.

        Args:
            x_obs: the observation, handed on to the likelihood.
            steps: gradient steps, all stages together.
            draws: points at which the likelihood and its gradient are evaluated in each step.
            seed: of the initial weights and the draws.
            max_calls: most evaluations of the likelihood; fewer steps are made when it is smaller.
            max_seconds: wall-clock budget.
            progress: whether to show progress bars.

        Returns:
            A posterior for this observation alone; ``provenance["elbo"]`` is a lower bound of the log-evidence.

        Raises:
            BudgetError: the budget allows no training.
            ConvergenceError: the observation is impossible under the prior.
            NonFiniteError, ShapeError: x_obs or the likelihood are not as they should be.
        """
        tell_cut_circles(self.parameters, self.model, boxes=True)
        began, x = time.monotonic(), finite(as_tensor(x_obs, "x_obs"), "x_obs").to(self.device)
        batch, total = positive_integer(draws, "draws"), positive_integer(steps, "steps")
        if max_calls is not None:
            total = min(total, max_calls // (2 * batch))  # validation costs less than training
        if total < 20:
            raise BudgetError(f"steps: the budget allows {total} steps of {batch} draws, expected at least 20")
        architecture = Architecture(self.model, (len(self.parameters),), None, self.options, x_shape=tuple(x.shape))
        with seeded(derive(check_seed(seed), "weights")):
            density = build_density(architecture, bounds=self.parameters.bounds)
        start = self.parameters.sample(_PRIOR_DRAWS, seed=derive(seed, "prior"))
        density.fit_scaling(start).to(self.device)
        objective = _Divergence(density, self.parameters, self.log_likelihood, x, derive(seed, "validation"))
        objective.check(start[:_PRIOR_DRAWS].to(self.device))
        record = TrainingRecord()
        for i, (beta, share) in enumerate(_STAGES):
            left = None if max_seconds is None else max(max_seconds - (time.monotonic() - began), 1e-3)
            objective.beta = beta
            epochs = max(1, round(share * total / _STEPS_IN_EPOCH))
            per_epoch = max(1, min(_STEPS_IN_EPOCH, total)) * batch
            record = train(
                objective,
                objective.loss,
                [torch.zeros(round(per_epoch / 0.9), 1)],
                config=TrainConfig(
                    epochs=epochs,
                    batch_size=batch,
                    learning_rate=self.learning_rate,
                    weight_decay=0.0,
                    patience=epochs,
                    max_seconds=left,
                ),
                seed=derive(seed, "train", i),
                progress=progress,
                description=f"variational fit, beta = {beta:g}",
            )
        provenance = {
            "seed": seed,
            "likelihood_calls": objective.calls,
            "training": replace(record, seconds=time.monotonic() - began).to_dict(),
            "elbo": -record.best_validation_loss,
        }
        return DirectPosterior(self.parameters, density, architecture, provenance, x.unsqueeze(0).cpu())


class _Divergence(nn.Module):
    """The annealed divergence as a loss over rows that carry nothing: each stands for a fresh draw."""

    def __init__(
        self,
        density: ConditionalDensity,
        prior: Parameters,
        log_likelihood: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        seed: int,
    ) -> None:
        super().__init__()
        self.density, self.prior, self.seed = density, prior, seed
        self.log_likelihood, self.x = log_likelihood, x
        self.beta, self.calls = 1.0, 0

    def check(self, theta: Tensor) -> None:
        """Raise an error where the likelihood is not one, or vanishes for all draws theta ``(n, P)`` of the prior."""
        with torch.no_grad():
            value = posterior_target(self.prior, self.log_likelihood, self.x)(theta)
        self.calls += len(theta)
        if not bool(torch.isfinite(value).any()):
            raise ConvergenceError(
                f"the likelihood of x_obs is zero at all of {len(theta)} draws of the prior: the observation is "
                "impossible under it; check units, and that the prior holds the truth"
            )

    def loss(self, rows: Tensor) -> Tensor:
        """Of as many draws as there are rows: ``(n,)``; the same draws in every validation."""
        with seeded(None if self.training else self.seed, self.density.device):
            theta, log_q = self.density.rsample(len(rows))
        self.calls += len(rows)
        wide = theta.double()
        value = self.log_likelihood(wide, self.x)
        possible = torch.isfinite(value)
        value = torch.where(possible, value, _IMPOSSIBLE)
        return (log_q.double() - self.prior.log_prob(wide) - self.beta * value).float()
