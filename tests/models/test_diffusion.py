"""Flow matching and score models: losses that can be trusted, exact posteriors where they are known."""

import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import seeded
from sbi_physics.models.diffusion.density import OBJECTIVES, DiffusionDensity
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train
from simulators.gaussian_linear import GaussianLinear

SMALL = {"hidden_features": 32, "blocks": 2, "steps": 16}
QUICK = TrainConfig(epochs=60, batch_size=256, learning_rate=5e-3)


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return request.param


class Exact(torch.nn.Module):
    """The velocity for events N(mean, width^2), instead of a network."""

    def __init__(self, mean, width):
        super().__init__()
        self.mean, self.width = mean, width
        self.parameter = torch.nn.Parameter(torch.zeros(()))

    def describe(self, summary):
        return None

    def condition(self, angles, description):
        return angles.unsqueeze(-1)

    def velocity(self, events, angles):
        cos, sin = angles.cos(), angles.sin()
        slope = cos * sin * (1 - self.width**2) / (cos**2 * self.width**2 + sin**2)
        return slope * (events - self.mean * cos) - self.mean * sin

    def forward(self, events, angles, description):
        return self.velocity(events, self.condition(angles, description))


@pytest.fixture
def exact(objective):
    density = DiffusionDensity((2,), objective=objective).double()
    density.network = Exact(0.5, 0.3)
    return density.eval()


