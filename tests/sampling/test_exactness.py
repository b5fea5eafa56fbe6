"""Samplers on densities that are known: modes and their weights, evidences, edges; and what they say if they cannot."""

import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.sampling.hmc import hmc
from sbi_physics.sampling.resampling import rejection_sample, sampling_importance_resampling
from sbi_physics.sampling.smc import tempered_smc
from simulators.gaussian_linear import GaussianLinear, GaussianLinearUniform
from simulators.slcp import SLCP


@pytest.fixture(scope="module")
def gaussian():
    return GaussianLinear(dims=3)


@pytest.fixture(scope="module")
def observations(gaussian):
    return gaussian(gaussian.parameters.sample(5, seed=1), seed=2)


@pytest.fixture(scope="module")
def batch(gaussian, observations):
    def log_likelihood(theta, which):
        return gaussian.log_likelihood(theta, observations[which].unsqueeze(1))

    return tempered_smc(log_likelihood, gaussian.parameters, 2000, batch=5, seed=3)


def test_many_posteriors_at_once_are_each_the_exact_one(batch, gaussian, observations):
    mean, covariance = gaussian.posterior_mean_and_covariance(observations)
    sigma = covariance.diagonal().sqrt()
    effective = torch.tensor(batch.diagnostics["effective_sample_size"]).unsqueeze(-1)
    assert float(effective.min()) > 500
    pull = (batch.values.mean(1) - mean) / (sigma / effective.sqrt())
    assert float(pull.abs().max()) < 4
    assert ((batch.values.std(1) / sigma - 1).abs() < 4 / (2 * effective).sqrt()).all()


def test_the_evidence_is_the_exact_one_within_its_error(batch, observations):
    exact = td.Normal(0.0, 0.2**0.5).log_prob(observations.double()).sum(-1)
    pull = (torch.tensor(batch.diagnostics["log_evidence"]) - exact) / torch.tensor(
        batch.diagnostics["log_evidence_error"]
    )
    assert float(pull.abs().max()) < 3
    # Errors that are far too large would pass the line above.
    assert max(batch.diagnostics["log_evidence_error"]) < 0.15


def test_separated_modes_keep_their_weights():
    """A quarter and three quarters of the posterior, twenty standard deviations apart."""
    prior = sp.Parameters.from_prior(td.Independent(td.Uniform(-5 * torch.ones(3), 5 * torch.ones(3)), 1))

    def log_likelihood(theta):
        modes = [td.Normal(centre, 0.2).log_prob(theta).sum(-1) for centre in (-2.0, 2.0)]
        return torch.logaddexp(math.log(0.25) + modes[0], math.log(0.75) + modes[1])

    samples = tempered_smc(log_likelihood, prior, 4000, particles=2000, seed=4)
    share = float((samples.values[:, 0] > 0).double().mean())
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / samples.diagnostics["effective_sample_size"]) ** 0.5


def test_the_four_modes_of_slcp_are_in_balance():
    slcp = SLCP()
    x = slcp(torch.tensor([[0.7, -1.5, -1.2, 1.5, 0.4]]), seed=5)[0]
    samples = tempered_smc(lambda theta: slcp.log_likelihood(theta, x), slcp.parameters, 4000, seed=6)
    quadrant = (samples.values[:, 2] > 0).long() * 2 + (samples.values[:, 3] > 0).long()
    shares = torch.bincount(quadrant, minlength=4) / len(quadrant)
    error = (0.25 * 0.75 / samples.diagnostics["effective_sample_size"]) ** 0.5
    assert float((shares - 0.25).abs().max()) < 4 * error


def test_an_impossible_observation_and_a_small_budget_end_with_the_reason(gaussian, observations):
    def impossible(theta):
        return torch.full(theta.shape[:-1], -torch.inf, dtype=torch.float64)

    with pytest.raises(sp.ConvergenceError, match="impossible under the prior"):
        tempered_smc(impossible, gaussian.parameters, 100)
    with pytest.raises(sp.BudgetError, match="ended at"):
        tempered_smc(
            lambda t: gaussian.log_likelihood(t, observations[0] + 30), gaussian.parameters, 1000, max_calls=4000
        )
    with pytest.raises(sp.NonFiniteError, match="NaN"):
        tempered_smc(lambda t: t[:, 0] * torch.nan, gaussian.parameters, 100)


def test_same_seed_same_bytes(gaussian, observations):
    first, second, other = (
        tempered_smc(lambda t: gaussian.log_likelihood(t, observations[0]), gaussian.parameters, 500, seed=s).values
        for s in (7, 7, 8)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_hamiltonian_chains_find_many_densities_at_once(gaussian, observations):
    start = gaussian.parameters.sample(5 * 16, seed=9).reshape(5, 16, 3)

    def log_prob(theta):
        likelihood = gaussian.log_likelihood(theta, observations.unsqueeze(1))
        return likelihood + td.Normal(0.0, 0.1**0.5).log_prob(theta).sum(-1)

    samples = hmc(log_prob, start, steps=200, warmup=100, seed=10, progress=False)
    mean, covariance = gaussian.posterior_mean_and_covariance(observations)
    effective = torch.tensor(samples.diagnostics["effective_sample_size"]).unsqueeze(-1)
    pull = (samples.values.mean(1) - mean) / (covariance.diagonal().sqrt() / effective.sqrt())
    assert float(pull.abs().max()) < 4
    assert max(samples.diagnostics["r_hat"]) < 1.03
    assert all(samples.diagnostics["converged"])


def test_hamiltonian_chains_respect_the_edges_of_a_prior():
    uniform = GaussianLinearUniform(dims=2)
    x = torch.tensor([1.1, 0.0])
    start = uniform.parameters.sample(32, seed=11)
    samples = hmc(
        lambda theta: uniform.log_likelihood(theta, x),
        start,
        steps=400,
        warmup=200,
        parameters=uniform.parameters,
        seed=12,
        progress=False,
    )
    exact = uniform.sample_posterior(20_000, x, seed=13).double()
    assert bool(uniform.parameters.within(samples.values).all())
    error = exact.std(0) / samples.diagnostics["effective_sample_size"] ** 0.5
    assert ((samples.values.mean(0) - exact.mean(0)).abs() < 5 * error).all()


def proposal(n, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**32)
        theta = 1.5 * torch.randn(n, 2, dtype=torch.float64)
    return theta, td.Normal(0.0, 1.5).log_prob(theta).sum(-1)


def unit_gaussian(theta):
    return td.Normal(0.5, 1.0).log_prob(theta).sum(-1) + 3.0


@pytest.mark.parametrize("sampler", [rejection_sample, sampling_importance_resampling])
def test_proposals_become_draws_of_the_target(sampler):
    theta, numbers = sampler(proposal, unit_gaussian, 4000, seed=14)
    assert theta.shape == (4000, 2)
    # Independent draws: 0.016; resampled ones may come twice.
    assert (theta.mean(0) - 0.5).abs().max() < 0.09
    assert (theta.std(0) - 1).abs().max() < 0.08
    assert numbers["likelihood_calls"] >= 4000
    assert torch.equal(theta, sampler(proposal, unit_gaussian, 4000, seed=14)[0])
    with pytest.raises(sp.NonFiniteError):
        sampler(proposal, lambda t: t[:, 0] * torch.nan, 100)
    with pytest.raises(sp.BudgetError):
        sampler(proposal, unit_gaussian, 100, max_calls=0)
