"""The populations and their noise."""

import math

import pytest
import torch
import torch.distributions as td

from simulators.lotka_volterra import LotkaVolterra

THETA = torch.tensor([0.7, 0.1, 0.9, 0.12]).double()


def test_observations_scatter_by_a_tenth_about_the_populations():
    """Mean and width of ln x, and the likelihood at the mean, with a twin of another theta that must fail."""
    simulator, n = LotkaVolterra(), 20_000
    logs = simulator(THETA.expand(n, 4), seed=1).double().log()
    location = logs.mean(0)
    assert float(location[0]) == pytest.approx(math.log(30), abs=5 * 0.1 / n**0.5)
    assert float(location[10]) == pytest.approx(0.0, abs=5 * 0.1 / n**0.5)
    # The standard error of a standard deviation is that of the mean over the root of two.
    assert float((logs.std(0) - 0.1).abs().max()) < 5 * 0.1 / (2 * n) ** 0.5
    x = location.exp()
    best = td.LogNormal(location, 0.1).log_prob(x).sum()
    # Twenty means that are off by 0.1 / sqrt(n) cost 20 / (2 n) on average.
    assert 0 <= float(best - simulator.log_likelihood(THETA, x)) < 40 / n
    assert float(best - simulator.log_likelihood(THETA * 1.01, x)) > 0.1


def test_only_positive_numbers_are_possible():
    simulator = LotkaVolterra()
    x = simulator(THETA[None], seed=1)[0]
    for bad in (0.0, -1.0, math.nan, math.inf):
        wrong = x.clone()
        wrong[7] = bad
        assert float(simulator.log_likelihood(THETA, wrong)) == -math.inf


def test_populations_are_cut_where_the_recipe_cuts_them():
    """Prey that nobody eats, and predators that find nothing."""
    x = LotkaVolterra()(torch.tensor([[2.0, 1e-30, 3.0, 1e-30]]), seed=1)[0]
    noise = 5 * 0.1
    assert abs(math.log(x[9]) - math.log(1e4)) < noise
    assert abs(math.log(x[19]) - math.log(1e-10)) < noise


def test_every_draw_of_the_prior_can_be_followed():
    simulator = LotkaVolterra()
    x = simulator(simulator.parameters.sample(10_000, seed=2), seed=3)
    assert bool((torch.isfinite(x) & (x > 0)).all())
