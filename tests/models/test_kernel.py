"""Kernel density estimates against those of scipy, and what a good bandwidth is worth."""

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy.stats import gaussian_kde

import sbi_physics as sp
from sbi_physics.core.errors import NonFiniteError, ShapeError, SupportError, UsageError
from sbi_physics.models.kernel import KernelDensity
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.density import train_density


def correlated(n, seed, dims=3):
    map_ = torch.randn(dims, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 1 + torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ map_


@pytest.fixture(params=["equal weights", "weights"])
def weights(request):
    if request.param == "equal weights":
        return None
    return torch.rand(300, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("bandwidth", ["scott", "silverman", 0.4])
def test_it_is_the_estimate_of_scipy(bandwidth, weights):
    events, new = correlated(300, 1), correlated(50, 2)
    reference = gaussian_kde(events.T.numpy(), bandwidth, None if weights is None else weights.numpy())
    density = KernelDensity((3,), bandwidth=bandwidth).double().fit(events, weights=weights)
    assert density.log_prob(new).numpy() == pytest.approx(reference.logpdf(new.T.numpy()), abs=1e-6)
    # Given the last number: the joint estimate over its marginal.
    conditional = KernelDensity((2,), (1,), bandwidth=bandwidth).double()
    conditional.fit(events[:, :2], events[:, 2:], weights)
    expected = reference.logpdf(new.T.numpy()) - reference.marginal([2]).logpdf(new[:, 2:].T.numpy())
    assert conditional.log_prob(new[:, :2], new[:, 2:]).numpy() == pytest.approx(expected, abs=1e-6)


def test_single_precision_is_near_it():
    events, new = correlated(300, 1), correlated(50, 2)
    density = KernelDensity((3,)).fit(events)
    expected = gaussian_kde(events.T.numpy()).logpdf(new.T.numpy())
    assert density.log_prob(new.float()).numpy() == pytest.approx(expected, abs=1e-3)


def test_draws_have_the_moments_of_the_estimate(weights):
    events, n = correlated(300, 1), 40_000
    density = KernelDensity((3,), bandwidth=0.5).double().fit(events, weights=weights)
    mass = np.full(300, 1 / 300) if weights is None else (weights / weights.sum()).numpy()
    covariance = np.cov(events.T.numpy(), aweights=mass, bias=True)
    kernel = 0.25 * np.cov(events.T.numpy(), aweights=mass)
    draws = density.sample(n, seed=0).numpy()
    sd = np.sqrt(np.diag(covariance + kernel))
    assert (np.abs(draws.mean(0) - mass @ events.numpy()) < 5 * sd / n**0.5).all()
    # Of the fourth moments only that they are a few times the square of the second ones.
    assert (np.abs(np.cov(draws.T) - covariance - kernel) < 5 * (3 * 2 / n) ** 0.5 * sd.max() ** 2).all()
    assert not (np.abs(np.cov(draws.T) - covariance) < 5 * (3 * 2 / n) ** 0.5 * sd.max() ** 2).all()


def test_draws_given_a_context_follow_its_density():
    """Their own log-density is the mean over the estimate, which a grid gives, too."""
    events = correlated(300, 1, 2)
    density = KernelDensity((1,), (1,)).double().fit(events[:, :1], events[:, 1:])
    for value in (0.0, 3.0):
        context = torch.tensor([value], dtype=torch.float64)
        grid = torch.linspace(-15, 15, 6001, dtype=torch.float64)[:, None]
        log_prob = density.log_prob(grid, context)
        mass = log_prob.exp() * (grid[1] - grid[0])
        assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
        draws, own = density.sample_and_log_prob(20_000, context, seed=0)
        mean = float(mass @ grid[:, 0])
        sd = float(mass @ (grid[:, 0] - mean) ** 2) ** 0.5
        assert abs(float(draws.mean()) - mean) < 5 * sd / 20_000**0.5
        assert abs(float(draws.std()) - sd) < 5 * sd / 20_000**0.5
        assert abs(float(own.mean()) - float(mass @ log_prob)) < 5 * float(own.std()) / 20_000**0.5


def test_an_event_of_weight_zero_is_not_there():
    events = correlated(100, 1)
    far = torch.cat([events, events + 50])
    weights = torch.cat([torch.ones(100), torch.zeros(100)])
    plain, weighted = (KernelDensity((3,), bandwidth=0.3).double() for _ in range(2))
    plain.fit(events)
    weighted.fit(far, weights=weights)
    assert float(weighted.sample(2000, seed=0).amax()) < 30
    torch.testing.assert_close(weighted.log_prob(events), plain.log_prob(events), rtol=1e-6, atol=1e-6)


def test_the_likeliest_bandwidth_is_better_where_events_are_in_clumps():
    source = torch.Generator().manual_seed(0)

    def clumps(n):
        place = 4 * torch.randint(0, 5, (n, 1), generator=source)
        return place + 0.2 * torch.randn(n, 1, generator=source)

    events, new = clumps(500), clumps(500)
    scott, likely = (KernelDensity((1,), bandwidth=b).fit(events) for b in ("scott", "likelihood"))
    gain = likely.log_prob(new) - scott.log_prob(new)
    assert float(gain.mean()) > 0.3
    # Left out one by one, the events agree with new ones.
    grid = torch.linspace(0.02, 1, 50).tolist()
    means = [float(KernelDensity((1,), bandwidth=h).fit(events).log_prob(new).mean()) for h in grid]
    assert float(likely.log_prob(new).mean()) > max(means) - 0.02


def test_the_likeliest_bandwidths_tell_whether_the_context_matters():
    source = torch.Generator().manual_seed(0)
    context = 3 * torch.rand(800, 1, generator=source)
    noise = torch.randn(800, 1, generator=source)
    told = KernelDensity((1,), (1,), bandwidth="likelihood").fit(torch.sin(4 * context) + 0.1 * noise, context)
    blind = KernelDensity((1,), (1,), bandwidth="likelihood").fit(noise, context)
    assert float(told.bandwidths[1]) < 0.3 * 800 ** (-1 / 6)
    assert float(blind.bandwidths[1]) > 3 * 800 ** (-1 / 6)


def test_it_stays_on_its_support():
    events = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
    density = KernelDensity((1,), bounds=torch.tensor([[0.0, 1.0]])).fit(events)
    grid = (torch.arange(2000)[:, None] + 0.5) / 2000
    assert float(density.log_prob(grid).exp().mean()) == pytest.approx(1.0, abs=5e-3)
    assert bool(torch.isneginf(density.log_prob(torch.tensor([[1.1], [-0.1]]))).all())


def test_many_rows_are_worked_off_in_parts():
    events = correlated(3000, 1)
    density = KernelDensity((2,), (1,)).double().fit(events[:, :2], events[:, 2:])
    new = correlated(3001, 2)
    together = density.log_prob(new[:, :2], new[:, 2:])
    torch.testing.assert_close(together[-5:], density.log_prob(new[-5:, :2], new[-5:, 2:]))
    assert density.sample(3001, new[:1, 2:], seed=0).shape == (3001, 1, 2)


def test_events_that_follow_from_their_context_have_a_narrow_density():
    context = torch.linspace(-1, 1, 50)[:, None]
    density = KernelDensity((1,), (1,)).fit(2 * context, context)
    draws = density.sample(100, torch.tensor([0.5]), seed=0)
    assert float((draws - 1.0).abs().max()) < 1e-3


def test_it_is_kept_where_others_are_trained():
    events = correlated(1000, 1).float()
    density = KernelDensity((2,), (1,)).fit_scaling(events[:, :2], events[:, 2:])
    data = [density.encode(events[:, :2])[0], density.context_scaling(events[:, 2:])]
    weights = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    record = train_density(density, data, weights=weights, config=TrainConfig(validation_fraction=0.2), progress=False)
    assert len(density.points) == record.events == 800
    assert record.best_validation_loss == record.validation_loss[0]
    # What it keeps is better known to it than what was held out.
    assert record.train_loss[0] < record.validation_loss[0]


def test_it_is_a_posterior_by_name(tmp_path):
    prior = td.MultivariateNormal(torch.zeros(2), torch.eye(2))
    source = torch.Generator().manual_seed(0)
    theta = torch.randn(3000, 2, generator=source)
    x = theta + 0.5 * torch.randn(3000, 2, generator=source)
    posterior = sp.NPE(prior, "kernel", augment=False).fit(theta, x, progress=False)
    posterior.save(tmp_path / "posterior.st")
    draws = sp.load(tmp_path / "posterior.st", device="cpu").sample(20_000, [1.0, -1.0], seed=0).values
    assert torch.equal(draws, posterior.sample(20_000, [1.0, -1.0], seed=0).values)
    # Exactly 0.8 times the observation and sqrt(0.2); kernels of h = 0.4 widen it by 8 %.
    torch.testing.assert_close(draws.mean(0), torch.tensor([0.8, -0.8]), rtol=0, atol=0.05)
    assert bool(((draws.std(0) > 0.2**0.5) & (draws.std(0) < 1.15 * 0.2**0.5)).all())


def test_an_embedding_must_be_frozen():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1))
    density = KernelDensity((2,), (2, 2), context_features=1, embedding=network)
    events, contexts = torch.rand(50, 2), torch.rand(50, 2, 2)
    with pytest.raises(UsageError, match="embedding: a kernel density estimate trains none"):
        density.fit(events, contexts)
    network.requires_grad_(False)
    assert density.fit(events, contexts).sample(3, contexts[:2], seed=0).shape == (3, 2, 2)


