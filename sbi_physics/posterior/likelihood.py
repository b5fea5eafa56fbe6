r"""`LikelihoodPosterior`: the prior times a learned likelihood, drawn from by a sampler.

With k independent observations of one theta the likelihoods multiply and the prior counts once,

$$ p(\theta | x_1 \ldots x_k) \propto p(\theta) \prod_i q(x_i|\theta)\, p(\mathrm{success}|\theta), $$

where the last factor is there if simulations failed.  A likelihood-to-evidence ratio may stand in for q.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.core.random import derive
from sbi_physics.core.samples import Samples
from sbi_physics.models.likelihood import LearnedLikelihood
from sbi_physics.models.ratio import RatioEstimator
from sbi_physics.models.success import SuccessProbability
from sbi_physics.posterior.observation import Observation
from sbi_physics.posterior.posterior import Posterior
from sbi_physics.sampling.annealed_hmc import annealed_hmc
from sbi_physics.sampling.importance import Proposal
from sbi_physics.sampling.smc import tempered_smc

__all__ = ["LikelihoodModel", "LikelihoodPosterior"]

_POOL = 10_000
_SAMPLERS: dict[str, tuple[Callable[..., Samples], tuple[str, ...]]] = {
    "smc": (tempered_smc, ("particles", "effective_share")),
    "hmc": (annealed_hmc, ("particles", "chains", "warmup", "dense", "acceptance")),
}
"""What draws, and the options that a user may set."""


class LikelihoodModel(nn.Module):
    """A learned likelihood or ratio, with the probability of success where simulations failed.

    Args:
        likelihood: of the simulations that succeeded.
        success: of a simulation, or None.
    """

    def __init__(
        self, likelihood: LearnedLikelihood | RatioEstimator, success: SuccessProbability | None = None
    ) -> None:
        super().__init__()
        self.likelihood = likelihood
        self.success = success

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log-likelihood of observations x ``(m, *x_shape)`` at theta ``(n, P)``, a multiple of m: ``(n,)``."""
        value = self.likelihood.log_likelihood(theta, x)
        return value if self.success is None else value + self.success.log_prob(theta)


