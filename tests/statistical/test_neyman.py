"""Neyman's construction covers at every point of the parameter space, where credible regions do not."""

from typing import NamedTuple

import pytest
import torch
import torch.distributions as td
from scipy.stats import binomtest, chi2

import sbi_physics as sp
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.random import seeded
from sbi_physics.posterior.confidence import ConfidenceSets
from sbi_physics.posterior.statistics import posterior_statistic, waldo_statistic
from sbi_physics.train.config import TrainConfig
from simulators.gaussian_linear import GaussianLinear

pytestmark = pytest.mark.slow

LEVELS = (0.68, 0.9)
SIMULATIONS, POINTS, EACH = 400_000, 36, 1000
# The probability that exact sets flunk one of the tests below.
SIGNIFICANCE = 1e-3
# By how much a learned p-value may be off, added in quadrature where deviations of all points are summed.
MODEL_ERROR = 0.005


class Decays:
    """Eight decay times in order: exponential with lifetime tau, or, in a share f, background, uniform on [0, 6].

    Two bounded parameters whose likelihood is far from a Gaussian; f is hardly known where the lifetime is long.
    """

    name = "decays"
    events, window = 8, 6.0

    def __init__(self):
        self.parameters = Parameters([Parameter("tau", td.Uniform(0.2, 2.0)), Parameter("f", td.Uniform(0.0, 1.0))])

    def __call__(self, theta, *, seed):
        tau, f = theta.float().unbind(-1)
        with seeded(seed):
            u, kind = torch.rand(2, len(theta), self.events)
        signal = -tau.unsqueeze(1) * torch.log1p(-u * -torch.expm1(-self.window / tau.unsqueeze(1)))
        return torch.where(kind < f.unsqueeze(1), self.window * u, signal).sort(-1).values


class Problem(NamedTuple):
    posterior: object
    sets: object
    theta: torch.Tensor
    x: torch.Tensor


def problem(simulator, low, high, axes, statistic, seed):
    """A quick posterior, the sets that it leads to, and simulations at the points of a grid."""
    training = sp.simulate(simulator, 5000, seed=seed, workers=1, progress=False)
    config = TrainConfig(epochs=15)
    estimator = sp.NPE(simulator.parameters, "mixture", components=4, hidden_features=32, augment=False, config=config)
    posterior = estimator.fit(training, seed=seed + 1, progress=False)
    with seeded(seed + 2):
        theta = low + torch.rand(SIMULATIONS, 2) * (high - low)
    sets = ConfidenceSets(statistic(posterior), simulator.parameters, config=TrainConfig(epochs=4))
    fitted = sets.fit(theta, simulator(theta, seed=seed + 3), seed=seed + 4, progress=False)
    grid = torch.cartesian_prod(*axes)
    at = grid.repeat_interleave(EACH, 0)
    return Problem(posterior, fitted, at, simulator(at, seed=seed + 5))


@pytest.fixture(scope="module")
def gaussian_problem():
    """The parameter space is [-0.7, 0.7]^2, 2.2 standard deviations of the prior."""
    axis = torch.linspace(-0.66, 0.66, 6)
    low, high = torch.tensor(-0.7), torch.tensor(0.7)
    return problem(GaussianLinear(dims=2), low, high, (axis, axis), posterior_statistic, 100)


@pytest.fixture(scope="module")
def decay_problem():
    axes = torch.linspace(0.3, 1.9, 6), torch.linspace(0.03, 0.97, 6)
    low, high = torch.tensor([0.2, 0.0]), torch.tensor([2.0, 1.0])
    return problem(Decays(), low, high, axes, lambda posterior: waldo_statistic(posterior, draws=32), 200)


def judged(covered, level):
    """P-values of the largest deviation over all points, and of their sum of squares, if each covers at this level.

    The first is exact; the second allows the model error.
    """
    each = len(covered) // POINTS
    hits = covered.view(POINTS, each).sum(1)
    farthest = min(binomtest(int(k), each, level).pvalue for k in hits)
    variance = level * (1 - level) / each + MODEL_ERROR**2
    squares = float((hits / each - level).square().sum() / variance)
    return min(1.0, POINTS * farthest), float(chi2.sf(squares, POINTS))


@pytest.mark.parametrize("name", ["gaussian_problem", "decay_problem"])
@pytest.mark.parametrize("level", LEVELS)
def test_confidence_sets_cover_at_every_point(name, level, request):
    given = request.getfixturevalue(name)
    covered = given.sets.contains(given.theta, given.x, level)
    farthest, squares = judged(covered, level)
    assert farthest > SIGNIFICANCE, covered.double().view(POINTS, -1).mean(1)
    assert squares > SIGNIFICANCE, covered.double().view(POINTS, -1).mean(1)


@pytest.mark.parametrize("name", ["gaussian_problem", "decay_problem"])
@pytest.mark.parametrize("level", LEVELS)
def test_credible_sets_do_not(name, level, request):
    """The highest-density regions of the same posterior flunk the same test, with a fifth of the experiments."""
    given = request.getfixturevalue(name)
    theta, x = given.theta[::5], given.x[::5]
    draws = given.posterior.sample(100, x, seed=7).values.movedim(1, 0)
    higher = given.posterior.log_prob(draws, x) > given.posterior.log_prob(theta, x)
    farthest, squares = judged(higher.double().mean(0) < level, level)
    assert farthest < SIGNIFICANCE / 1000
    assert squares < SIGNIFICANCE / 1000
