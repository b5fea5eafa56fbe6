"""Variational autoencoders against probabilistic principal component analysis, which is a linear one, and others."""

import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.distributions as td

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.models.vae.gaussian import DiagonalGaussian
from sbi_physics.models.vae.model import VariationalAutoencoder
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

SMALL = {"hidden_features": 16, "blocks": 1}
CONFIG = TrainConfig(epochs=15, batch_size=128)


def fitted(events, contexts=None, *, config=CONFIG, **options):
    shape = None if contexts is None else tuple(contexts.shape[1:])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = VariationalAutoencoder(events.shape[1:], shape, **{**SMALL, **options}).fit_scaling(events, contexts)
    data = [model.encode(events)[0], *([] if contexts is None else [model.context_scaling(contexts)])]
    record = train(model, model.loss, data, config=config, progress=False)
    return model, record


def linear_gaussian(n, seed, dims=5, latent=2):
    """Events of a linear Gaussian with `latent` strong directions."""
    map_ = torch.randn(dims, latent, generator=torch.Generator().manual_seed(0))
    source = torch.Generator().manual_seed(seed)
    return 1 + torch.randn(n, latent, generator=source) @ map_.T + 0.4 * torch.randn(n, dims, generator=source)


def principal_components(events, latent):
    """Maximum likelihood of Tipping and Bishop (1999), eqs. 7 and 8."""
    covariance = torch.cov(events.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    noise = values[:-latent].mean()
    strong, directions = values[-latent:], vectors[:, -latent:]
    whole = directions @ torch.diag(strong - noise) @ directions.T + noise * torch.eye(len(values)).to(events)
    return td.MultivariateNormal(events.mean(0), whole), float(noise.sqrt())


class Exact(NamedTuple):
    events: torch.Tensor
    new: torch.Tensor
    two_components: torch.Tensor
    one_component: torch.Tensor
    noise: float
    covariance: torch.Tensor


@pytest.fixture(scope="module")
def exact():
    """For training and new events, the one analysis with two components and the one with one."""
    events, new = linear_gaussian(4000, 1), linear_gaussian(1000, 2)
    model = VariationalAutoencoder((5,)).double().fit_scaling(events)
    (two, noise), (one, _) = (principal_components(model.encode(events.double())[0], latent) for latent in (2, 1))
    encoded, ladj = model.encode(new.double())
    return Exact(events, new, two.log_prob(encoded) + ladj, one.log_prob(encoded) + ladj, noise, two.covariance_matrix)


@pytest.mark.parametrize("options", [{"latent": 2}, {"latent": (2, 2)}, {"latent": 2, "latent_prior": "flow"}])
def test_a_linear_gaussian_reaches_the_likelihood_of_principal_components(exact, options):
    model, record = fitted(exact.events, decoder="gaussian", **options)
    estimates = [model.importance_log_prob(exact.new, n=n, seed=0).mean() for n in (1, 10, 100)]
    # Nothing linear is better on average; 4,000 events leave little to lose, and one component would lose 1.5.
    assert -0.04 < float(estimates[2] - exact.two_components.mean()) < 0.02
    assert float(exact.one_component.mean() - exact.two_components.mean()) < -0.3
    assert estimates[0] < estimates[1] < estimates[2] + 1e-3
    assert float(model.raw_noise.detach().exp()) == pytest.approx(exact.noise, rel=0.1)
    assert record.best_validation_loss < record.validation_loss[0]


def test_draws_have_the_moments_of_principal_components(exact):
    model, _ = fitted(exact.events, latent=2, decoder="gaussian")
    draws = model.encode(model.sample(20_000, seed=1))[0]
    # 4,000 events and a fit: five sigma of the events alone.
    assert float(draws.mean(0).abs().max()) < 5 / 4000**0.5
    torch.testing.assert_close(torch.cov(draws.T).double(), exact.covariance, rtol=0, atol=5 * (2 / 4000) ** 0.5)


def test_the_importance_estimate_is_exact_where_the_posterior_is():
    """Weights that are all the same: any number of points gives the density itself."""
    model = VariationalAutoencoder((1,), latent=1, decoder="gaussian", noise=0.5, **SMALL).double()
    slope, sd = 1.5, 0.5
    posterior_variance = 1 / (1 + slope**2 / sd**2)
    with torch.no_grad():
        model.decoder.direct.weight.fill_(slope)
        model.encoders[0].direct.weight.fill_(posterior_variance * slope / sd**2)
        raw = 7 * math.atanh(0.5 * math.log(posterior_variance) / 7)
        model.encoders[0].network.last.bias.copy_(torch.tensor([0.0, raw]))
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    exact = td.Normal(0.0, (slope**2 + sd**2) ** 0.5).log_prob(x[:, 0])
    # The noise is a buffer of single precision.
    for n in (1, 7):
        torch.testing.assert_close(model.importance_log_prob(x, n=n, seed=n), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.eval().loss(x).mean(), -exact.mean(), rtol=0.2, atol=0.2)
    posterior = model.posterior(x)
    torch.testing.assert_close(posterior.mean, x * posterior_variance * slope / sd**2)
    torch.testing.assert_close(posterior.log_sd.exp() ** 2, torch.full_like(x, posterior_variance))
    torch.testing.assert_close(model.reconstruct(x), slope * posterior.mean)
    with torch.no_grad():
        model.encoders[0].direct.weight.add_(0.5)
    assert float((model.importance_log_prob(x, n=1, seed=0) - exact).mean()) < -0.05


def test_a_flow_as_prior_makes_up_for_a_decoder_that_is_linear():
    """A ring: with a normal prior and a narrow linear decoder the latent points do not fill the plane."""
    source = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(3000, generator=source)
    radius = 1 + 0.05 * torch.randn(3000, generator=source)
    events = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    options = {"latent": 2, "decoder": "gaussian", "noise": 0.2, "hidden_features": 4}
    shares = []
    for prior in ("normal", "flow"):
        model, _ = fitted(events, latent_prior=prior, **options)
        shares.append(float((model.sample(4000, seed=1).norm(dim=-1) < 0.5).float().mean()))
    assert shares[1] < 0.5 * shares[0]


def test_a_context_moves_the_draws_as_it_moves_the_events():
    source = torch.Generator().manual_seed(0)
    contexts = torch.randn(3000, 2, generator=source)
    events = torch.stack([contexts[:, 0], contexts[:, 0] - contexts[:, 1]], -1)
    events = events + 0.3 * torch.randn(3000, 1, generator=source) + 0.1 * torch.randn(3000, 2, generator=source)
    model, _ = fitted(events, contexts, latent=2, config=TrainConfig(epochs=30, batch_size=128))
    draws = model.sample(10_000, torch.tensor([[1.0, 0.0], [0.0, 2.0]]), seed=0)
    torch.testing.assert_close(draws.mean(0), torch.tensor([[1.0, 1.0], [0.0, -2.0]]), rtol=0, atol=0.08)
    torch.testing.assert_close(draws.std(0), torch.full((2, 2), 0.1**0.5), rtol=0.15, atol=0)
    # The noise of both has one cause.
    assert float(torch.corrcoef(draws[:, 0].T)[0, 1]) == pytest.approx(0.9, abs=0.05)


def test_no_level_of_a_ladder_is_given_up():
    """Clusters of clusters: where the upper level says nothing, its divergence is zero."""
    source = torch.Generator().manual_seed(0)
    side = torch.sign(torch.randn(4000, 1, generator=source))
    middle = 3 * side + 0.5 * torch.randn(4000, 1, generator=source)
    events = torch.cat([middle, -middle, 2 * middle], 1) + 0.3 * torch.randn(4000, 3, generator=source)
    longer = replace(CONFIG, epochs=2 * CONFIG.epochs)
    model, record = fitted(events, latent=(2, 1), decoder="learned-variance", warmup_steps=100, config=longer)
    encoded = model.encode(events)[0]
    with torch.no_grad():
        posterior = model.posterior(encoded)
        top = DiagonalGaussian(posterior.mean[:, 2:], posterior.log_sd[:, 2:])
        standard = DiagonalGaussian(torch.zeros(1, 1), torch.zeros(1, 1))
        assert posterior.mean.shape == (4000, 3)
        assert float(top.divergence(standard).mean()) > 0.3
    gaussian = td.MultivariateNormal(encoded.mean(0), torch.cov(encoded.T))
    assert record.best_validation_loss < -float(gaussian.log_prob(encoded).mean()) - 0.2


def test_beta_grows_over_the_steps_of_training_and_is_final_in_evaluation():
    model = VariationalAutoencoder((3,), latent=2, beta=2.0, warmup_steps=4, **SMALL)
    with torch.no_grad():
        model.encoders[0].direct.bias.fill_(1.0)
        model.decoder.network.last.bias.zero_()
        for layer in (model.decoder.direct, model.encoders[0].direct):
            layer.weight.zero_()
    encoded = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    # A decoder that ignores its input: what is not divergence is the same for all noise.
    divergence = 0.5 * 2 * 1.0
    reconstruction = -td.Normal(0.0, 1.0).log_prob(encoded - model.decoder.direct.bias).sum(-1)
    for weight in (0.0, 0.5, 1.0, 1.5, 2.0, 2.0):
        torch.testing.assert_close(model.train().loss(encoded), reconstruction + weight * divergence)
        torch.testing.assert_close(model.eval().loss(encoded), reconstruction + 2.0 * divergence)
    assert int(model.steps) == 6
    with torch.no_grad():
        model.train().loss(encoded)
    assert int(model.steps) == 6


def test_products_and_divergences_of_gaussians():
    first = DiagonalGaussian(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.3, -0.5]]))
    second = DiagonalGaussian(torch.tensor([[-1.0, 0.5]]), torch.tensor([[0.0, 0.4]]))
    one, two = (td.Normal(g.mean, g.log_sd.exp()) for g in (first, second))
    torch.testing.assert_close(first.divergence(second), td.kl_divergence(one, two).sum(-1))
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    product = first.times(second).log_prob(points) - first.log_prob(points) - second.log_prob(points)
    torch.testing.assert_close(product, product[:1].expand(20))


