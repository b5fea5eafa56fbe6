"""Compare a learned posterior with MCMC on the exact likelihood, for one observation.

Three answers to the same question: the network alone (``npe``), the network corrected by importance sampling
(``corrected``), and emcee (``mcmc``), each as equally weighted draws, with what each cost and how far it is from MCMC.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ConvergenceError, ShapeError, UsageError
from sbi_physics.core.progress import progress_bar
from sbi_physics.core.protocols import Simulator, TractableSimulator
from sbi_physics.core.random import derive
from sbi_physics.core.resources import cores
from sbi_physics.core.samples import Samples
from sbi_physics.diagnostics.two_sample import c2st
from sbi_physics.posterior.observation import read_observation
from sbi_physics.posterior.posterior import Posterior
from sbi_physics.sampling.mcmc import mcmc
from sbi_physics.sampling.target import posterior_target

__all__ = ["Comparison", "compare"]

_PROPOSALS_PER_DRAW = 10


@dataclass(frozen=True)
class Comparison:
    """Draws of each method, and figures of merit.

    Attributes:
        samples: ``npe``, ``corrected`` and ``mcmc``, n equally weighted draws each; ``corrected`` has distinct ones.
        c2st: of ``npe`` and ``corrected`` against ``mcmc``; 0.5 is perfect.
        importance_efficiency: effective sample size of the raw importance weights over the number of proposals.
        pareto_k: shape of the weights; below 0.7 they can be trusted.
        log_evidence: of the observation, with its error, in nats.
        mcmc: diagnostics of the chain.
        seconds: wall-clock time of each stage.
        likelihood_calls: evaluations of the exact likelihood by each method.
    """

    samples: dict[str, Samples]
    c2st: dict[str, float]
    importance_efficiency: float
    pareto_k: float
    log_evidence: tuple[float, float]
    mcmc: dict[str, Any]
    seconds: dict[str, float]
    likelihood_calls: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The figures of merit and the intervals in types that JSON knows; stable keys."""
        return {
            "c2st_npe": self.c2st["npe"],
            "c2st_corrected": self.c2st["corrected"],
            "importance_efficiency": self.importance_efficiency,
            "pareto_k": self.pareto_k,
            "log_evidence": self.log_evidence[0],
            "log_evidence_error": self.log_evidence[1],
            "mcmc": self.mcmc,
            "seconds": self.seconds,
            "likelihood_calls": self.likelihood_calls,
            "intervals": {name: intervals(samples) for name, samples in self.samples.items()},
        }


def intervals(samples: Samples) -> dict[str, dict[str, float]]:
    """Median and central 68 % interval of each parameter."""
    low, median, high = samples.quantile([0.16, 0.5, 0.84]).tolist()
    columns = zip(samples.names, median, low, high, strict=True)
    return {name: {"median": m, "lower_68": a, "upper_68": b} for name, m, a, b in columns}


def compare(
    posterior: Posterior,
    simulator: Simulator,
    x_obs: Any,
    *,
    n: int = 10_000,
    steps: int = 4_000,
    walkers: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Sample one observation in three ways and measure the differences.

    Args:
        posterior: the learned posterior.
        simulator: gives the exact likelihood.
        x_obs: ``x_shape``.
        n: equally weighted draws of each method.
        steps: of each emcee walker.
        walkers: of emcee; they start from draws of the prior, so that the reference owes nothing to the network.
        seed: of everything.
        progress: whether to show progress bars.

    Raises:
        ShapeError, NonFiniteError: x_obs is not one observation, or holds NaN or infinity.
        UsageError: the simulator has no likelihood, or other parameters than the posterior.
        ConvergenceError: the network is too far off to be corrected.
    """
    if not isinstance(simulator, TractableSimulator):
        raise UsageError(f"simulator: expected one with log_likelihood, got {type(simulator).__name__}")
    if simulator.parameters.names != posterior.parameters.names:
        raise UsageError(
            f"simulator: expected the parameters {', '.join(posterior.parameters.names)}, "
            f"got {', '.join(simulator.parameters.names)}"
        )
    positive_integer(n, "n")
    observation = read_observation(x_obs, posterior.x_shape, iid=False, device=posterior.device)
    if observation.batched:
        raise ShapeError(f"x_obs: expected one observation of shape {posterior.x_shape}, got {len(observation.x)}")
    npe = posterior.sample(n, x_obs, seed=derive(seed, "npe"))
    weighted, corrected = _corrected(posterior, simulator, x_obs, n, seed)
    chain = mcmc(
        posterior_target(posterior.parameters, simulator.log_likelihood, observation.x[0]),
        posterior.parameters.sample(max(10 * walkers, 1000), seed=derive(seed, "start")),
        steps=steps,
        walkers=walkers,
        parameters=posterior.parameters,
        seed=derive(seed, "mcmc"),
        device=posterior.device,
        progress=progress,
    )
    reference = chain.resample(n, seed=derive(seed, "thin"), replace=False)
    began = time.monotonic()
    distances = {}
    with progress_bar(2, "classifiers tell draws apart", enabled=progress) as advance:
        for name, draws in (("npe", npe), ("corrected", corrected)):
            distances[name] = c2st(reference.values, draws.values, workers=min(5, cores()))
            advance()
    costs = {"sample": npe.cost, "correct": weighted.cost, "mcmc": chain.cost}
    return Comparison(
        {"npe": npe, "corrected": corrected, "mcmc": reference},
        distances,
        weighted.diagnostics["efficiency"],
        weighted.diagnostics["pareto_k"],
        (weighted.diagnostics["log_evidence"], weighted.diagnostics["log_evidence_error"]),
        chain.diagnostics,
        {stage: cost.seconds for stage, cost in costs.items()} | {"c2st": time.monotonic() - began},
        {"npe": 0, "corrected": weighted.cost.likelihood_calls, "mcmc": chain.cost.likelihood_calls},
    )


def _corrected(
    posterior: Posterior, simulator: TractableSimulator, x_obs: Any, n: int, seed: int
) -> tuple[Samples, Samples]:
    """Weighted proposals, and n distinct draws of them."""
    proposals = _PROPOSALS_PER_DRAW * n
    weighted = posterior.correct(
        simulator.log_likelihood, x_obs, proposals, seed=derive(seed, "correct"), max_pareto_k=float("inf")
    )
    alive = int(torch.count_nonzero(weighted.weights))
    if alive < n:
        raise ConvergenceError(
            f"only {alive} of {proposals} proposals have a weight above zero, expected at least {n}: the learned "
            "posterior is too far from the exact one; train it with more simulations or for longer"
        )
    return weighted, weighted.resample(n, seed=derive(seed, "resample"), replace=False)