@dataclass(frozen=True, repr=False)
class LikelihoodPosterior(Posterior):
    """Prior times learned likelihood; `log_prob` is known up to the evidence of each observation.

    Attributes:
        method: how it is drawn from, ``"smc"`` or ``"hmc"``, see `with_sampler`.
        sampler: options of that.
    """

    KIND: ClassVar[str] = "likelihood"
    JOINS: ClassVar[bool] = True

    method: str = "smc"
    sampler: dict[str, Any] = field(default_factory=dict)

    def with_sampler(self, method: Literal["smc", "hmc"] = "smc", **options: Any) -> "LikelihoodPosterior":
        """The same posterior, drawn from in another way.

        Args:
            method: ``"smc"``, a cloud annealed from the prior, which needs no gradient; or ``"hmc"``, Hamiltonian
                chains that start at such a cloud, for many parameters.
            **options: of ``"smc"``: particles, effective_share (`sampling.smc.tempered_smc`); of ``"hmc"``: particles,
                chains, warmup, dense, acceptance (`sampling.annealed_hmc`).

        Raises:
            UsageError: the method or an option is not known.
        """
        known_keys([method], list(_SAMPLERS), "method of the sampler")
        known_keys(list(options), _SAMPLERS[method][1], f"option of the sampler {method!r}")
        return replace(self, method=method, sampler=options)

    @property
    def likelihood(self) -> LearnedLikelihood | RatioEstimator:
        """What was learned of the simulations that succeeded."""
        return cast(LikelihoodModel, self.model).likelihood

    @property
    def encoder(self) -> nn.Module | None:
        """What observations go through first: of a ratio its embedding."""
        likelihood = cast(LikelihoodModel, self.model).likelihood
        return likelihood.embedding if isinstance(likelihood, RatioEstimator) else None

    def log_likelihood(self, theta: Tensor, x_obs: Any, *, iid: bool = True) -> Tensor:
        """The learned log-likelihood of theta ``(*, P)``, differentiable; see `log_prob` for the shapes.

        A ratio gives it up to a constant of each observation.
        """
        observation = self._observation(x_obs, iid=iid)
        return self._joined(self._points(theta, observation), observation)

    def _joined(self, theta: Tensor, observation: Observation) -> Tensor:
        """Theta ``(*, P)``, or ``(*, B, P)`` for B separate observations, to ``(*)`` or ``(*, B)``."""
        model, x = cast(LikelihoodModel, self.model), observation.x
        points = theta if observation.batched else theta.unsqueeze(-2)
        shape = torch.broadcast_shapes(points.shape[:-1], x.shape[:1])
        rows = points.expand(*shape, theta.shape[-1]).reshape(-1, theta.shape[-1])
        value = model.log_likelihood(rows, x).reshape(shape)
        return value if observation.batched else value.sum(-1)

    @torch.no_grad()
    def log_prob(self, theta: Any, x_obs: Any = None, *, iid: bool = False) -> Tensor:
        """Log-density of theta ``(*, P)`` up to the log-evidence of each observation; see `Posterior.log_prob`."""
        observation = self._observation(x_obs, iid=iid)
        rows = self._points(theta, observation)
        prior = self.parameters.log_prob(rows)
        inside = torch.isfinite(prior)
        centre = self.parameters.bijection.interior.to(rows)
        value = self._joined(torch.where(inside.unsqueeze(-1), rows, centre), observation)
        return torch.where(inside, prior + value, -torch.inf)

    def sample(
        self, n: int, x_obs: Any = None, *, iid: bool = False, seed: int = 0, max_seconds: float | None = None
    ) -> Samples:
        """Draw n points by the sampler, tempered sequential Monte Carlo unless stated; see `Posterior.sample`.

        The diagnostics are those of the sampler: acceptance, effective sample size, R-hat, log-evidence, a verdict.
        """
        observation = self._observation(x_obs, iid=iid)
        return self._drawn(positive_integer(n, "n"), observation, seed, max_seconds)

    def _drawn(self, n: int, observation: Observation, seed: int, max_seconds: float | None = None) -> Samples:
        x, batched = observation.x, observation.batched

        def log_likelihood(theta: Tensor, which: Tensor | None = None) -> Tensor:
            """Theta ``(m, P)``, or ``(A, m, P)`` for the observations `which` ``(A,)``."""
            if which is None:
                return self._joined(theta, observation)
            return self._joined(theta.movedim(0, 1), Observation(x[which], True)).movedim(0, 1)

        return _SAMPLERS[self.method][0](
            log_likelihood,
            self.parameters,
            n,
            batch=len(x) if batched else None,
            seed=seed,
            device=self.device,
            max_seconds=max_seconds,
            **self.sampler,
        )

    def _proposal(self, observation: Observation, seed: int) -> Proposal:
        return _Pool(lambda n, seed: self._drawn(n, observation, seed), lambda theta: self._target(theta, observation))

    @torch.no_grad()
    def _target(self, theta: Tensor, observation: Observation) -> Tensor:
        return self.parameters.log_prob(theta.double()).double() + self._joined(theta, observation).double()


@dataclass
class _Pool:
    """Draws of a sampler as a proposal: made in stock, handed out once each."""

    draw: Callable[[int, int], Samples]
    target: Callable[[Tensor], Tensor]
    values: Tensor | None = None
    log_evidence: float = 0.0

    def __call__(self, n: int, seed: int, /) -> tuple[Tensor, Tensor]:
        if self.values is None or len(self.values) < n:
            samples = self.draw(max(n, _POOL), derive(seed, "pool"))
            shuffled = samples.resample(len(samples), seed=derive(seed, "order"), replace=False)
            self.values = shuffled.values
            self.log_evidence = float(samples.diagnostics["log_evidence"])
        theta, self.values = self.values[:n], self.values[n:]
        return theta, self.target(theta) - self.log_evidence
