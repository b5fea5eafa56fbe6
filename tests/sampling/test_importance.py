"""Importance sampling of a Gaussian, for which weights, efficiency, evidence and Pareto k are known."""

import math
import time

import pytest
import torch

from sbi_physics.core.errors import BudgetError, ConvergenceError, NonFiniteError, ShapeError, UsageError
from sbi_physics.sampling.importance import importance_sample

LOG_EVIDENCE = 2.5
N = 40_000


def efficiency(scale, dims):
    """Of proposals N(0, scale**2) for a unit Gaussian: 1 / E_q[(p / q)**2]."""
    return ((2 * scale**2 - 1) ** 0.5 / scale**2) ** dims


@pytest.mark.parametrize("dims", [1, 3])
def test_a_wider_proposal(dims, gaussian):
    target = gaussian(1.0, dims, log_evidence=LOG_EVIDENCE)
    theta, log_weights, numbers = importance_sample(gaussian(1.5, dims), target.log_density, N)
    expected = efficiency(1.5, dims)
    effective = expected * N
    weights = log_weights.exp().unsqueeze(-1)
    assert theta.shape == (N, dims)
    assert float(weights.sum()) == pytest.approx(1.0)
    mean = (weights * theta).sum(0)
    assert (mean.abs() < 5 / effective**0.5).all()
    assert (weights * (theta - mean) ** 2).sum(0) == pytest.approx(torch.ones(dims), abs=5 * (2 / effective) ** 0.5)
    # The proposals themselves have a variance of 2.25: unweighted they must fail.
    assert (theta.var(0) > 1 + 10 * (2 / effective) ** 0.5).all()
    assert numbers["efficiency"] == pytest.approx(expected, rel=0.02)
    assert numbers["pareto_k"] < 0.3
    assert numbers["log_evidence_error"] == pytest.approx(((1 / expected - 1) / N) ** 0.5, rel=0.05)
    assert numbers["log_evidence"] == pytest.approx(LOG_EVIDENCE, abs=5 * numbers["log_evidence_error"])
    assert numbers["likelihood_calls"] == N


def test_an_equal_proposal_has_equal_weights(gaussian):
    target = gaussian(1.0, 2, log_evidence=LOG_EVIDENCE)
    _, log_weights, numbers = importance_sample(gaussian(1.0, 2), target.log_density, 1000)
    torch.testing.assert_close(log_weights, torch.full((1000,), -math.log(1000), dtype=torch.float64))
    assert numbers["efficiency"] == pytest.approx(1.0)
    assert numbers["pareto_k"] == 0.0
    assert numbers["log_evidence"] == pytest.approx(LOG_EVIDENCE)
    assert numbers["log_evidence_error"] == pytest.approx(0.0, abs=1e-12)


def test_the_error_of_the_evidence_is_its_scatter(gaussian):
    """Pulls over 200 runs have mean 0 and width 1; a proposal that misstates its density by 2 % must flunk."""

    def pulls(shift):
        def proposal(n, seed):
            theta, log_q = gaussian(1.5)(n, seed)
            return theta, log_q - shift

        runs = [importance_sample(proposal, gaussian().log_density, 2000, seed=seed)[2] for seed in range(200)]
        return torch.tensor([run["log_evidence"] / run["log_evidence_error"] for run in runs])

    good = pulls(0.0)
    assert abs(good.mean()) < 4 / 200**0.5
    assert abs(good.std() - 1) < 4 / (2 * 200) ** 0.5
    assert pulls(0.02).mean() > 4 / 200**0.5


