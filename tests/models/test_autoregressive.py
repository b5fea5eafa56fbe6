"""Autoregressive densities against Gaussians, and against numerical integrals of their conditionals."""

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import stats

from sbi_physics.core.errors import UsageError
from sbi_physics.models.autoregressive import NETWORKS, AutoregressiveDensity, ScalarMixtures
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.density import train_density

SMALL = {"components": 2, "hidden_features": 16, "blocks": 1}


def correlated(dims, seed=0):
    """A Gaussian with a full covariance."""
    map_ = torch.randn(dims, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return td.MultivariateNormal(torch.arange(dims).double(), map_ @ map_.T + 0.3 * torch.eye(dims).double())


def draws_of(distribution, n, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return distribution.sample((n,))


def shaken(network, dims, context=None, **options):
    """A density whose weights are far from where they start."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        density = AutoregressiveDensity((dims,), context, network=network, **{**SMALL, **options}).double().eval()
        for weight in density.parameters():
            weight.add_(0.4 * torch.randn_like(weight))
    return density


def fitted(events, contexts=None, **options):
    shape = None if contexts is None else tuple(contexts.shape[1:])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        density = AutoregressiveDensity(events.shape[1:], shape, **{**SMALL, **options}).fit_scaling(events, contexts)
    data = [density.encode(events.float())[0], *([] if contexts is None else [density.context_scaling(contexts)])]
    train_density(density, data, config=TrainConfig(epochs=15), progress=False)
    return density


@pytest.fixture(params=NETWORKS)
def network(request):
    return request.param


@pytest.mark.parametrize("kernel", ["gaussian", "logistic"])
def test_a_mixture_is_that_of_scipy(kernel):
    mixture = ScalarMixtures(
        torch.tensor([0.3, -0.4]).double(),
        torch.tensor([-1.0, 2.0]).double(),
        torch.tensor([0.5, -0.7]).double(),
        kernel,
    )
    values = torch.linspace(-40, 40, 81, dtype=torch.float64)
    scipy = stats.norm if kernel == "gaussian" else stats.logistic
    weights = mixture.logits.softmax(-1)
    each = [
        scipy.logpdf(values, c, s)
        for c, s in zip(mixture.centres.tolist(), mixture.log_scales.exp().tolist(), strict=True)
    ]
    expected = torch.logsumexp(torch.as_tensor(np.stack(each, -1)) + weights.log(), -1)
    torch.testing.assert_close(mixture.log_prob(values), expected)
    n = 20_000
    many = ScalarMixtures(*(part.expand(n, 2) for part in mixture[:3]), kernel)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = many.draw()

    def cumulative(x):
        parts = zip(weights.tolist(), mixture.centres.tolist(), mixture.log_scales.exp().tolist(), strict=True)
        return sum(w * scipy.cdf(x, c, s) for w, c, s in parts)

    assert stats.kstest(draws.numpy(), cumulative).pvalue > 1e-4
    assert stats.kstest(draws.numpy() + 0.1, cumulative).pvalue < 1e-4


@pytest.mark.parametrize("kernel", ["gaussian", "logistic"])
def test_each_number_integrates_to_one_given_those_before(network, kernel):
    density = shaken(network, 2, (3,), kernel=kernel)
    context = torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
    # Nodes that reach far out, for tails that are exponential.
    t = torch.linspace(-1, 1, 8001, dtype=torch.float64)
    nodes, log_steps = torch.sinh(7 * t), (7 * torch.cosh(7 * t) * (t[1] - t[0])).log()

    def first(values):
        given = density._given(torch.stack([values, 0 * values], 1), density._summary(context).reshape(1, -1))
        return ScalarMixtures(*(part[:, 0] for part in given[:3]), kernel).log_prob(values)

    with torch.no_grad():
        assert float((first(nodes) + log_steps).logsumexp(0)) == pytest.approx(0.0, abs=1e-4)
        for value in torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64):
            log_joint = density.log_prob(torch.stack([value.expand(8001), nodes], 1), context)
            marginal = (log_joint + log_steps).logsumexp(0)
            assert float(marginal) == pytest.approx(float(first(value.reshape(1))), abs=1e-4)


def test_no_number_sees_itself_or_those_after_it(network):
    density = shaken(network, 5)
    events = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def parameters(rows):
        return torch.cat(density._given(rows, None)[:3], -1)[0]

    jacobian = torch.autograd.functional.jacobian(parameters, events)[:, :, 0]
    sees = jacobian.abs().amax(1) > 0
    assert torch.equal(sees, torch.ones(5, 5).tril(-1).bool())


@pytest.fixture(scope="module", params=NETWORKS)
def gaussian(request):
    """A Gaussian and what was learned from 3,000 events of it."""
    exact = correlated(3)
    return exact, fitted(draws_of(exact, 3000, 1), network=request.param)


@torch.no_grad()
def test_a_gaussian_is_found_with_its_conditionals(gaussian):
    exact, density = gaussian
    new = draws_of(exact, 2000, 2)
    loss = (exact.log_prob(new) - density.log_prob(new.float()).double()).mean()
    # A diagonal Gaussian would lose much more.
    alone = td.Normal(exact.mean, exact.variance.sqrt()).log_prob(new).sum(-1)
    assert -0.01 < float(loss) < 0.03
    assert float((exact.log_prob(new) - alone).mean()) > 0.3
    # The last number given the others.
    covariance = exact.covariance_matrix
    slope = torch.linalg.solve(covariance[:2, :2], covariance[:2, 2])
    sd = (covariance[2, 2] - covariance[2, :2] @ slope).sqrt()
    mean = exact.mean[2] + (new[:, :2] - exact.mean[:2]) @ slope
    given = density._given(density.encode(new.float())[0], None)
    centre = (given.logits[:, 2].softmax(-1) * given.centres[:, 2]).sum(-1)
    found = (centre * density.event_scaling.scale[2] + density.event_scaling.mean[2]).double()
    # Means that are off by this much cost what the whole density may lose.
    assert float((found - mean).square().mean().sqrt()) < (2 * 0.03) ** 0.5 * float(sd)


def test_draws_have_the_moments_of_the_gaussian(gaussian):
    exact, density = gaussian
    n, draws = 20_000, density.sample(20_000, seed=0).double()
    sigma = exact.variance.sqrt()
    # The fit saw 3,000 events, the draws add little.
    assert bool(((draws.mean(0) - exact.mean).abs() < 5 * sigma * (1 / 3000 + 1 / n) ** 0.5).all())
    difference = (torch.corrcoef(draws.T) - exact.covariance_matrix / torch.outer(sigma, sigma)).abs()
    assert float(difference.max()) < 5 * (1 / 3000 + 1 / n) ** 0.5


def test_two_modes_and_a_context():
    """x is c or -c: the mixture has both, and the second number knows which."""
    source = torch.Generator().manual_seed(0)
    context = 1 + torch.rand(3000, 1, generator=source)
    side = torch.sign(torch.randn(3000, 1, generator=source))
    events = torch.cat([side * context, side], 1) + 0.1 * torch.randn(3000, 2, generator=source)
    density = fitted(events, context)
    draws = density.sample(4000, torch.tensor([1.5]), seed=0)
    assert float((draws[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(((draws[:, 0].abs() - 1.5).abs() < 0.5).float().mean()) > 0.98
    assert float((draws[:, 0] * draws[:, 1] > 0).float().mean()) > 0.98


def test_a_recurrent_network_follows_a_sequence():
    """Each number is a sine of the one before and noise: one rule for all of them."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 1, generator=source)
    steps = [x]
    for _ in range(11):
        steps.append(0.8 * torch.sin(2 * steps[-1]) + 0.2 * torch.randn(2000, 1, generator=source))
    events = torch.cat(steps, 1)
    density = fitted(events, network="gru", blocks=1)
    with torch.no_grad():
        mean = float(density.log_prob(events).mean())
    entropy = 0.5 * torch.log(torch.tensor(2 * torch.pi * torch.e))
    exact = float(-entropy - 11 * (entropy + torch.log(torch.tensor(0.2))))
    gaussian = td.MultivariateNormal(events.mean(0), torch.cov(events.T)).log_prob(events).mean()
    assert exact - 1.5 < mean < exact + 0.3
    assert mean > float(gaussian) + 2


def test_draws_carry_no_gradients(network):
    with pytest.raises(UsageError, match="carry no gradients"):
        shaken(network, 2).rsample(3, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "rnn"}, "network: expected one of"),
        ({"kernel": "cauchy"}, "kernel: expected one of"),
        ({"components": 0}, "components: expected an integer of at least 1"),
        ({"hidden_features": 0}, "hidden_features: expected an integer of at least 1"),
        ({"blocks": 0}, "blocks: expected an integer of at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        AutoregressiveDensity((2,), **options)
