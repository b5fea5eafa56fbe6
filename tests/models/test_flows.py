"""How flows are built, and the linear layers between them."""

import pytest
import torch
from nflows.distributions.normal import ConditionalDiagonalNormal, StandardNormal
from nflows.flows.base import Flow
from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform
from nflows.transforms.base import CompositeTransform
from torch import nn

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.build import Architecture, build_density
from sbi_physics.models.flows.build import BOX, FLOWS, build_flow
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.models.flows.linear import LULinear, Permutation
from sbi_physics.models.scaling import Standardise

FREE = torch.tensor([[-torch.inf, torch.inf]] * 2)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("dims", [1, 2, 3, 7])
def test_a_new_flow_is_its_base(name, dims):
    """Apart from the order of the dimensions, which no base can tell."""
    flow = build_flow(name, dims, 3)
    assert isinstance(flow, Flow)
    base = torch.distributions.Uniform(-1.0, 1.0) if name == BOX else torch.distributions.Normal(0.0, 1.0)
    x = 2 * torch.rand(5, dims, generator=torch.Generator().manual_seed(0)) - 1
    expected = base.log_prob(x).sum(-1)
    torch.testing.assert_close(flow.log_prob(x, context=torch.ones(5, 3)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_every_parameter_learns(name):
    """None is left out of the graph, in a flow that is not at its start."""
    options = {"circular": [1]} if name == BOX else {}
    flow = build_flow(name, 3, 2, transforms=3, hidden_features=8, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in flow.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        flow.log_prob(2 * torch.rand(64, 3) - 1, context=torch.randn(64, 2)).sum().backward()
    without = [name for name, weight in flow.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


MISTAKES = {
    "model": (lambda: build_flow("realnvp", 2), "model: expected one of maf, maf-spline, nsf, nsf-box; got 'realnvp'"),
    "option": (lambda: build_flow("nsf", 2, layers=3), "option of the flow 'nsf': expected one of"),
    "not for this one": (lambda: build_flow("maf", 2, bins=3), "option of the flow 'maf'"),
    "transforms": (lambda: build_flow("nsf", 2, transforms=0), "transforms: expected an integer of at least 1"),
    "bins": (lambda: build_flow("nsf", 2, bins=2.5), "bins: expected an integer of at least 1"),
    "features": (lambda: build_flow("nsf", 0), "features: expected an integer of at least 1"),
    "tail bound": (lambda: build_flow("nsf", 2, tail_bound=-1.0), "tail_bound: expected"),
    "circle twice": (lambda: build_flow("nsf-box", 2, circular=[1, 1]), "circular: expected distinct indices"),
    "no such circle": (lambda: build_flow("nsf-box", 2, circular=[2]), r"indices from 0 to 1, got \[2\]"),
    "circle without a number": (lambda: build_flow("nsf-box", 2, circular="a"), "circular: expected distinct indices"),
    "no circles elsewhere": (lambda: build_flow("nsf", 2, circular=[0]), "option of the flow 'nsf'"),
    "no tails on a box": (lambda: build_flow("nsf-box", 2, tail_bound=3.0), "option of the flow 'nsf-box'"),
    "too many bins": (lambda: build_flow("nsf", 2, bins=1001), "bins: expected"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises(UsageError, match=message):
        call()


def test_options_shape_the_flow():
    small = sum(p.numel() for p in build_flow("nsf", 2, transforms=1, hidden_features=4).parameters())
    large = sum(p.numel() for p in build_flow("nsf", 2, transforms=2, hidden_features=8).parameters())
    assert small < large


def test_lu_linear_inverts_and_knows_its_determinant():
    layer = LULinear(4).double()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        torch.testing.assert_close(layer(torch.eye(4).double())[0], torch.eye(4).double(), rtol=0, atol=1e-6)
        for weight in layer.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
        x = torch.randn(6, 4, dtype=torch.float64)
    y, ladj = layer(x)
    back, inverse_ladj = layer.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_ladj, -ladj)
    matrix = torch.autograd.functional.jacobian(lambda v: layer(v.unsqueeze(0))[0][0], x[0])
    torch.testing.assert_close(torch.linalg.slogdet(matrix).logabsdet, ladj[0])


def test_permutation_puts_columns_back():
    layer = Permutation(torch.tensor([2, 0, 1]))
    x = torch.arange(6.0).reshape(2, 3)
    y, ladj = layer(x)
    assert y.tolist() == [[2, 0, 1], [5, 3, 4]]
    assert torch.equal(layer.inverse(y)[0], x)
    assert ladj.tolist() == [0, 0]


class TestStandardise:
    def test_mean_zero_and_scale_one(self):
        data = 3 * torch.randn(1000, 2, 3, generator=torch.Generator().manual_seed(0)) + 1e4
        scaling = Standardise((2, 3)).fit(data)
        scaled = scaling(data)
        torch.testing.assert_close(scaled.mean(0), torch.zeros(2, 3), rtol=0, atol=1e-3)
        torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(2, 3), rtol=1e-3, atol=0)
        torch.testing.assert_close(scaling.inverse(scaled), data)
        assert float(scaling.ladj) == pytest.approx(-float(scaling.scale.log().sum()))

    @pytest.mark.parametrize("constant", [0.0, 5.0, 0.1, -1e6])
    def test_a_constant_feature_is_not_scaled(self, constant):
        scaling = Standardise((1,)).fit(torch.full((100, 1), constant))
        assert scaling.scale.tolist() == [1.0]
        assert scaling(torch.tensor([[constant]])).tolist() == [[0.0]]


def test_an_nflows_flow_of_ones_own():
    transform = CompositeTransform([MaskedAffineAutoregressiveTransform(2, 8, context_features=3)])
    density = FlowDensity(Flow(transform, StandardNormal([2])), (2,), (3,)).eval()
    context = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    theta, log_prob = density.sample_and_log_prob(5, context, seed=1)
    torch.testing.assert_close(density.log_prob(theta, context), log_prob, rtol=1e-4, atol=1e-4)
    assert torch.equal(density.sample(5, context, seed=1), theta)


def test_a_base_that_depends_on_the_context():
    transform = CompositeTransform([MaskedAffineAutoregressiveTransform(2, 8, context_features=3)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = Flow(transform, ConditionalDiagonalNormal([2], context_encoder=nn.Linear(3, 4)))
    density = FlowDensity(flow, (2,), (3,)).eval()
    context = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0]])
    theta, log_prob = density.sample_and_log_prob(6, context, seed=1)
    assert theta.shape == (6, 2, 2)
    torch.testing.assert_close(density.log_prob(theta, context), log_prob, rtol=1e-4, atol=1e-4)
    assert torch.equal(density.sample(6, context, seed=1), theta)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(-1)


def test_an_embedding_summarises_the_context():
    architecture = Architecture("nsf", (2,), (3, 10), {"transforms": 1}, True)
    density = build_density(architecture, bounds=FREE, embedding=Mean())
    context = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(0))
    assert density.log_prob(torch.zeros(4, 2), context).shape == (4,)
    assert density.sample(5, context, seed=0).shape == (5, 4, 2)
    with pytest.raises(UsageError, match="hand it in again"):
        build_density(architecture, bounds=FREE)
    with pytest.raises(ShapeError, match=r"embedding: expected summaries of shape \(2, C\)"):
        build_density(architecture, bounds=FREE, embedding=nn.Identity())


def test_an_architecture_is_written_and_read():
    for architecture in (
        Architecture("nsf", (2,), (3, 10), {"transforms": 1}, True),
        Architecture("maf", (1,), None),
        Architecture("nsf-box", (2,), (1,), {"circular": [0]}),
    ):
        assert Architecture.from_dict(architecture.to_dict()) == architecture
    with pytest.raises(UsageError, match="hand in one of the same structure"):
        build_density(Architecture("custom", (2,), None), bounds=FREE)


def test_scaling_is_learned_and_kept_in_the_state():
    events = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 3 - 1
    contexts = 100 + torch.arange(500.0).unsqueeze(-1)
    bounds = torch.tensor([[-1.0, 2.0], [-torch.inf, torch.inf]])
    density = build_density(Architecture("maf", (2,), (1,)), bounds=bounds).fit_scaling(events, contexts)
    encoded, ladj = density.encode(events)
    torch.testing.assert_close(encoded.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded.std(0, correction=0), torch.ones(2), rtol=1e-5, atol=0)
    loss = density.loss(encoded, density.context_scaling(contexts))
    torch.testing.assert_close(ladj - loss, density.log_prob(events, contexts), rtol=1e-4, atol=1e-4)
    assert {"event_scaling.mean", "context_scaling.standardise.scale", "context_scaling.rotation"} <= set(
        density.state_dict()
    )
    assert repr(density).startswith("FlowDensity(\n  event_shape=(2,), context_shape=(1,)")


@pytest.mark.parametrize("name", ["maf", "maf-spline"])
@pytest.mark.parametrize("context", [None, 1, 30])
@pytest.mark.parametrize("features", [1, 2, 5, 9])
def test_drawing_dimension_by_dimension_gives_what_full_passes_give(features, context, name):
    flow = build_flow(name, features, 4 if context else None).double()
    with torch.random.fork_rng():
        torch.manual_seed(features)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        noise = torch.randn(30, features, dtype=torch.float64)
        contexts = None if context is None else torch.randn(context, 4, dtype=torch.float64)
    # With gradients each dimension takes a full pass.
    full, full_ladj = flow._transform.inverse(noise, contexts)
    with torch.no_grad():
        events, ladj = flow._transform.inverse(noise, contexts)
    torch.testing.assert_close(events, full.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ladj, full_ladj.detach(), rtol=1e-10, atol=1e-10)
