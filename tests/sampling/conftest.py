import time

import pytest
import torch
import torch.distributions as td

from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import seeded
from sbi_physics.sampling.hmc import hmc
from sbi_physics.sampling.importance import importance_sample
from sbi_physics.sampling.independence import independence_metropolis
from sbi_physics.sampling.mcmc import mcmc
from sbi_physics.sampling.resampling import rejection_sample, sampling_importance_resampling
from sbi_physics.sampling.smc import tempered_smc


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


def _importance(log_density, seed, n, dims, **budget):
    theta, log_weights, numbers = importance_sample(
        Gaussian(1.5, dims), log_density, n, seed=seed, max_pareto_k=float("inf"), **budget
    )
    return theta, numbers["likelihood_calls"], log_weights.exp()


def _independence(log_density, seed, n, dims, **budget):
    theta, numbers = independence_metropolis(Gaussian(1.5, dims), log_density, n, chains=50, seed=seed, **budget)
    return theta, numbers["likelihood_calls"], None


def _resampling(log_density, seed, n, dims, **budget):
    theta, numbers = sampling_importance_resampling(
        Gaussian(1.5, dims), log_density, n, seed=seed, max_pareto_k=float("inf"), **budget
    )
    return theta, numbers["likelihood_calls"], None


def _rejection(log_density, seed, n, dims, **budget):
    theta, numbers = rejection_sample(Gaussian(1.5, dims), log_density, n, seed=seed, **budget)
    return theta, numbers["likelihood_calls"], None


def _mcmc(log_density, seed, n, dims, **budget):
    start = Gaussian(0.5, dims)(100, 0)[0].clamp(-0.9, 0.9)
    samples = mcmc(log_density, start, steps=n // 4, seed=seed, device="cpu", progress=False, **budget)
    return samples.values, samples.cost.likelihood_calls, None


def _hmc(log_density, seed, n, dims, **budget):
    start = Gaussian(0.5, dims)(10, 0)[0].clamp(-0.9, 0.9)
    samples = hmc(
        log_density, start, steps=n // 10, warmup=80, seed=seed, device="cpu", progress=False, acceptance=0.8, **budget
    )
    return samples.values, samples.cost.likelihood_calls, None


def _smc(log_density, seed, n, dims, **budget):
    prior = Parameters.from_prior(td.Normal(torch.zeros(dims), torch.full((dims,), 3.0)))

    def log_likelihood(theta):
        value = log_density(theta)
        return value - prior.log_prob(theta) if value.shape == theta.shape[:1] else value

    samples = tempered_smc(log_likelihood, prior, n, particles=100, seed=seed, **budget)
    return samples.values, samples.cost.likelihood_calls, None


_SAMPLERS = {
    "importance": _importance,
    "independence": _independence,
    "resampling": _resampling,
    "rejection": _rejection,
    "mcmc": _mcmc,
    "hmc": _hmc,
    "smc": _smc,
}


@pytest.fixture(params=_SAMPLERS)
def sampler(request):
    """Each sampler as a function of a target: its draws, and the number of calls that it reports."""

    def run(log_density, seed=0, n=400, dims=1, **budget):
        return _SAMPLERS[request.param](log_density, seed, n, dims, **budget)[:2]

    def weighted(log_density, seed=0, n=400, dims=1):
        """Draws with weights that sum to one."""
        theta, _, weights = _SAMPLERS[request.param](log_density, seed, n, dims)
        return theta, torch.full((len(theta),), 1 / len(theta), dtype=torch.float64) if weights is None else weights

    run.name, run.weighted = request.param, weighted
    return run
