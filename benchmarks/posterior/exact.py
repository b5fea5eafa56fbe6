"""Our exact likelihoods against the reference posteriors of sbibm: the same task, or another?

Claim: the posterior by our likelihood cannot be told from the 10,000 reference draws of sbibm.  It is found by
importance sampling: the proposal is a mixture of three Gaussians about the reference, wider and narrower, and the
weights come from our likelihood.  The C2ST takes draws with a probability in proportion to their weights, which leaves
independent ones; of the weighted means the largest difference in standard errors is reported.

    python -m benchmarks.posterior.exact [--tasks sir lotka_volterra] [--observations 1 2 3] [--draws 100000]
"""

import argparse
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import describe_machine, write_result
from benchmarks.posterior.reference import observation, reference_samples
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive, seeded
from sbi_physics.sampling.importance import Proposal, importance_sample
from sbi_physics.sampling.target import posterior_target
from sbi_physics.simulation.resolve import resolve_simulator

TASKS = ("sir", "lotka_volterra", "gaussian_mixture", "bernoulli_glm", "gaussian_linear_uniform")
# Variances of the proposal, in those of the reference.
_SCALES = (0.04, 1.0, 4.0)


def main() -> None:
    """Compare task by task, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--observations", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [
        _compare(task, number, options.draws, options.seed) for task in options.tasks for number in options.observations
    ]
    result = {"rows": rows, "draws": options.draws, "machine": describe_machine("sbibm", "scikit-learn")}
    print(f"written to {write_result('sbibm_exact', result)}")


def _compare(task: str, number: int, draws: int, seed: int) -> dict[str, Any]:
    simulator: Any = resolve_simulator(task)
    reference = reference_samples(task, number)
    target = posterior_target(simulator.parameters, simulator.log_likelihood, observation(task, number))
    proposal = _proposal(simulator.parameters, reference)
    values, log_weights, numbers = importance_sample(proposal, target, draws, seed=seed)
    samples = sp.Samples.of(values, simulator.parameters, log_weights=log_weights)
    weights, wide = samples.weights.unsqueeze(-1), reference.double()
    mean = (weights * values).sum(0)
    error = wide.std(0) * (1 / len(reference) + 1 / float(samples.effective_sample_size)) ** 0.5
    # Resampling without replacement would take too few of the draws of large weight.
    with seeded(derive(seed, "rejection")):
        accepted = torch.rand(draws, dtype=torch.float64) < torch.exp(log_weights - log_weights.max())
    kept = values[accepted][: len(reference)]
    row = {
        "task": task,
        "observation": number,
        "largest_pull": float(((mean - wide.mean(0)) / error).abs().max()),
        "c2st": sp.diagnostics.c2st(reference[: len(kept)], kept, workers=2),
        "c2st_draws": len(kept),
        "efficiency": numbers["efficiency"],
        "pareto_k": numbers["pareto_k"],
    }
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return row


def _proposal(parameters: Parameters, reference: Tensor) -> Proposal:
    """Gaussians where the parameters have no bounds."""
    unbounded = parameters.bijection.to_unbounded(reference.double())[0]
    mean, covariance = unbounded.mean(0), torch.atleast_2d(unbounded.T.cov())
    covariances = torch.stack([scale * covariance for scale in _SCALES])
    parts = td.MultivariateNormal(mean.expand(len(_SCALES), -1), covariances)
    mixture = td.MixtureSameFamily(td.Categorical(torch.ones(len(_SCALES), dtype=torch.float64)), parts)

    def propose(n: int, seed: int) -> tuple[Tensor, Tensor]:
        with seeded(derive(seed, "proposal")):
            z = mixture.sample((n,))
        theta, ladj = parameters.bijection.to_support(z)
        return theta, mixture.log_prob(z) - ladj

    return propose


if __name__ == "__main__":
    main()
