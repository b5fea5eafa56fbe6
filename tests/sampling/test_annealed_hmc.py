"""Hamiltonian chains from an annealed cloud: the exact posterior, one and many, modes and budgets."""

import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.sampling.annealed_hmc import annealed_hmc
from simulators.gaussian_linear import GaussianLinear

FAST = {"particles": 200, "chains": 32, "warmup": 100}


@pytest.fixture(scope="module")
def gaussian():
    return GaussianLinear(dims=2)


def test_many_posteriors_are_the_exact_ones(gaussian):
    x = gaussian(gaussian.parameters.sample(3, seed=1), seed=2)
    samples = annealed_hmc(
        lambda theta, which: gaussian.log_likelihood(theta, x[which].unsqueeze(1)),
        gaussian.parameters,
        2000,
        batch=3,
        seed=3,
        **FAST,
    )
    mean, covariance = gaussian.posterior_mean_and_covariance(x)
    sigma = covariance.diagonal().sqrt()
    effective = torch.tensor(samples.diagnostics["effective_sample_size"])
    assert samples.values.shape == (3, 2000, 2)
    assert all(samples.diagnostics["converged"]), samples.diagnostics["verdict"]
    assert all(value < 1.02 for value in samples.diagnostics["r_hat"])
    # Four standard errors of a mean, and of a standard deviation, of so many effective draws.
    error = 4 / effective.clamp(max=2000).sqrt().unsqueeze(-1)
    assert ((samples.values.mean(1) - mean).abs() / sigma < error).all()
    assert ((samples.values.std(1) / sigma - 1).abs() < error).all()


def test_one_posterior_with_its_evidence_and_cost(gaussian):
    x = torch.tensor([0.3, -0.2])
    counted = 0

    def log_likelihood(theta):
        nonlocal counted
        counted += theta.shape[0]
        return gaussian.log_likelihood(theta, x)

    samples = annealed_hmc(log_likelihood, gaussian.parameters, 500, seed=1, **FAST)
    assert samples.values.shape == (500, 2)
    assert samples.cost.likelihood_calls == samples.diagnostics["likelihood_calls"] == counted
    exact = td.MultivariateNormal(torch.zeros(2).double(), 0.2 * torch.eye(2).double()).log_prob(x.double())
    error = samples.diagnostics["log_evidence_error"]
    assert abs(samples.diagnostics["log_evidence"] - float(exact)) < 5 * error
    again = annealed_hmc(log_likelihood, gaussian.parameters, 500, seed=1, **FAST)
    assert torch.equal(samples.values, again.values)


def test_modes_keep_their_weights_and_the_verdict_says_that_chains_do_not_mix():
    """Two modes with nothing between them, three quarters and a quarter."""
    parameters = sp.Parameters([sp.Parameter("t", td.Uniform(-4.0, 4.0))])
    mixture = td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.75, 0.25]).double()),
        td.Normal(torch.tensor([-2.0, 2.0]).double(), torch.tensor([0.3, 0.3]).double()),
    )
    samples = annealed_hmc(
        lambda theta: mixture.log_prob(theta[:, 0]), parameters, 2000, seed=1, particles=1000, chains=200, warmup=50
    )
    share = float((samples.values < 0).double().mean())
    # 200 starts from 1,000 particles.
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 200)
    assert not samples.diagnostics["converged"]
    assert "R-hat" in samples.diagnostics["verdict"] or "independent" in samples.diagnostics["verdict"]


def test_wrong_use(gaussian):
    def likelihood(theta):
        return gaussian.log_likelihood(theta, torch.zeros(2))

    with pytest.raises(sp.UsageError, match="chains: expected an integer"):
        annealed_hmc(likelihood, gaussian.parameters, 10, chains=0)
    with pytest.raises(sp.UsageError, match="distinct rows"):
        annealed_hmc(likelihood, gaussian.parameters, 10, particles=20, chains=64)
    with pytest.raises(sp.UsageError, match="torch can differentiate"):
        annealed_hmc(lambda theta: likelihood(theta.detach()), gaussian.parameters, 10, particles=100, chains=8)
    with pytest.raises(sp.BudgetError):
        annealed_hmc(likelihood, gaussian.parameters, 10, max_seconds=1e-6)
