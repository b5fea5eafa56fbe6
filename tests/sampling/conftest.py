import time

import pytest
import torch
import torch.distributions as td

from sbi_physics.core.random import seeded
from sbi_physics.sampling.importance import importance_sample
from sbi_physics.sampling.independence import independence_metropolis
from sbi_physics.sampling.mcmc import mcmc


class Gaussian:
    """A Gaussian of independent directions, as a target of known evidence or as a proposal."""

    def __init__(self, scale=1.0, dims=1, mean=0.0, log_evidence=0.0):
        self.dims, self.log_evidence = dims, log_evidence
        self.base = td.Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))

    def log_density(self, theta):
        return self.base.log_prob(theta).sum(-1) + self.log_evidence

    def __call__(self, n, seed):
        with seeded(seed):
            theta = self.base.sample((n, self.dims))
        return theta, self.base.log_prob(theta).sum(-1)


class Counted:
    """A log-density that counts the rows it is asked for, and may take its time."""

    def __init__(self, log_density, seconds_per_call=0.0, seconds_per_row=0.0):
        self.log_density, self.rows, self.most = log_density, 0, 0
        self.seconds_per_call, self.seconds_per_row = seconds_per_call, seconds_per_row

    def __call__(self, theta, *more):
        self.rows += len(theta)
        self.most = max(self.most, len(theta))
        time.sleep(self.seconds_per_call + self.seconds_per_row * len(theta))
        return self.log_density(theta, *more)


@pytest.fixture
def gaussian():
    return Gaussian


@pytest.fixture
def counted():
    return Counted


@pytest.fixture(params=["importance", "independence", "mcmc"])
def sampler(request):
    """Each sampler as a function of a target in one dimension: its draws, and the number of calls that it reports."""

    def run(log_density, seed=0, n=400):
        proposal = Gaussian(1.5)
        if request.param == "importance":
            theta, _, numbers = importance_sample(proposal, log_density, n, seed=seed, max_pareto_k=float("inf"))
            return theta, numbers["likelihood_calls"]
        if request.param == "independence":
            theta, numbers = independence_metropolis(proposal, log_density, n, chains=50, seed=seed)
            return theta, numbers["likelihood_calls"]
        start = torch.linspace(-0.9, 0.9, 100).unsqueeze(-1)
        samples = mcmc(log_density, start, steps=n // 4, seed=seed, device="cpu", progress=False)
        return samples.values, samples.cost.likelihood_calls

    run.name = request.param
    return run