def test_the_validation_loss_of_the_exact_velocity_is_the_entropy(exact):
    """The bound is tight there, so that losses and log-densities can be compared between models."""
    n = 2000
    law = td.Normal(torch.tensor(0.5, dtype=torch.float64), 0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        events = law.sample((n, 2))
    log_prob = exact.log_prob(events)
    torch.testing.assert_close(log_prob, law.log_prob(events).sum(-1), rtol=0, atol=1e-3)
    # Four times the scatter of the mean over the points of 1,000 events, found by repetition: 0.026.
    tolerance = 4 * 0.026 / 2**0.5
    assert float((exact.loss(events) + log_prob).mean()) == pytest.approx(0.0, abs=tolerance)
    # A wrong width costs what it should or more: the divergence of the two normal distributions.
    exact.network.width = 0.6
    divergence = 2 * float(td.kl_divergence(law, td.Normal(law.mean, 0.6)))
    assert float((exact.loss(events) + log_prob).mean()) > divergence - tolerance > 0.5


def test_the_validation_loss_is_the_same_each_time(exact):
    events = torch.randn(100, 2, dtype=torch.float64)
    state = torch.random.get_rng_state()
    assert torch.equal(exact.loss(events), exact.loss(events))
    assert torch.equal(torch.random.get_rng_state(), state)
    exact.train()
    assert not torch.equal(exact.loss(events), exact.loss(events))


def test_no_velocity_is_better_than_the_exact_one(exact):
    """The training loss has its minimum there: a shift of the mean or the width makes it worse."""
    n = 20_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        events = 0.5 + 0.3 * torch.randn(n, 2, dtype=torch.float64)
    exact.train()

    def loss(mean, width):
        exact.network.mean, exact.network.width = mean, width
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return float(exact.loss(events).mean())

    best = loss(0.5, 0.3)
    assert best < min(loss(0.6, 0.3), loss(0.4, 0.3), loss(0.5, 0.4), loss(0.5, 0.2))


def test_draws_of_the_exact_velocity(exact):
    n = 20_000
    draws, log_prob = exact.sample_and_log_prob(n, seed=1)
    assert ((draws.mean(0) - 0.5).abs() < 5 * 0.3 / n**0.5).all()
    assert ((draws.std(0) / 0.3 - 1).abs() < 5 / (2 * n) ** 0.5).all()
    torch.testing.assert_close(log_prob, td.Normal(0.5, 0.3).log_prob(draws).sum(-1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dims", [1, 2])
def test_the_posterior_of_a_linear_gaussian_is_found(objective, dims):
    gaussian = GaussianLinear(dims=dims)
    pairs = sp.simulate(gaussian, 5000, seed=1, workers=1, progress=False).training_set()
    posterior = sp.NPE(gaussian.parameters, objective, **SMALL, config=QUICK).fit(*pairs, progress=False)
    x_obs = torch.tensor([0.3, -0.2])[:dims]
    mean, covariance = gaussian.posterior_mean_and_covariance(x_obs)
    draws, log_prob = posterior.density.sample_and_log_prob(3000, x_obs, seed=5)
    sigma = covariance.diagonal().sqrt()
    assert ((draws.double().mean(0) - mean).abs() < 0.15 * sigma).all()
    assert draws.double().std(0) == pytest.approx(sigma, rel=0.12)
    log_ratio = td.MultivariateNormal(mean, covariance).log_prob(draws.double()) - log_prob.double()
    weights = (log_ratio - log_ratio.max()).exp()
    assert float(weights.sum() ** 2 / weights.square().sum()) > 0.93 * len(draws)
    assert float((log_prob - posterior.log_prob(draws, x_obs)).abs().max()) < 2e-3
    # What training reports is near the log-density of fresh events.
    theta, x = sp.simulate(gaussian, 1000, seed=2, workers=1, progress=False).training_set()
    held_out = posterior.log_prob(theta, x)
    # The validation events are 500.
    error = float(held_out.std()) * (1 / 1000 + 1 / 500) ** 0.5
    assert posterior.provenance["validation_log_prob"] == pytest.approx(float(held_out.mean()), abs=4 * error + 0.05)


def test_a_density_without_context_learns_two_modes(objective):
    generator = torch.Generator().manual_seed(0)
    events = 0.2 * torch.randn(3000, 1, generator=generator)
    events[::3] += 2.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        density = DiffusionDensity((1,), objective=objective, **SMALL).fit_scaling(events)
        train(density, density.loss, [density.encode(events)[0]], config=QUICK, progress=False)
    draws = density.sample(6000, seed=1)[:, 0]
    assert float((draws > 1).double().mean()) == pytest.approx(1 / 3, abs=0.05)
    assert float(draws[draws < 1].std()) == pytest.approx(0.2, rel=0.15)
    grid = torch.linspace(-3, 5, 801).unsqueeze(-1)
    assert float(density.log_prob(grid).exp().sum() * 0.01) == pytest.approx(1.0, abs=0.01)


def test_the_log_density_builds_no_graph_and_draws_do_without_it():
    density = DiffusionDensity((2,), (3,), **SMALL)
    assert not density.log_prob(torch.zeros(4, 2), torch.zeros(3)).requires_grad
    graphs = []
    density.network.events.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    density.sample(5, torch.zeros(3), seed=0)
    assert graphs == [False] * 4 * density.steps
    density.sample_and_log_prob(5, torch.zeros(3), seed=0)
    assert any(graphs)


def test_more_steps_change_nothing_that_matters(objective):
    density = DiffusionDensity((2,), objective=objective).double()
    density.network = Exact(0.5, 0.1)
    events = 0.5 + 0.1 * torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    default = density.log_prob(events)
    density.steps *= 2
    torch.testing.assert_close(density.log_prob(events), default, rtol=0, atol=2e-4)


def test_many_dimensions_have_a_density_too():
    density = DiffusionDensity((40,)).double()
    density.network = Exact(0.0, 0.5)
    events = 0.5 * torch.randn(20, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = td.Normal(0.0, 0.5).log_prob(events).sum(-1)
    torch.testing.assert_close(density.log_prob(events), exact, rtol=0, atol=1e-2)
    assert math.isfinite(float(density.loss(events).sum()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "guess"}, "objective: expected one of flow-matching, score; got 'guess'"),
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"blocks": 0}, "blocks: expected an integer of at least 1"),
        ({"hidden_features": 1.5}, "hidden_features: expected an integer of at least 1, got 1.5"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        DiffusionDensity((2,), **options)


@pytest.mark.parametrize("alone", [True, False])
def test_more_numbers_than_the_network_is_wide(alone):
    """Independent numbers with two modes each; without the function of each alone they are Gaussian."""
    dims, generator = 40, torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(2, (4000, dims), generator=generator) - 1
    x = signs + 0.5 * torch.randn(4000, dims, generator=generator)
    with seeded(1):
        density = DiffusionDensity((dims,), hidden_features=32, blocks=1, steps=16).fit_scaling(x)
    if not alone:
        density.network.single = None
    encoded, _ = density.encode(x)
    train(density, density.loss, [encoded], config=TrainConfig(epochs=100), seed=2, progress=False)
    drawn = density.sample(2000, seed=3)
    # Between the modes there are 0.16 of the truth, and 0.34 of a Gaussian of the same width.
    between = float((drawn.abs() < 0.5).double().mean())
    assert (between < 0.3) is alone