def test_the_importance_estimate_takes_batches_and_a_support():
    bounds = torch.tensor([[0.0, 1.0], [-torch.inf, torch.inf]])
    model = VariationalAutoencoder((2,), (3,), bounds=bounds, **SMALL).eval()
    x, context = torch.rand(4, 1, 2), torch.randn(5, 3)
    x[1, 0, 0] = 2.0
    estimate = model.importance_log_prob(x, context, 10, seed=0)
    assert estimate.shape == (4, 5)
    assert estimate.dtype == torch.float64
    assert torch.isneginf(estimate).any(1).tolist() == [False, True, False, False]
    assert torch.equal(estimate, model.importance_log_prob(x, context, 10, seed=0))
    assert model.importance_log_prob(x[:0], context[:1], 10, seed=0).shape == (0, 1)
    with pytest.raises(NonFiniteError, match="x: expected finite numbers"):
        model.importance_log_prob(x * torch.nan, context)
    with pytest.raises(ShapeError, match="x: expected shape"):
        model.importance_log_prob(x[..., :1], context)
    with pytest.raises(UsageError, match="n: expected an integer"):
        model.importance_log_prob(x, context, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "latent: expected an integer of at least 1"),
        ({"latent": ()}, "latent: expected at least one level"),
        ({"decoder": "poisson"}, "decoder: expected one of"),
        ({"latent_prior": "vamp"}, "prior: expected one of"),
        ({"noise": 0.1}, "noise: expected None"),
        ({"noise": 0.0, "decoder": "gaussian"}, "noise: expected a number from"),
        ({"beta": -1.0}, "beta: expected a finite number of at least 0"),
        ({"warmup_steps": -1}, "warmup_steps: expected a finite number of at least 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        VariationalAutoencoder((2,), **options)
