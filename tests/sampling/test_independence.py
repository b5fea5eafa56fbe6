"""Independence Metropolis is exact for any proposal that covers the target; without its acceptance it is not."""

import time

import pytest
import scipy.stats
import torch

from sbi_physics.core.errors import BudgetError, ConvergenceError, UsageError
from sbi_physics.sampling.independence import independence_metropolis

CHAINS = 4000


@pytest.fixture
def ends(gaussian):
    """The last states of independent chains on N(0.5, 0.8**2) with proposals N(0, 1.3**2), by a proposal of choice."""

    def run(proposal=None, **settings):
        target = gaussian(0.8, mean=0.5)
        proposal = proposal or gaussian(1.3)
        return independence_metropolis(proposal, target.log_density, CHAINS, chains=CHAINS, **settings)[0][:, 0]

    return run


def p_value(draws):
    """Of Kolmogorov and Smirnov, for draws of the target."""
    return scipy.stats.kstest(draws.numpy(), scipy.stats.norm(0.5, 0.8).cdf).pvalue


def test_a_mismatched_proposal_is_corrected(ends):
    draws = ends()
    assert p_value(draws) > 1e-3
    assert abs(draws.mean() - 0.5) < 5 * 0.8 / CHAINS**0.5
    assert abs(draws.std() / 0.8 - 1) < 5 / (2 * CHAINS) ** 0.5


def test_without_the_correction_it_is_wrong(ends, gaussian):
    """Twins that must fail: draws of the proposal as they are, and a proposal whose density is left out."""

    def flat(n, seed):
        theta, log_q = gaussian(1.3)(n, seed)
        return theta, torch.zeros_like(log_q)

    assert p_value(gaussian(1.3)(CHAINS, 0)[0][:, 0]) < 1e-9
    assert p_value(ends(flat)) < 1e-9


def test_all_steps_after_the_warmup_are_draws(gaussian):
    n, chains = 50_000, 500
    draws, numbers = independence_metropolis(gaussian(1.3, 2), gaussian(0.8, 2, mean=0.5).log_density, n, chains=chains)
    # A chain stays where it is for 1 / acceptance steps or so.
    effective = n * numbers["acceptance"] / 2
    assert draws.shape == (n, 2)
    assert ((draws.mean(0) - 0.5).abs() < 5 * 0.8 / effective**0.5).all()
    assert ((draws.std(0) / 0.8 - 1).abs() < 5 / (2 * effective) ** 0.5).all()
    moved = (draws.reshape(-1, chains, 2).diff(dim=0) != 0).any(-1).double().mean()
    assert numbers["acceptance"] == pytest.approx(float(moved), abs=0.01)


def test_chains_that_start_where_the_target_vanishes(gaussian):
    """Half of the proposals for a half-normal lie outside its support."""

    def log_density(theta):
        return torch.where(theta[:, 0] > 0, -0.5 * theta[:, 0] ** 2, -torch.inf)

    draws, _ = independence_metropolis(gaussian(1.5), log_density, CHAINS, chains=CHAINS)
    assert (draws > 0).all()
    assert scipy.stats.kstest(draws[:, 0].numpy(), scipy.stats.halfnorm.cdf).pvalue > 1e-3


def test_an_equal_proposal_is_always_accepted(gaussian):
    _, numbers = independence_metropolis(gaussian(), gaussian().log_density, 5000)
    assert numbers["acceptance"] == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "chains", "warmup"), [(1000, 100, 5), (250, 100, 0), (7, 500, 20), (1, 1, 1)])
def test_numbers_of_draws_and_calls(n, chains, warmup, gaussian, counted):
    target = counted(gaussian().log_density)
    draws, numbers = independence_metropolis(gaussian(1.1), target, n, chains=chains, warmup=warmup)
    used = min(chains, n)
    assert len(draws) == n
    assert numbers["likelihood_calls"] == target.rows == used * (1 + warmup + -(-n // used))
    assert target.most == used


@pytest.mark.parametrize(("max_calls", "draws"), [(700, 100), (850, 200), (899, 200), (10**6, 1000)])
def test_a_budget_of_calls(max_calls, draws, gaussian, counted):
    target = counted(gaussian().log_density)
    found, numbers = independence_metropolis(gaussian(1.1), target, 1000, chains=100, warmup=5, max_calls=max_calls)
    assert len(found) == draws
    assert numbers["likelihood_calls"] == target.rows <= max_calls


@pytest.mark.parametrize("max_calls", [0, 99, 100, 600, 699])
def test_a_budget_of_calls_that_the_warmup_would_use_up(max_calls, gaussian, counted):
    target = counted(gaussian().log_density)
    with pytest.raises(BudgetError, match=f"the budget of {max_calls} calls ends within the warm-up.*= 700"):
        independence_metropolis(gaussian(1.1), target, 1000, chains=100, warmup=5, max_calls=max_calls)
    assert target.rows == 0


def test_a_budget_of_seconds_with_a_slow_likelihood(gaussian, counted):
    target = counted(gaussian().log_density, seconds_per_call=0.01)
    began = time.monotonic()
    draws, numbers = independence_metropolis(gaussian(1.1), target, 10**6, chains=100, warmup=5, max_seconds=0.5)
    assert time.monotonic() - began < 3
    assert 100 <= len(draws) < 10**4
    assert numbers["likelihood_calls"] == target.rows == len(draws) + 600
    with pytest.raises(BudgetError, match=r"the budget ended after \d+ calls, within the warm-up"):
        independence_metropolis(gaussian(1.1), target, 10**6, chains=100, warmup=500, max_seconds=0.1)


def test_a_proposal_that_is_far_off(gaussian):
    with pytest.raises(ConvergenceError, match=r"only 0\.\d\d% of the proposals are accepted.*run mcmc from scratch"):
        independence_metropolis(gaussian(), gaussian(1e-5).log_density, 2500, chains=50, warmup=200)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 1.5}, {"chains": 0}, {"chains": "many"}])
def test_wrong_numbers(wrong, gaussian):
    name = next(iter(wrong))
    with pytest.raises(UsageError, match=f"{name}: expected an integer of at least 1"):
        independence_metropolis(gaussian(), gaussian().log_density, **{"n": 100, **wrong})
