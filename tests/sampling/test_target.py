"""Prior times likelihood, and what all samplers do with a target: whatever is no density ends in one clear error."""

import contextlib
import math
import time

import numpy as np
import pytest
import torch
import torch.distributions as td

from sbi_physics.core.errors import BudgetError, ConvergenceError, NonFiniteError, ShapeError, SupportError
from sbi_physics.core.parameters import Parameters
from sbi_physics.sampling.importance import importance_sample
from sbi_physics.sampling.target import posterior_target

BOX = Parameters.from_prior(td.Uniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])))
LINE = Parameters.from_prior(td.Uniform(torch.tensor([-1.0]), torch.tensor([1.0])))


def likelihood(theta, x):
    return -0.5 * ((theta - x) ** 2).sum(-1)


def test_prior_times_likelihood():
    x_obs, theta = torch.tensor([0.2, 1.0]), torch.tensor([[0.0, 1.0], [0.5, 3.0], [1.5, 1.0], [0.0, -1e-6]])
    value = posterior_target(BOX, likelihood, x_obs)(theta)
    expected = likelihood(theta.double(), x_obs) - math.log(8)
    expected[2:] = -torch.inf
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected)
    assert posterior_target(BOX, likelihood, x_obs)(theta[2:]).tolist() == [-math.inf] * 2
    # A second call on the same rows starts from the same prior.
    assert torch.equal(posterior_target(BOX, likelihood, x_obs)(theta), value)


def test_a_likelihood_may_be_zero_and_in_single_precision():
    target = posterior_target(LINE, lambda theta, x: torch.where(theta[:, 0] > 0, 0.0, -torch.inf).float(), None)
    assert target(torch.tensor([[0.5], [-0.5]])).tolist() == [pytest.approx(-math.log(2)), -math.inf]


def test_points_outside_the_prior_never_reach_the_likelihood(sampler):
    seen = []

    def log_likelihood(theta, x):
        seen.append(theta.clone())
        return -0.5 * (theta[:, 0] / 0.8) ** 2

    target = posterior_target(LINE, log_likelihood, None)
    outside = torch.tensor([[1.0001], [-2.0], [torch.inf]])
    assert target(outside).tolist() == [-math.inf] * 3
    assert seen == []
    sampler(target)
    seen = torch.cat(seen)
    assert seen.dtype == torch.float64
    assert seen.abs().max() <= 1
    assert len(seen.unique()) > 100


def test_draws_stay_inside_the_prior(sampler):
    draws, _ = sampler(posterior_target(LINE, lambda theta, x: torch.zeros(len(theta)), None))
    if sampler.name == "importance":
        return  # its draws are those of the proposal; the ones outside have no weight
    assert draws.abs().max() <= 1


def test_the_evidence_of_a_bounded_prior(gaussian):
    """The likelihood of a unit Gaussian about 0, averaged over a uniform prior on (-1, 1)."""
    target = posterior_target(LINE, lambda theta, x: td.Normal(0.0, 1.0).log_prob(theta[:, 0]), None)
    _, log_weights, numbers = importance_sample(gaussian(1.5), target, 20_000)
    expected = math.log(math.erf(1 / 2**0.5) / 2)
    assert numbers["log_evidence"] == pytest.approx(expected, abs=5 * numbers["log_evidence_error"])
    assert numbers["log_evidence_error"] < 0.02
    # Half of the proposals, erf(1 / 1.5 / sqrt(2)), lie inside.
    assert float((log_weights > -torch.inf).double().mean()) == pytest.approx(0.495, abs=5 * 0.5 / 20_000**0.5)


def test_independent_observations_count_the_prior_once(gaussian):
    """theta ~ N(0, 1), x_i ~ N(theta, 1): the posterior is N(sum(x) / (m + 1), 1 / (m + 1))."""
    x = torch.tensor([0.9, 0.1, 1.3, 0.4, -0.2, 1.1], dtype=torch.float64)
    prior = Parameters.from_prior(td.Normal(torch.zeros(1), torch.ones(1)))
    target = posterior_target(prior, lambda theta, x: td.Normal(theta, 1.0).log_prob(x).sum(-1), x)
    theta, log_weights, numbers = importance_sample(gaussian(1.0), target, 50_000)
    weights = log_weights.exp()
    mean = float((weights * theta[:, 0]).sum())
    variance = float((weights * (theta[:, 0] - mean) ** 2).sum())
    effective = numbers["efficiency"] * 50_000
    assert mean == pytest.approx(float(x.sum()) / 7, abs=5 * (1 / 7 / effective) ** 0.5)
    assert variance == pytest.approx(1 / 7, rel=5 * (2 / effective) ** 0.5)
    # Six priors would give a variance of 1 / 12.
    assert 5 * (2 / effective) ** 0.5 < 1 - 7 / 12
    evidence = td.MultivariateNormal(torch.zeros(6).double(), torch.eye(6).double() + 1).log_prob(x)
    assert numbers["log_evidence"] == pytest.approx(float(evidence), abs=5 * numbers["log_evidence_error"])


def test_calls_are_counted_exactly(sampler, counted, gaussian):
    target = counted(gaussian().log_density)
    _, calls = sampler(target)
    assert calls == target.rows


