"""Hurdle decoders: what they draw is what they say, and voxels of a ring are alike."""

import math

import pytest
import torch
from scipy import stats

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.gan import GenerativeAdversarialNetwork
from sbi_physics.models.hurdle import HurdleNetwork, _Mixture
from sbi_physics.models.vae.model import VariationalAutoencoder
from sbi_physics.train.adversarial import train_adversarial
from sbi_physics.train.adversarial_config import AdversarialConfig
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

GROUPS = [0, 1, 0, 1, 2, -1]
ANGLES = [0.0, 0.0, math.pi, math.pi, 0.0, 0.0]
DRAWS = 20_000


def network(*, angles=None, seed=0, groups=GROUPS):
    """A network whose weights are all random, and whose numbers have their edge at -8, far below their values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = HurdleNetwork(2, groups, 1, angles=angles, components=3, hidden_features=8, blocks=1).double()
        for parameter in net.parameters():
            parameter.data = 0.4 * torch.randn_like(parameter)
    net.edges.fill_(-8.0)
    return net


@torch.no_grad()
def one_point(net, n):
    """The same latent point and condition, n times."""
    source = torch.Generator().manual_seed(1)
    latent, condition = (torch.randn(1, k, generator=source, dtype=torch.float64).expand(n, k) for k in (2, 1))
    return net(latent, condition)


def drawn(net, n=DRAWS, seed=2):
    noise = torch.randn(n, 2 * len(net.order), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        return one_point(net, n).draw(noise)


@pytest.mark.parametrize("angles", [None, ANGLES])
def test_shares_of_zeros_and_values_follow_the_density(angles):
    net = network(angles=angles)
    draws = drawn(net)
    grid = torch.linspace(-8, 12, 4001, dtype=torch.float64)
    for column, group in enumerate(GROUPS):
        # Only one number moves: the density of the others is a factor that drops out.
        rows = draws[:1].repeat(len(grid) + 1, 1)
        rows[0, column], rows[1:, column] = -9.0, grid
        log_prob = one_point(net, len(rows)).log_prob(rows)
        share = 1 / (1 + torch.trapezoid((log_prob[1:] - log_prob[0]).exp(), grid))
        zeros = (draws[:, column] < -8).double().mean()
        if group == -1:
            assert zeros == 0
        else:
            assert abs(zeros - share) < 4 * math.sqrt(0.25 / DRAWS)


def test_values_above_the_threshold_have_the_distribution_of_the_mixture():
    net = network()
    given = one_point(net, 1)
    draws = drawn(net)[:, 4]
    weights, means = given.log_weights[0, :, net.group_of[net.back][4]].exp(), given.positions[0]
    means, sds = means[:, net.group_of[net.back][4]], given.log_sds[0, :, net.group_of[net.back][4]].exp()
    values = draws[draws > -8].detach().numpy()

    def cdf(y):
        return (weights.numpy() * stats.norm.cdf(y[:, None], means.numpy(), sds.numpy())).sum(1)

    assert stats.kstest(values, cdf).pvalue > 0.01
    assert stats.kstest(values + 0.1, cdf).pvalue < 1e-6


def test_the_derivative_by_hand_is_the_right_one():
    source = torch.Generator().manual_seed(3)
    y = torch.randn(4, 2, 5, generator=source, dtype=torch.float64).requires_grad_()
    rest = [torch.rand(4, 3, 2, generator=source, dtype=torch.float64).add(0.3).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(_Mixture.apply, (y, *rest))


def test_numbers_of_a_group_are_alike_but_for_their_angles():
    events = drawn(network())[:50]
    swapped = events[:, [2, 1, 0, 3, 4, 5]]
    plain, waves = network(), network(angles=ANGLES)
    assert torch.allclose(one_point(plain, 50).log_prob(events), one_point(plain, 50).log_prob(swapped))
    assert not torch.allclose(one_point(waves, 50).log_prob(events), one_point(waves, 50).log_prob(swapped))
    other = events[:, [1, 0, 2, 3, 4, 5]]  # of two groups
    assert not torch.allclose(one_point(plain, 50).log_prob(events), one_point(plain, 50).log_prob(other))


def test_of_the_zeros_the_first_to_become_a_number_is_chosen_in_proportion_to_its_rate():
    net = network(groups=[0, 1])
    net.network.last.bias.data.view(-1, 2)[0] = torch.tensor([-3.0, -2.0], dtype=torch.float64)
    rates = one_point(net, 1).log_rates.exp()[0]
    draws = drawn(net, 4 * DRAWS)
    none = (draws < -8).all(1)
    # In units of an event, where the columns can be compared.
    first = (draws[none] - net.edges)[:, net.back] * net.scales
    share = (first.argmax(1) == 0).double().mean()
    expected = rates[0] / rates.sum()
    assert abs(share - expected) < 4 * math.sqrt(0.25 / int(none.sum()))


def zero_inflated(n, seed):
    """Ten numbers of two groups that are zero together or not, and as large as a common factor says."""
    source = torch.Generator().manual_seed(seed)
    strength = torch.randn(n, 1, generator=source)
    rates = (strength + torch.tensor([0.0] * 5 + [-1.0] * 5)).exp()
    hit = torch.rand(n, 10, generator=source) > (-rates).exp()
    return torch.where(hit, 2 + 0.5 * strength + 0.2 * torch.randn(n, 10, generator=source), -0.5)


def test_an_autoencoder_learns_zeros_and_what_they_have_in_common():
    events, new = zero_inflated(6000, 1), zero_inflated(6000, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VariationalAutoencoder(
            (10,), latent=1, decoder="hurdle", groups=[0] * 5 + [1] * 5, hidden_features=16, blocks=1
        ).fit_scaling(events)
    train(model, model.loss, [model.encode(events)[0]], config=TrainConfig(epochs=12, batch_size=128), progress=False)
    draws = model.eval().sample(6000, seed=3)
    zeros, real = (draws < 0).double(), (new < 0).double()
    assert torch.allclose(zeros.mean(0), real.mean(0), atol=4 * math.sqrt(0.5 / 6000) + 0.01)
    # The spread of the number of zeros is what the latent number is for; independent zeros would have 1.5.
    assert float(zeros.sum(1).std() / real.sum(1).std()) == pytest.approx(1, abs=0.06)
    independent = torch.stack([column[torch.randperm(6000)] for column in real.unbind(1)], 1)
    assert float(independent.sum(1).std() / real.sum(1).std()) < 0.7
    assert float(draws[draws > 0].mean() - new[new > 0].mean()) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"groups": [0]}, UsageError),
        ({"groups": [0, -2]}, UsageError),
        ({"angles": [0.0]}, ShapeError),
        ({"components": 0}, UsageError),
        ({"noise": 0.1}, UsageError),
        ({"bounds": torch.tensor([[0.0, 1.0], [0.0, 1.0]])}, UsageError),
        ({"decoder": "gaussian", "groups": [0, 0]}, UsageError),
    ],
)
def test_bad_options_are_refused(options, error):
    with pytest.raises(error):
        VariationalAutoencoder((2,), **{"decoder": "hurdle", **options})


@pytest.mark.slow
def test_a_generator_learns_zeros_from_a_critic():
    events, new = zero_inflated(4000, 1), zero_inflated(4000, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GenerativeAdversarialNetwork(
            (10,), groups=[0] * 5 + [1] * 5, noise_features=2, hidden_features=32, blocks=1
        ).fit_scaling(events)
    data = [model.encode(events)[0]]
    start = TrainConfig(epochs=5, batch_size=128)
    train(model.generator_part, model.likelihood_loss, data, config=start, progress=False)
    assert common_zeros(model, new) < 0.7
    config = AdversarialConfig(epochs=120, batch_size=64, critic_steps=2)
    train_adversarial(model, data, config=config, progress=False)
    assert common_zeros(model, new) == pytest.approx(1, abs=0.15)
    zeros, real = ((events < 0).double().mean(0) for events in (model.sample(4000, seed=3), new))
    assert torch.allclose(zeros, real, atol=0.05)


def common_zeros(model, real):
    """How much the number of zeros varies, over that of real events; 0.6 where nothing is in common."""
    draws = model.eval().sample(4000, seed=3)
    return float((draws < 0).double().sum(1).std() / (real < 0).double().sum(1).std())


def test_zeros_have_one_place_before_the_critic_and_a_derivative():
    net = network().requires_grad_(True)
    latent, noise = torch.zeros(200, 2, dtype=torch.float64), torch.randn(200, 12, dtype=torch.float64)
    condition = torch.zeros(200, 1, dtype=torch.float64)
    draws = net(latent, condition).draw(noise, temperature=0.5)
    hard = net(latent, condition).draw(noise)
    assert torch.allclose(draws.detach(), net.seen(hard).detach())
    zeros = (draws < net.edges[net.group_of[net.back]]) & ~net.always
    draws[zeros].sum().backward()
    assert float(net.network.last.bias.grad.abs().sum()) > 0
