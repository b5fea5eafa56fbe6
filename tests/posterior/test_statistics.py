"""Test statistics of problems in which they are known."""

import pytest
import torch

import sbi_physics as sp
from sbi_physics.posterior.statistics import likelihood_ratio_statistic, posterior_statistic, waldo_statistic
from sbi_physics.train.config import TrainConfig


def pairs(n=200, seed=3):
    generator = torch.Generator().manual_seed(seed)
    theta = 0.3 * torch.randn(n, 2, generator=generator)
    return theta, theta + 0.1**0.5 * torch.randn(n, 2, generator=generator)


def distance(theta, x, columns=(0, 1)):
    """The posterior is N(x / 2, 0.05) in each direction."""
    return ((x / 2 - theta) ** 2 / 0.05)[:, list(columns)].sum(1).double()


def exact_moments(x):
    covariance = torch.tensor([[0.05, 0.0], [0.0, 0.05]]).expand(len(x), 2, 2)
    return x / 2, covariance


def test_posterior_statistic(good):
    theta, x = pairs()
    torch.testing.assert_close(posterior_statistic(good)(theta, x), -good.log_prob(theta, x))


def test_waldo_of_an_estimator_of_ones_own(gaussian):
    theta, x = pairs()
    torch.testing.assert_close(waldo_statistic(exact_moments)(theta, x), distance(theta, x), rtol=1e-4, atol=1e-5)
    second = waldo_statistic(exact_moments, gaussian.parameters, interest=["theta_1"])(theta, x)
    torch.testing.assert_close(second, distance(theta, x, [1]), rtol=1e-4, atol=1e-5)
    with pytest.raises(sp.UsageError, match="parameters: expected those of theta"):
        waldo_statistic(exact_moments, interest=["theta_1"])


def test_waldo_of_a_posterior(good):
    theta, x = pairs()
    found = waldo_statistic(good, draws=1000, seed=1)(theta, x)
    # The covariance of 1,000 draws is good to 4.5 %, and the network to a few more.
    assert ((found - distance(theta, x)).abs() < 0.4 * distance(theta, x) + 0.3).double().mean() > 0.95
    again = waldo_statistic(good, draws=1000, seed=1)(theta, x)
    torch.testing.assert_close(again, found)
    # Many theta for one observation draw from its posterior once.
    one = waldo_statistic(good, draws=1000, seed=1)(theta, x[:1].expand_as(x))
    assert ((one - distance(theta, x[:1])).abs() < 0.4 * distance(theta, x[:1]) + 0.3).double().mean() > 0.95
    with pytest.raises(sp.UsageError, match=r"draws: expected at least P \+ 2 = 4"):
        waldo_statistic(good, draws=3)
    with pytest.raises(sp.UsageError, match="interest: expected one or more different"):
        waldo_statistic(good, interest=[])


def test_likelihood_ratio(gaussian, gaussian_pairs, good):
    """Of a Gaussian about theta it is the squared distance from x, of the parameters of interest alone, too."""
    learned = sp.NLE(gaussian.parameters, config=TrainConfig(epochs=8)).fit(*gaussian_pairs, seed=5, progress=False)
    theta, x = pairs(40)
    squares = (x - theta).square().double() / 0.1
    for interest, expected in ((None, squares.sum(1)), ("theta_0", squares[:, 0])):
        found = likelihood_ratio_statistic(learned, interest=interest, starts=2, steps=20)(theta, x)
        assert (found >= 0).all()
        assert ((found - expected).abs() < 0.25 * expected + 0.4).double().mean() > 0.9
    with pytest.raises(sp.UsageError, match="expected one of NLE or NRE, got DirectPosterior"):
        likelihood_ratio_statistic(good)
    with pytest.raises(sp.UsageError, match="expected one of theta_0, theta_1; got 'z'"):
        likelihood_ratio_statistic(learned, interest=["z"])
