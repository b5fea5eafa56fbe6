"""`Posterior`: the learned p(theta | x), and its way towards the exact one."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, known_keys, positive_integer
from sbi_physics.core.errors import ConvergenceError, ShapeError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive
from sbi_physics.core.samples import Cost, Samples
from sbi_physics.models.build import Architecture
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.posterior.observation import read_observation
from sbi_physics.sampling.importance import importance_sample
from sbi_physics.sampling.independence import independence_metropolis
from sbi_physics.sampling.target import posterior_target
from sbi_physics.store.models import write_model

__all__ = ["Posterior"]

_LEAST_ACCEPTANCE = 0.1


@dataclass(frozen=True)
class Posterior:
    """An amortised posterior: one network for all observations.

    Attributes:
        parameters: names, units, bounds and prior.
        density: q(theta | x), normalised on the support of the prior.
        architecture: how the network is built again from a file.
        provenance: what it was trained on and how training went.
    """

    KIND: ClassVar[str] = "posterior"

    parameters: Parameters
    density: ConditionalDensity
    architecture: Architecture
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        members, model = self.architecture.members, self.architecture.model
        flows = model if members == 1 else f"an ensemble of {members} {model}"
        simulations = self.provenance.get("simulations")
        trained = f", trained on {simulations:,} simulations" if simulations else ""
        return f"Posterior({self.parameters} given x of shape {self.x_shape}: {flows}{trained})"

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        return tuple(self.density.context_shape)

    def sample(
        self, n: int, x_obs: Any, *, iid: bool = False, seed: int = 0, max_seconds: float | None = None
    ) -> Samples:
        """Draw n points of the posterior; none is ever outside the prior, and there is no rejection loop.

        Args:
            n: draws for each observation.
            x_obs: ``x_shape`` or ``(1, *x_shape)`` for one observation, which gives values ``(n, P)``;
                ``(B, *x_shape)`` for B separate observations, which gives ``(B, n, P)``.
            iid: whether x_obs holds independent observations of one theta.
            seed: of the draws.
            max_seconds: accepted for the sake of methods that iterate; drawing from a flow takes a fixed time.

        Raises:
            ShapeError, NonFiniteError: x_obs has another shape, or holds NaN or infinity.
        """
        began = time.monotonic()
        observation = read_observation(x_obs, self.x_shape, iid=iid, device=self.density.device)
        theta = self.density.sample(positive_integer(n, "n"), observation.x, seed=seed).movedim(0, 1)
        values = theta if observation.batched else theta[0]
        return Samples.of(values, self.parameters, cost=Cost(time.monotonic() - began))

    @torch.no_grad()
    def log_prob(self, theta: Any, x_obs: Any, *, iid: bool = False) -> Tensor:
        """Log-density in nats of theta ``(*, P)`` given x_obs; minus infinity outside the prior.

        With B separate observations, the axis before the last of theta is broadcast against B.

        Raises:
            ShapeError, NonFiniteError: the shapes do not fit, or an array holds NaN or infinity.
        """
        observation = read_observation(x_obs, self.x_shape, iid=iid, device=self.density.device)
        rows = finite(as_tensor(theta, "theta"), "theta").to(self.density.device)
        self.parameters.check_width(rows)
        x = observation.x if observation.batched else observation.x[0]
        if observation.batched and rows.ndim > 1 and rows.shape[-2] not in (1, len(x)):
            raise ShapeError(
                f"theta: expected shape (*, {len(x)}, {len(self.parameters)}) or (*, 1, {len(self.parameters)}) for "
                f"{len(x)} observations, got {tuple(rows.shape)}"
            )
        return self.density.log_prob(rows, x)

    def correct(
        self,
        log_likelihood: Callable[[Tensor, Tensor], Tensor],
        x_obs: Any,
        n: int,
        method: Literal["importance", "mcmc"] = "importance",
        *,
        seed: int = 0,
        max_calls: int | None = None,
        max_seconds: float | None = None,
        max_pareto_k: float = 0.7,
    ) -> Samples:
        """Move the learned posterior of one observation to the exact one, using the likelihood where it is known.

        ``"importance"`` weights n draws of the network (Pareto-smoothed; see `sampling.importance`); the result has
        log-weights and the diagnostics ``efficiency``, ``pareto_k`` and ``log_evidence``.  ``"mcmc"`` runs Metropolis
        chains that propose from the network; the result has equal weights and the diagnostic ``acceptance``.

        Args:
            log_likelihood: ``(theta (n, P), x (*x_shape))`` to ``(n,)``, as `TractableSimulator.log_likelihood`.
            x_obs: one observation.
            n: number of draws.
            method: how.
            seed: of the draws.
            max_calls: most evaluations of the likelihood.
            max_seconds: wall-clock budget.
            max_pareto_k: the largest Pareto k of the weights that is accepted.

        Raises:
            ConvergenceError: the network is too far from the exact posterior to be corrected; the message says how far.
            BudgetError: the budget ended before there was a result.
        """
        known_keys([method], ["importance", "mcmc"], "method")
        began = time.monotonic()
        observation = read_observation(x_obs, self.x_shape, iid=True, device=self.density.device)
        target = posterior_target(self.parameters, log_likelihood, observation.x[0])

        def proposal(count: int, seed: int, /) -> tuple[Tensor, Tensor]:
            return self.density.sample_and_log_prob(count, observation.x[0], seed=derive(seed, "posterior"))

        log_weights: Tensor | None = None
        if method == "importance":
            values, log_weights, numbers = importance_sample(
                proposal,
                target,
                n,
                seed=seed,
                max_calls=max_calls,
                max_seconds=max_seconds,
                max_pareto_k=max_pareto_k,
            )
        else:
            values, numbers = independence_metropolis(
                proposal, target, n, seed=seed, max_calls=max_calls, max_seconds=max_seconds
            )
            # Chains that only ever climb accept one in k proposals at step k, which looks like slow mixing and is none.
            if numbers["acceptance"] < _LEAST_ACCEPTANCE:
                raise ConvergenceError(
                    f"only {numbers['acceptance']:.1%} of the proposals are accepted, expected at least "
                    f"{_LEAST_ACCEPTANCE:.0%}: the learned posterior is too far from the exact one; train it with more "
                    "simulations, or run mcmc from scratch"
                )
        cost = Cost(time.monotonic() - began, 0, int(numbers.pop("likelihood_calls")))
        return Samples.of(values, self.parameters, log_weights=log_weights, cost=cost, diagnostics=dict(numbers))

    def save(self, path: str | Path) -> None:
        """Write the posterior to a safetensors file; `sp.load` reads it back."""
        header = {
            "kind": self.KIND,
            "parameters": self.parameters.to_dict(),
            "architecture": self.architecture.to_dict(),
            "provenance": self.provenance,
        }
        write_model(path, self.density.state_dict(), header)