def test_a_narrow_proposal_cannot_be_trusted(gaussian):
    """The weights of proposals N(0, s**2) for a unit Gaussian have a tail of shape k = 1 - s**2."""
    proposal, target = gaussian(0.3), gaussian().log_density
    for most in (0.2, 0.7):
        message = rf"Pareto k = \d\.\d\d \(at most {most:g} is acceptable\), efficiency [\d.e-]+; train the posterior"
        with pytest.raises(ConvergenceError, match=message):
            importance_sample(proposal, target, 20_000, max_pareto_k=most)
    *_, numbers = importance_sample(proposal, target, 20_000, max_pareto_k=math.inf)
    assert numbers["pareto_k"] == pytest.approx(0.91, abs=4 * 1.91 / (3 * 20_000**0.5) ** 0.5)
    assert numbers["efficiency"] < 0.1
    with pytest.raises(ConvergenceError, match="Pareto k = inf"):
        importance_sample(gaussian(), target, 24)


def test_draws_do_not_depend_on_a_budget_of_calls(gaussian):
    target = gaussian().log_density
    theta, *_ = importance_sample(gaussian(1.5), target, 500, seed=4)
    assert torch.equal(importance_sample(gaussian(1.5), target, 900, seed=4, max_calls=500)[0], theta)
    assert len(theta.unique()) == 500


def test_many_rows_come_in_blocks_that_differ(gaussian, counted):
    target = counted(gaussian().log_density)
    theta, *_ = importance_sample(gaussian(1.5), target, 100_000)
    assert len(theta.unique()) == target.rows == 100_000
    assert target.most < 100_000


@pytest.mark.parametrize("max_calls", [1, 99, 100, 1000])
def test_a_budget_of_calls(max_calls, gaussian, counted):
    target = counted(gaussian().log_density)
    theta, log_weights, numbers = importance_sample(
        gaussian(1.5), target, 100, max_calls=max_calls, max_pareto_k=math.inf
    )
    assert len(theta) == len(log_weights) == target.rows == numbers["likelihood_calls"] == min(100, max_calls)


def test_a_budget_of_seconds_with_a_slow_likelihood(gaussian, counted):
    """A million rows at half a millisecond each."""
    target = counted(gaussian().log_density, seconds_per_row=5e-4)
    began = time.monotonic()
    theta, _, numbers = importance_sample(gaussian(1.5), target, 10**6, max_seconds=0.3)
    assert time.monotonic() - began < 3
    assert 0 < len(theta) == target.rows == numbers["likelihood_calls"] < 5000
    assert len(theta.unique()) == len(theta)


def test_a_budget_of_seconds_that_is_not_used_up(gaussian):
    runs = [importance_sample(gaussian(1.5), gaussian().log_density, 3000, max_seconds=t)[0] for t in (100, 200)]
    assert len(runs[0].unique()) == 3000
    assert torch.equal(*runs)


@pytest.mark.parametrize("budget", [{"max_calls": 0}, {"max_calls": -3}, {"max_seconds": 0.0}, {"max_seconds": -1.0}])
def test_a_budget_that_allows_nothing(budget, gaussian, counted):
    target = counted(gaussian().log_density)
    name, value = next(iter(budget.items()))
    with pytest.raises(BudgetError, match=rf"the budget allows no draw \(.*{name}={value}"):
        importance_sample(gaussian(), target, 100, **budget)
    assert target.rows == 0


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "10"])
def test_wrong_numbers_of_draws(n, gaussian):
    with pytest.raises(UsageError, match="n: expected an integer of at least 1"):
        importance_sample(gaussian(), gaussian().log_density, n)


@pytest.mark.parametrize(
    ("log_q", "error", "message"),
    [
        (lambda log_q: log_q.unsqueeze(-1), ShapeError, r"proposal: expected shape \(50,\), got \(50, 1\)"),
        (lambda log_q: log_q * torch.nan, NonFiniteError, "proposal: .* got NaN at theta"),
        (lambda log_q: log_q - torch.inf, NonFiniteError, "proposal: expected finite numbers"),
    ],
)
def test_wrong_proposals(log_q, error, message, gaussian):
    def proposal(n, seed):
        theta, value = gaussian()(n, seed)
        return theta, log_q(value)

    with pytest.raises(error, match=message):
        importance_sample(proposal, gaussian().log_density, 50)
