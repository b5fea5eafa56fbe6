"""`DirectPosterior`: a network that is the posterior density itself."""

import time
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.random import check_seed, derive
from sbi_physics.core.samples import Cost, Samples
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.posterior.observation import Observation
from sbi_physics.posterior.posterior import Posterior
from sbi_physics.posterior.refinement import refine_density
from sbi_physics.sampling.importance import Proposal
from sbi_physics.sampling.target import posterior_target

__all__ = ["DirectPosterior"]


class DirectPosterior(Posterior):
    """q(theta | x), normalised on the support of the prior; or q(theta) for one observation."""

    KIND: ClassVar[str] = "posterior"
    JOINS: ClassVar[bool] = False

    @property
    def density(self) -> ConditionalDensity:
        """The conditional density of theta."""
        return cast(ConditionalDensity, self.model)

    @property
    def encoder(self) -> nn.Module | None:
        """What observations go through first."""
        return self.density.embedding

    def sample(
        self, n: int, x_obs: Any = None, *, iid: bool = False, seed: int = 0, max_seconds: float | None = None
    ) -> Samples:
        """Draw n points for each observation, in a fixed time; see `Posterior.sample`."""
        began = time.monotonic()
        observation = self._observation(x_obs, iid=iid)
        positive_integer(n, "n")
        if not self.density.conditional:
            values = self.density.sample(n, seed=seed)
        else:
            theta = self.density.sample(n, observation.x, seed=seed).movedim(0, 1)
            values = theta if observation.batched else theta[0]
        return Samples.of(values, self.parameters, cost=Cost(time.monotonic() - began))

    @torch.no_grad()
    def log_prob(self, theta: Any, x_obs: Any = None, *, iid: bool = False) -> Tensor:
        """Log-density in nats of theta ``(*, P)``; see `Posterior.log_prob`."""
        observation = self._observation(x_obs, iid=iid)
        rows = self._points(theta, observation)
        if not self.density.conditional:
            return self.density.log_prob(rows)
        return self.density.log_prob(rows, observation.x if observation.batched else observation.x[0])

    def refine(
        self,
        log_likelihood: Callable[[Tensor, Tensor], Tensor],
        x_obs: Any = None,
        *,
        rounds: int = 5,
        draws: int = 10_000,
        enough: float = 0.5,
        seed: int = 0,
        max_calls: int | None = None,
        max_seconds: float | None = None,
        progress: bool = True,
    ) -> "DirectPosterior":
        """Train the network further for one observation whose likelihood is known; see `posterior.refinement`.

        The result is still an approximation: `correct` makes it exact, from fewer draws.

        Args:
            log_likelihood: ``(theta (n, P), x (*x_shape))`` to ``(n,)``, as for `correct`.
            x_obs: the observation.
            rounds: trainings at most.
            draws: draws of each round, at each of which the likelihood is evaluated.
            enough: efficiency of the importance weights with which it ends.
            seed: of draws and trainings.
            max_calls: evaluations of the likelihood at most.
            max_seconds: wall-clock budget, looked at between rounds.
            progress: whether to show a progress bar.

        Returns:
            A posterior for this observation alone; ``provenance["refined"]`` has the efficiency and the Pareto k of the
            weights of each round.

        Raises:
            ConvergenceError: hardly a draw of the network has any weight.
            BudgetError: the budget does not allow a first round.
        """
        observation = self._observation(x_obs, iid=False)
        if observation.batched:
            raise ShapeError(f"x_obs: expected one observation, got {len(observation.x)}")
        found = refine_density(
            self.density,
            observation.x[0] if self.density.conditional else None,
            posterior_target(self.parameters, log_likelihood, observation.x[0]),
            rounds=positive_integer(rounds, "rounds"),
            draws=positive_integer(draws, "draws"),
            enough=enough,
            seed=check_seed(seed),
            max_calls=max_calls,
            max_seconds=max_seconds,
            progress=progress,
        )
        said = {"efficiency": found.efficiency, "pareto_k": found.pareto_k, "likelihood_calls": found.calls}
        provenance = {**self.provenance, "refined": said}
        return DirectPosterior(self.parameters, found.density, self.architecture, provenance, observation.x.cpu())

    def _proposal(self, observation: Observation, seed: int) -> Proposal:
        context = observation.x[0] if self.density.conditional else None

        def proposal(count: int, seed: int, /) -> tuple[Tensor, Tensor]:
            return self.density.sample_and_log_prob(count, context, seed=derive(seed, "posterior"))

        return proposal
