"""Autoencoders: penalties of small nets whose values are known, and outliers."""

import math

import pytest
import torch
from torch import nn

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.models.autoencoder import Autoencoder
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train


def events(n=40, dims=3, seed=0):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(**options):
    """A linear net from three numbers to two and back, in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder((3,), code=2, layers=0, **options).double().eval()


def test_a_linear_net_without_a_penalty_is_a_projection():
    model, x = linear(), events()
    first, second = model.encoder[0], model.decoder[0]
    expected = ((x @ first.weight.T + first.bias) @ second.weight.T + second.bias - x).square().mean(-1)
    torch.testing.assert_close(model.loss(x), expected)
    torch.testing.assert_close(model.reconstruction_error(x), expected)


def test_the_penalty_on_the_size_of_the_code():
    model, x = linear(penalty="l1", strength=0.3), events()
    code = x @ model.encoder[0].weight.T + model.encoder[0].bias
    columns = model.decoder[0].weight / model.decoder[0].weight.square().sum(0).sqrt()
    error = (code @ columns.T + model.decoder[0].bias - x).square().mean(-1)
    torch.testing.assert_close(model.loss(x), error + 0.3 * code.abs().sum(-1))
    with torch.no_grad():
        model.decoder[0].weight.mul_(7.0)
    # A decoder cannot undo a code that is small by its scale alone.
    torch.testing.assert_close(model.reconstruction_error(x), error)


def test_the_penalty_on_the_activity_of_the_code():
    model, x = linear(penalty="kl", strength=0.3, activity=0.1), events()
    code = torch.sigmoid(x @ model.encoder[0].weight.T + model.encoder[0].bias)
    wanted, mean = torch.distributions.Bernoulli(torch.tensor(0.1).double()), code.mean(0)
    divergence = torch.distributions.kl_divergence(wanted, torch.distributions.Bernoulli(mean)).sum()
    torch.testing.assert_close(model.loss(x) - model.reconstruction_error(x), (0.3 * divergence).expand(len(x)))
    with torch.no_grad():
        model.encoder[0].weight.zero_()
        model.encoder[0].bias.fill_(math.log(0.1 / 0.9))
    torch.testing.assert_close(model.loss(x), model.reconstruction_error(x))


def test_the_contractive_penalty_of_a_linear_net_is_the_norm_of_its_matrix():
    model, x = linear(penalty="contractive", strength=0.3), events()
    expected = 0.3 * model.encoder[0].weight.square().sum()
    torch.testing.assert_close(model.loss(x) - model.reconstruction_error(x), expected.expand(len(x)))


def test_the_contractive_penalty_of_a_hidden_layer_and_its_gradient():
    options = {"code": 2, "hidden_features": 5, "penalty": "contractive", "strength": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Autoencoder((3,), layers=1, **options).double().train()
    x = events(7)
    first, _, second = model.encoder
    hidden = x @ first.weight.T + first.bias
    sigmoid = torch.sigmoid(hidden)
    slope = sigmoid * (1 + hidden * (1 - sigmoid))
    jacobian = torch.einsum("kh,nh,hd->nkd", second.weight, slope, first.weight)
    penalty = model.loss(x) - (model.decode(model.code(x)) - x).square().mean(-1)
    torch.testing.assert_close(penalty, jacobian.square().sum((1, 2)))
    # The same to second order: the penalty itself is trained.
    mine, expected = (
        torch.autograd.grad(value.sum(), [first.weight, second.weight], retain_graph=True)
        for value in (penalty, jacobian.square().sum((1, 2)))
    )
    torch.testing.assert_close(mine, expected)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().loss(x), (penalty + model.reconstruction_error(x)).detach())


def test_probes_estimate_the_contractive_penalty():
    exact, x = linear(penalty="contractive", strength=1.0), events(1).expand(40_000, 3)
    probed = linear(penalty="contractive", strength=1.0, probes=2)
    probed.load_state_dict(exact.state_dict())
    with torch.no_grad():
        each = probed.loss(x) - probed.reconstruction_error(x)
        expected = (exact.loss(x) - exact.reconstruction_error(x))[0]
    assert abs(float(each.mean() - expected)) < 5 * float(each.std()) / len(x) ** 0.5
    assert float(each.std()) > 0.1 * float(expected)
    twin = 1.1 * expected
    assert abs(float(each.mean() - twin)) > 5 * float(each.std()) / len(x) ** 0.5


def test_noise_adds_what_the_net_lets_through():
    model, quiet, x = linear(noise=0.5), linear(), events(1).expand(40_000, 3)
    whole = model.decoder[0].weight @ model.encoder[0].weight
    expected = 0.25 * whole.detach().square().sum() / 3
    each = (model.loss(x) - quiet.loss(x)).detach()
    assert abs(float(each.mean() - expected)) < 5 * float(each.std()) / len(x) ** 0.5
    # In evaluation the same each time; in training anew.
    assert torch.equal(model.loss(x), model.loss(x))
    with torch.random.fork_rng():
        assert not torch.equal(model.train().loss(x), model.loss(x))
    torch.testing.assert_close(model.reconstruction_error(x), quiet.reconstruction_error(x))


@pytest.mark.parametrize("options", [{}, {"penalty": "l1"}, {"penalty": "kl"}, {"penalty": "contractive"}])
def test_outliers_are_reconstructed_worse(options):
    """Events near a curve; far from it nothing was learned."""
    source = torch.Generator().manual_seed(0)
    place = torch.randn(2000, 1, generator=source)
    x = torch.cat([place, place**2, place**3 / 3], 1) + 0.05 * torch.randn(2000, 3, generator=source)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {"code": 2, "hidden_features": 16, "layers": 1, "noise": 0.05, "strength": 1e-3, "activity": 0.5}
        model = Autoencoder((3,), **{**settings, **options}).fit_scaling(x)
    record = train(model, model.loss, [model.encode(x)], config=TrainConfig(epochs=10), progress=False)
    assert record.validation_loss[-1] < 0.5 * record.validation_loss[0]
    usual = model.reconstruction_error(x)
    unusual = model.reconstruction_error(torch.tensor([[0.0, 3.0, 3.0], [2.0, -2.0, 0.0]]))
    assert bool((unusual > usual.quantile(0.95)).all())


def test_what_is_usual_depends_on_the_context():
    source = torch.Generator().manual_seed(0)
    context = torch.randn(2000, 1, 1, generator=source)
    x = 3 * context[:, 0] * torch.tensor([[1.0, -1.0]]) + 0.1 * torch.randn(2000, 2, generator=source)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Autoencoder((2,), (1, 1), code=1, layers=0).fit_scaling(x, context)
    data = [model.encode(x), model.context_scaling(context)]
    train(model, model.loss, data, config=TrainConfig(epochs=10), progress=False)
    events = torch.tensor([[3.0, -3.0]]).expand(2, 2)
    right, wrong = model.reconstruction_error(events, torch.tensor([[[1.0]], [[-1.0]]]))
    assert wrong > 10 * right


def test_wrong_input_is_named():
    model, conditional = Autoencoder((3,)), Autoencoder((3,), (2,))
    x = torch.zeros(4, 3)
    for call, message in (
        (lambda: model.reconstruction_error(x[:, :2]), r"x: expected shape \(n, 3\)"),
        (lambda: model.reconstruction_error(x, torch.zeros(4, 2)), "unconditional"),
        (lambda: conditional.reconstruction_error(x), r"context: expected shape \(n, 2\), got None"),
        (lambda: conditional.reconstruction_error(x, torch.zeros(3, 2)), "equally many rows"),
    ):
        with pytest.raises(ShapeError, match=message):
            call()
    with pytest.raises(NonFiniteError, match="x: expected finite"):
        model.reconstruction_error(x * torch.nan)
    assert model.reconstruction_error(x[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "l3"}, "penalty: expected one of"),
        ({"layers": -1}, "layers: expected an integer of at least 0"),
        ({"activity": 1.0}, "activity: expected a number between 0 and 1"),
        ({"strength": -1.0}, "strength: expected a finite number"),
        ({"noise": math.nan}, "noise: expected a finite number"),
        ({"probes": 0}, "probes: expected an integer"),
        ({"code": 0}, "code: expected an integer"),
        ({"hidden_features": 0}, "hidden_features: expected an integer"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=message):
        Autoencoder((2,), **options)


def test_it_is_a_module_that_can_be_saved():
    first, second = Autoencoder((3,)), Autoencoder((3,))
    assert isinstance(first, nn.Module)
    first.fit_scaling(events().float() * 3 + 1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.reconstruction_error(events().float()), second.reconstruction_error(events().float()))
