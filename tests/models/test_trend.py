"""The linear trend of data with the parameters: found where there is one, left alone where there is a curve."""

import math

import torch

from sbi_physics.core.random import seeded
from sbi_physics.models.trend import Trend
from sbi_physics.store import row_parts

N = 5000
UNBOUNDED = torch.tensor([[-math.inf, math.inf]]).expand(3, 2)


def pairs(n=N, seed=0):
    """X of which one is linear with noise that depends on theta, one a sine, and one does not depend on theta."""
    with seeded(seed):
        theta, noise = torch.randn(n, 3), torch.randn(n, 3)
    line = 2 * theta[:, 0] - 0.5 * theta[:, 2] + 7
    curve = torch.sin(2 * theta[:, 1])
    return theta, torch.stack([line, curve, torch.zeros(n)], -1) + 0.1 * (1 + theta[:, :1].abs()) * noise


def test_a_line_is_found_to_the_precision_of_least_squares():
    trend = Trend(UNBOUNDED, 3).fit(*pairs())
    theta = torch.tensor([[1.0, -3.0, 2.0], [0.0, 0.0, 0.0]])
    # The noise is 0.1 to 0.4; ten of its standard errors.
    assert (trend(theta)[:, 0] - torch.tensor([8.0, 7.0])).abs().max() < 10 * 0.3 / math.sqrt(N)


def test_parts_give_what_the_whole_gives(monkeypatch):
    whole = Trend(UNBOUNDED, 3).fit(*pairs())
    monkeypatch.setattr(row_parts, "_NUMBERS_AT_ONCE", 3 * 700)  # 700 rows at a time
    parts = Trend(UNBOUNDED, 3).fit(*pairs())
    assert bool(whole.weight[:, 0].any())
    # Kept in single precision; computed in double, once by least squares and once by normal equations.
    torch.testing.assert_close(parts.weight, whole.weight, rtol=2e-7, atol=1e-7)


def test_a_curve_is_left_alone_and_so_are_too_few_pairs():
    trend = Trend(UNBOUNDED, 3).fit(*pairs())
    assert not bool(trend.weight[:, 1].any())
    assert not bool(Trend(UNBOUNDED, 3).fit(*pairs(100)).weight.any())


def test_a_parameter_with_one_bound_counts_by_its_logarithm():
    rate = torch.tensor([[0.0, math.inf]])
    with seeded(1):
        theta, noise = torch.randn(N, 1).exp(), torch.randn(N, 1)
    trend = Trend(rate, 1).fit(theta, 3 * theta.log() + 0.1 * noise)
    assert bool(trend.weight.any())
    torch.testing.assert_close(trend(torch.tensor([[math.e]])), torch.tensor([[3.0]]), rtol=0, atol=0.02)


def test_columns_that_say_nothing_new_do_no_harm():
    """Two parameters that are always the same, as a prior on a line would have them."""
    theta, x = pairs()
    theta[:, 1] = theta[:, 0]
    trend = Trend(UNBOUNDED, 3).fit(theta, x)
    assert bool(torch.isfinite(trend(theta)).all())
    assert (x[:, 0] - trend(theta)[:, 0]).std() < 0.3


def linear(spread=lambda theta: 1.0, kind=torch.randn, mix=lambda theta: 0.0):
    """Two observables, linear in three parameters."""
    with seeded(3):
        theta, noise = torch.randn(N, 3), kind(N, 2)
    noise[:, 1] += mix(theta[:, 0]) * noise[:, 0]
    return theta, theta[:, :2] + 0.1 * spread(theta[:, :1]) * noise


def exponential(*shape):
    return -torch.rand(*shape).clamp_min(1e-9).log()


def test_a_trend_with_gaussian_noise_is_all_there_is_and_what_is_more_is_noticed():
    def is_all(theta, x):
        return Trend(UNBOUNDED, 2).fit(theta, x).is_all(theta, x)

    assert is_all(*linear())
    assert not is_all(*linear(kind=exponential))
    assert not is_all(*linear(spread=lambda theta: 1 + 0.5 * theta.abs()))
    assert not is_all(*linear(mix=lambda theta: theta))
    theta, x = linear()
    assert not is_all(theta, torch.stack([x[:, 0], theta[:, 1].sin()], -1))
