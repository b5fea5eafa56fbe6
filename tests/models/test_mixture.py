"""Mixture density networks against Gaussians and mixtures that are known in closed form."""

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.errors import UsageError
from sbi_physics.models.mixture import Components, MixtureDensity
from sbi_physics.train.config import TrainConfig
from simulators.gaussian_linear import GaussianLinear

X_OBS = torch.tensor([0.3, -0.2])


@pytest.fixture
def known():
    """Two correlated Gaussians in the plane, in double precision."""
    factors = torch.tensor([[[1.0, 0.0], [-0.5, 2.0]], [[3.0, 0.0], [1.0, 0.5]]], dtype=torch.float64)
    means = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    precisions = factors.mT @ factors
    exact = td.MixtureSameFamily(
        td.Categorical(weights), td.MultivariateNormal(means, precision_matrix=precisions, validate_args=False)
    )
    diagonal = factors.diagonal(dim1=-2, dim2=-1).log()
    return exact, Components(weights.log()[None] + 5.0, means[None], factors.tril(-1)[None], diagonal[None])


def test_the_density_is_that_of_the_mixture(known):
    exact, components = known
    density = MixtureDensity((2,), components=2).double().set_components(components)
    events = 3 * torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(density.log_prob(events), exact.log_prob(events))


def test_draws_have_the_moments_of_the_mixture(known):
    exact, components = known
    density = MixtureDensity((2,), components=2).double().set_components(components)
    n = 40_000
    draws = density.sample(n, seed=1)
    sigma = exact.variance.sqrt()
    assert ((draws.mean(0) - exact.mean).abs() < 5 * sigma / n**0.5).all()
    twin = exact.sample((n,))
    # Of the fourth moments only that they are a few times the square of the second ones.
    assert ((torch.cov(draws.T) - torch.cov(twin.T)).abs() < 5 * (3 * 2 / n) ** 0.5 * sigma.max() ** 2).all()
    # The two components are far apart in the first coordinate.
    assert float((draws[:, 0] > 1.5).double().mean()) == pytest.approx(
        float((twin[:, 0] > 1.5).double().mean()), abs=5 * (2 * 0.25 / n) ** 0.5
    )


def test_one_component_finds_the_posterior_of_a_linear_gaussian():
    """A single Gaussian with a linear mean is exact here: what is left is the noise of 4,000 simulations."""
    gaussian = GaussianLinear(dims=2)
    pairs = sp.simulate(gaussian, 4000, seed=1, workers=1, progress=False).training_set()
    options = {"hidden_features": 16, "blocks": 1, "config": TrainConfig(epochs=15, batch_size=256)}
    estimator = sp.NPE(gaussian.parameters, "mixture", components=1, **options)
    posterior = estimator.fit(*pairs, progress=False)
    mean, covariance = gaussian.posterior_mean_and_covariance(X_OBS)
    exact = td.MultivariateNormal(mean, covariance)
    draws = posterior.sample(20_000, X_OBS).values
    log_ratio = exact.log_prob(draws.double()) - posterior.log_prob(draws, X_OBS).double()
    assert -0.005 < float(-log_ratio.mean()) < 0.02
    weights = (log_ratio - log_ratio.max()).exp()
    assert float(weights.sum() ** 2 / weights.square().sum()) > 0.97 * len(draws)
    assert ((draws.double().mean(0) - mean).abs() < 0.1 * covariance.diagonal().sqrt()).all()
    assert draws.double().std(0) == pytest.approx(covariance.diagonal().sqrt(), rel=0.07)


def test_two_components_find_two_modes_and_one_cannot():
    """theta is x or -x with noise: one Gaussian must cover both and what is between them."""
    generator = torch.Generator().manual_seed(0)
    theta = 2 * torch.randn(4000, 1, generator=generator)
    x = theta.abs() + 0.2 * torch.randn(4000, 1, generator=generator)
    prior = td.Normal(torch.zeros(1), 2.0)
    options = {"hidden_features": 16, "blocks": 1, "config": TrainConfig(epochs=15, batch_size=256)}
    two, one = (sp.NPE(prior, "mixture", components=k, **options).fit(theta, x, progress=False) for k in (2, 1))
    draws = two.sample(4000, [2.0]).values[:, 0]
    assert float((draws > 0).double().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(((draws.abs() - 2).abs() < 1).double().mean()) > 0.99
    between = one.sample(4000, [2.0]).values[:, 0]
    assert float((between.abs() < 1).double().mean()) > 0.2


@pytest.mark.parametrize("option", ["components", "hidden_features", "blocks"])
def test_wrong_options(option):
    with pytest.raises(UsageError, match=f"{option}: expected an integer of at least 1, got 0"):
        MixtureDensity((2,), (3,), **{option: 0})
