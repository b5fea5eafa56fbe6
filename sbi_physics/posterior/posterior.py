"""`Posterior`: what every way of inference gives, and its way towards the exact answer."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import as_tensor, finite, known_keys
from sbi_physics.core.errors import ConvergenceError, ShapeError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.samples import Cost, Samples
from sbi_physics.models.build import Architecture
from sbi_physics.posterior.observation import Observation, read_observation
from sbi_physics.posterior.simulated import SimulatedCloud
from sbi_physics.sampling.importance import Proposal, importance_sample
from sbi_physics.sampling.independence import independence_metropolis
from sbi_physics.sampling.target import checked_log_density, posterior_target
from sbi_physics.store.models import write_model
from sbi_physics.train.encoding import packing_of

__all__ = ["Posterior"]

X_OBS = "x_obs"

_LEAST_ACCEPTANCE = 0.1


@dataclass(frozen=True, repr=False)
class Posterior(ABC):
    """What is known of the parameters, given an observation.

    Attributes:
        parameters: names, units, bounds and prior.
        model: the trained network.
        architecture: how the network is built again from a file.
        provenance: what it was trained on and how training went.
        x_obs: ``(1, *x_shape)``, the only observation that this posterior is for; None where it serves any.
        simulated: where the simulations of the training lie; an observation far from them is answered with a warning
            in the log of the package, once.  None where it is not known.
    """

    KIND: ClassVar[str]
    # Whether several independent observations of one theta can be joined.
    JOINS: ClassVar[bool]

    parameters: Parameters
    model: nn.Module
    architecture: Architecture
    provenance: dict[str, Any] = field(default_factory=dict)
    x_obs: Tensor | None = None
    simulated: SimulatedCloud | None = None

    @abstractmethod
    def sample(
        self, n: int, x_obs: Any = None, *, iid: bool = False, seed: int = 0, max_seconds: float | None = None
    ) -> Samples:
        """Draw n points of the posterior; none is ever outside the prior.

        Args:
            n: draws for each observation.
            x_obs: ``x_shape`` or ``(1, *x_shape)`` for one observation, which gives values ``(n, P)``;
                ``(B, *x_shape)`` for B separate observations, which gives ``(B, n, P)``.  None where the posterior is
                for one observation only.
            iid: whether x_obs ``(k, *x_shape)`` holds k independent observations of one theta.
            seed: of the draws.
            max_seconds: wall-clock budget of methods that iterate.

        Raises:
            ShapeError, NonFiniteError: x_obs has another shape, or holds NaN or infinity.
            BudgetError: the budget ended before there was a result.
        """

    @abstractmethod
    def log_prob(self, theta: Any, x_obs: Any = None, *, iid: bool = False) -> Tensor:
        """Log-density in nats of theta ``(*, P)`` given x_obs; minus infinity outside the prior.

        With B separate observations, the axis before the last of theta is broadcast against B.

        Raises:
            ShapeError, NonFiniteError: the shapes do not fit, or an array holds NaN or infinity.
        """

    @abstractmethod
    def _proposal(self, observation: Observation, seed: int) -> Proposal:
        """Draws of one observation with their log-density, as the samplers want them."""

    def __repr__(self) -> str:
        members, model = self.architecture.members, self.architecture.model
        networks = model if members == 1 else f"an ensemble of {members} {model}"
        simulations = self.provenance.get("simulations")
        trained = f", trained on {simulations:,} simulations" if simulations else ""
        given = f"x of shape {self.x_shape}" if self.x_obs is None else f"one x of shape {self.x_shape}"
        return f"{type(self).__name__}({self.parameters} given {given}: {networks}{trained})"

    @property
    @abstractmethod
    def encoder(self) -> nn.Module | None:
        """What observations go through first."""

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        return self.architecture.observed_shape

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        # A kernel density estimate has buffers alone.
        return next(chain(self.model.parameters(), self.model.buffers())).device

    def correct(
        self,
        log_likelihood: Callable[[Tensor, Tensor], Tensor],
        x_obs: Any = None,
        n: int = 10_000,
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
            x_obs: one observation, or several of one theta where the posterior can join them.
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
        observation = self._observation(x_obs, iid=True)

        def joint(theta: Tensor, x: Tensor) -> Tensor:
            each = [checked_log_density(log_likelihood(theta, one), theta, "log_likelihood") for one in x]
            return torch.stack(each).sum(0)

        target = posterior_target(self.parameters, joint, observation.x)
        budget: dict[str, Any] = {"seed": seed, "max_calls": max_calls, "max_seconds": max_seconds}
        proposal = self._proposal(observation, seed)
        log_weights: Tensor | None = None
        if method == "importance":
            values, log_weights, numbers = importance_sample(proposal, target, n, max_pareto_k=max_pareto_k, **budget)
        else:
            values, numbers = independence_metropolis(proposal, target, n, **budget)
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
        write_model(path, *self.parts())

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file keeps of it: tensors, and a header in types that JSON knows."""
        tensors = dict(self.model.state_dict())
        if self.x_obs is not None:
            tensors[X_OBS] = self.x_obs
        if self.simulated is not None:
            tensors |= self.simulated.tensors()
        header = {
            "kind": self.KIND,
            "parameters": self.parameters.to_dict(),
            "architecture": self.architecture.to_dict(),
            "provenance": self.provenance,
        }
        return tensors, header

    def _observation(self, x_obs: Any, *, iid: bool) -> Observation:
        """Read x_obs, or take the observation that this posterior is for."""
        given = self.x_obs if x_obs is None else x_obs
        observation = read_observation(
            given, self.x_shape, iid=iid, joined=self.JOINS, device=self.device, encoder=self.encoder
        )
        if self.x_obs is not None and not _same(observation.x, self.x_obs):
            raise UsageError("x_obs: this posterior was fitted for one observation and knows nothing of others")
        if self.simulated is not None:
            self.simulated.warn(observation.x, packing_of(self.encoder))
        return observation

    def _points(self, theta: Any, observation: Observation) -> Tensor:
        """Check theta ``(*, P)`` against the observations."""
        # A tensor keeps its graph.
        values = theta.to(torch.float32) if isinstance(theta, Tensor) else as_tensor(theta, "theta")
        rows = finite(values, "theta").to(self.device)
        self.parameters.check_width(rows)
        count, dims = len(observation.x), len(self.parameters)
        if observation.batched and rows.ndim > 1 and rows.shape[-2] not in (1, count):
            raise ShapeError(
                f"theta: expected shape (*, {count}, {dims}) or (*, 1, {dims}) for {count} observations, "
                f"got {tuple(rows.shape)}"
            )
        return rows


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two observations are equal; missing entries equal one another."""
    return first.shape == second.shape and bool(torch.isclose(first.cpu(), second.cpu(), 0.0, 0.0, True).all())