def test_wrong_input_is_named():
    events = torch.rand(10, 2)
    density, conditional = KernelDensity((2,)), KernelDensity((2,), (1,))
    for call, error, message in (
        (lambda: density.log_prob(events), UsageError, "before it is fitted"),
        (lambda: density.sample(2), UsageError, "before it is fitted"),
        (lambda: density.fit(events[:1]), ShapeError, "events: expected at least 2 rows"),
        (lambda: density.fit(events[:, :1]), ShapeError, r"events: expected shape \(n, 2\)"),
        (lambda: density.fit(events * torch.nan), NonFiniteError, "events: expected finite"),
        (lambda: density.fit(events, events), ShapeError, "contexts: expected None"),
        (lambda: conditional.fit(events), ShapeError, "contexts: expected some"),
        (lambda: conditional.fit(events, torch.rand(9, 1)), ShapeError, "equally many rows"),
        (lambda: density.fit(events, weights=-torch.ones(10)), UsageError, "weights: expected none below 0"),
        (lambda: density.fit(events, weights=torch.zeros(10)), UsageError, "weights: expected at least 2 above 0"),
        (lambda: density.fit(events, weights=torch.ones(9)), ShapeError, r"weights: expected shape \(10,\)"),
        (lambda: KernelDensity((2,), bandwidth="wide"), UsageError, "bandwidth: expected one of"),
        (lambda: KernelDensity((2,), bandwidth=0.0), UsageError, "bandwidth: expected one of"),
    ):
        with pytest.raises(error, match=message):
            call()
    bounded = KernelDensity((2,), bounds=torch.tensor([[0.0, 1.0]] * 2))
    with pytest.raises(SupportError, match="events: expected all inside the bounds"):
        bounded.fit(events + 1)
    with pytest.raises(UsageError, match="carry no gradients"):
        density.fit(events).rsample(3, seed=0)