def test_same_seed_same_bits_and_global_generators_left_alone(sampler, gaussian):
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first, _ = sampler(gaussian().log_density, seed=3)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again, _ = sampler(gaussian().log_density, seed=3)
    other, _ = sampler(gaussian().log_density, seed=4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_moments_of_a_gaussian_in_the_plane(sampler):
    """Within six standard errors of 400 independent draws, which each sampler exceeds; a wrong width must flunk."""
    mean, covariance = torch.tensor([0.4, -0.3]), torch.tensor([[1.0, 0.4], [0.4, 0.6]])
    target = td.MultivariateNormal(mean.double(), covariance.double()).log_prob
    theta, weights = sampler.weighted(target, n=2000, dims=2)
    found = (weights.unsqueeze(-1) * theta).sum(0)
    spread = (weights.unsqueeze(-1) * (theta - found)).T @ (theta - found)
    assert ((found - mean).abs() < 6 * (covariance.diagonal() / 400).sqrt()).all()
    torch.testing.assert_close(spread, covariance.double(), rtol=0, atol=6 * (2 / 400) ** 0.5 * 0.9)
    assert ((spread.diagonal() / (4 * covariance.diagonal()) - 1).abs() > 6 * (2 / 400) ** 0.5).all()


@pytest.mark.parametrize("max_calls", [3000, 5000])
def test_a_budget_of_calls_is_kept(max_calls, sampler, counted, gaussian):
    target = counted(gaussian().log_density)
    draws, calls = sampler(target, n=100_000, max_calls=max_calls)
    assert 0 < len(draws) <= 100_000
    assert calls == target.rows <= max_calls


def test_a_budget_of_seconds_is_kept(sampler, counted, gaussian):
    """Either draws, or the error that says that there are none; a run to the end would take minutes."""
    target = counted(gaussian().log_density, seconds_per_row=2e-5)
    began = time.monotonic()
    with contextlib.suppress(BudgetError):
        draws, calls = sampler(target, n=10**7, max_seconds=0.5)
        assert 0 < len(draws) < 10**7
        assert calls == target.rows
    assert 0.3 < time.monotonic() - began < 5


def spoiled(value):
    """A density with a wrong value in a region that every sampler comes to, but none starts in."""

    def log_density(theta):
        return torch.where(theta[:, 0] > 1, value, -0.5 * theta[:, 0] ** 2)

    return log_density


BAD = {
    "plus infinity": (spoiled(math.inf), NonFiniteError, r"got plus infinity at theta = \[\d\.\d+\]"),
    "plus infinity everywhere": (lambda t: torch.full((len(t),), torch.inf), NonFiniteError, "got plus infinity"),
    "a column": (lambda t: -0.5 * t**2, ShapeError, r"expected shape \(\d+,\), got \(\d+, 1\)"),
    "a number": (lambda t: -0.5 * (t**2).sum(), ShapeError, r"expected shape \(\d+,\), got \(\)"),
    "a row too few": (lambda t: -0.5 * t[1:, 0] ** 2, ShapeError, r"expected shape \(\d+,\), got \(\d+,\)"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("prior", [None, Parameters.from_prior(td.Normal(torch.zeros(1), torch.ones(1)))])
def test_what_is_no_log_density_is_named(bad, prior, sampler):
    log_density, error, message = BAD[bad]
    target = log_density if prior is None else posterior_target(prior, lambda theta, x: log_density(theta), None)
    with pytest.raises(error, match=message) as caught:
        sampler(target)
    name = "log_likelihood" if prior is not None or sampler.name == "smc" else "log_(density|prob)"
    caught.match(f"^{name}: expected")
    assert "\n" not in str(caught.value)


def test_not_a_number_is_named_with_its_place(sampler):
    prior = Parameters.from_prior(td.Normal(torch.zeros(1), torch.ones(1)))
    target = posterior_target(prior, lambda theta, x: spoiled(math.nan)(theta), None)
    message = r"log_likelihood: expected numbers or minus infinity, got NaN at theta = \[\d\.\d+\]"
    with pytest.raises(NonFiniteError, match=message):
        sampler(target)


def test_no_density_anywhere(sampler):
    messages = {
        "importance": (ConvergenceError, "none of 400 proposals has a finite posterior density"),
        "independence": (ConvergenceError, r"none of \d+ proposals has a finite posterior density"),
        "resampling": (ConvergenceError, "none of 4000 proposals has a finite posterior density"),
        "rejection": (ConvergenceError, r"none of \d+ proposals has a finite posterior density"),
        "mcmc": (SupportError, "initial: 32 of 32 starting points have zero density"),
        "hmc": (SupportError, "initial: 10 of 10 chains start where there is no density"),
        "smc": (ConvergenceError, "observation 0: impossible under the prior"),
    }
    error, message = messages[sampler.name]
    with pytest.raises(error, match=message):
        sampler(lambda theta: torch.full((len(theta),), -torch.inf))


def test_a_likelihood_in_numpy():
    x, theta = torch.tensor([0.3]), torch.tensor([[0.2], [0.7], [1.5]], dtype=torch.float64)
    array = posterior_target(LINE, lambda t, x: -((np.asarray(t)[:, 0] - 0.3) ** 2), x)(theta)
    tensor = posterior_target(LINE, lambda t, x: -((t[:, 0] - 0.3) ** 2), x)(theta)
    assert torch.equal(array, tensor)
    with pytest.raises(ShapeError, match=r"log_likelihood: expected shape \(2,\), got \(2, 1\)"):
        posterior_target(LINE, lambda t, x: np.asarray(t), x)(theta)
