"""Several observations of one theta: likelihoods multiply, the prior counts once, errors of the network add up."""

import pytest
import torch

import sbi_physics as sp

pytestmark = pytest.mark.slow

# 1,500 draws know a standard deviation to 3 %.
DRAWS, PARTICLES = 1500, 300


@pytest.fixture(scope="module")
def likelihood(gaussian):
    training = sp.simulate(gaussian, 10_000, seed=51, workers=1, progress=False)
    return sp.NLE(gaussian.parameters).fit(training, seed=52, progress=False).with_sampler(particles=PARTICLES)


def exact(gaussian, x):
    """Mean ``(P,)`` and standard deviation given all rows of x ``(k, P)``."""
    precision = 1 / gaussian.prior_variance + len(x) / gaussian.noise_variance
    return x.double().sum(0) / gaussian.noise_variance / precision, precision**-0.5


@pytest.mark.parametrize(("k", "within"), [(1, 0.1), (10, 0.1), (100, 0.25)])
def test_the_widths_are_the_exact_ones(k, within, gaussian, likelihood):
    theta = torch.tensor([[0.3, -0.2]]).expand(k, 2)
    x = gaussian(theta, seed=53 + k)
    mean, sigma = exact(gaussian, x)
    samples = likelihood.sample(DRAWS, x, iid=True, seed=54)
    values = samples.values.double()
    widths = values.std(0) / sigma
    assert float((widths - 1).abs().max()) < within, widths
    # A bias b of each log-likelihood's slope comes k times: half of the width at 10, a whole one at 100.
    assert float(((values.mean(0) - mean) / sigma).abs().max()) < {1: 0.15, 10: 0.5, 100: 1.0}[k]
    assert samples.diagnostics["effective_sample_size"] > 400


def test_the_prior_counts_once(gaussian, likelihood):
    """Posteriors of single observations, multiplied, would be too narrow: each of them has the prior in it."""
    x = gaussian(torch.tensor([[0.3, -0.2]]).expand(10, 2), seed=60)
    _, sigma = exact(gaussian, x)
    ten_priors = (10 / gaussian.prior_variance + 10 / gaussian.noise_variance) ** -0.5
    width = float(likelihood.sample(DRAWS, x, iid=True, seed=61).values.double().std(0).mean())
    assert abs(width - sigma) < 0.2 * abs(width - ten_priors)
