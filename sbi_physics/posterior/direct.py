"""`DirectPosterior`: a network that is the posterior density itself."""

import time
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.random import derive
from sbi_physics.core.samples import Cost, Samples
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.posterior.observation import Observation
from sbi_physics.posterior.posterior import Posterior
from sbi_physics.sampling.importance import Proposal

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

    def _proposal(self, observation: Observation, seed: int) -> Proposal:
        context = observation.x[0] if self.density.conditional else None

        def proposal(count: int, seed: int, /) -> tuple[Tensor, Tensor]:
            return self.density.sample_and_log_prob(count, context, seed=derive(seed, "posterior"))

        return proposal
