"""Flows on a box: they stay in it, are continuous across a wrap, and learn what sits at an edge."""

import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.errors import UsageError
from sbi_physics.models.build import Architecture, build_density
from sbi_physics.models.flows.box import BoxCoupling, UniformBox
from sbi_physics.models.flows.build import build_flow
from sbi_physics.models.flows.engines import from_noise, log_prob
from sbi_physics.models.flows.native.engine import native_flow
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

SMALL = {"transforms": 4, "hidden_features": 12, "blocks": 1, "bins": 5}


def moved_flow(features, context=None, seed=0, **options):
    """A flow whose weights are not at their start."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        flow = build_flow("nsf-box", features, context, **{**SMALL, **options}).double()
        for weight in flow.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return flow


def uniform(*shape, seed=0):
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def couplings(flow):
    return [t for t in flow._transform._transforms if isinstance(t, BoxCoupling)]


class TestUniformBox:
    def test_is_uniform(self):
        base = UniformBox(3, 2.0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            draws = base.sample(4000)
        assert draws.shape == (4000, 3)
        # Five standard errors of the mean and of the mean square.
        assert float(draws.mean(0).abs().max()) < 5 * 2 / math.sqrt(3 * 4000)
        assert float((draws.square().mean(0) - 4 / 3).abs().max()) < 5 * 4 * math.sqrt(4 / 45 / 4000)
        torch.testing.assert_close(base.log_prob(draws), torch.full((4000,), -3 * math.log(4.0)))
        assert base.log_prob(torch.tensor([[0.0, 2.0, -2.0], [0.0, 2.1, 0.0]])).isneginf().tolist() == [False, True]

    def test_follows_the_precision_and_the_contexts(self):
        base = UniformBox(2).double()
        assert base.sample(3).dtype == torch.float64
        assert base.sample(4, context=torch.zeros(5, 7)).shape == (5, 4, 2)


@pytest.mark.parametrize(("features", "transforms"), [(2, 2), (3, 4), (4, 4), (5, 6), (10, 8)])
def test_any_two_dimensions_see_one_another(features, transforms):
    first, *rest = couplings(build_flow("nsf-box", features, None, **{**SMALL, "transforms": transforms}))
    assert first.moved_intervals.tolist() == list(range(features))
    seen = {(i, j) for layer in rest for i in layer.moved_intervals.tolist() for j in layer.kept_intervals.tolist()}
    assert seen == {(i, j) for i in range(features) for j in range(features) if i != j}


@pytest.mark.parametrize("circular", [[], [1], [0, 1, 2]], ids=len)
def test_nothing_leaves_the_box(circular):
    flow = moved_flow(3, circular=circular)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).double()
    x = torch.cat([uniform(500, 3), corners])
    for precision in (torch.float64, torch.float32):
        flow.to(precision)
        for direction in (flow._transform, flow._transform.inverse):
            outputs, ladj = direction(x.to(precision))
            assert float(outputs.detach().abs().max()) <= 1.0
            assert bool(torch.isfinite(ladj).all())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("circle", [0, 1, 2])
def test_across_a_wrap_density_and_slope_are_continuous(circle, inverse):
    """In a circle of three, which moves in some layers and is seen by others in the rest."""
    flow = moved_flow(3, 2, circular=[0, 1, 2])
    context = torch.ones(40, 2, dtype=torch.float64)
    values, slopes = [], []
    for edge in (-1.0, 1.0):
        x = uniform(40, 3)
        x[:, circle] = edge * (1 - 1e-10)  # The slope itself may change by 1e5 in a unit.
        x.requires_grad_()
        noise, ladj = (flow._transform.inverse if inverse else flow._transform)(x, context)
        values.append(ladj)
        # The map itself, up to whole turns.
        slopes.append(torch.autograd.grad(noise.sum(), x)[0])
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-5)


def test_a_phase_follows_a_context_around_the_circle():
    """Without a jump: the phase is the angle of two numbers, which a linear map can turn once around."""
    layer = BoxCoupling(1, 2, moved=[0], circular=[0], hidden_features=4, blocks=1, bins=4).double()
    angle = torch.linspace(-math.pi, math.pi, 9, dtype=torch.float64)[:-1]
    parameters = torch.zeros(8, 1, 14, dtype=torch.float64)
    parameters[:, 0, 12], parameters[:, 0, 13] = torch.cos(angle) - 1, torch.sin(angle)
    start = torch.zeros(8, 1, dtype=torch.float64)
    outputs, ladj = layer._move_circles(start, parameters, False)
    torch.testing.assert_close(torch.cos(math.pi * outputs[:, 0]), torch.cos(angle))
    torch.testing.assert_close(torch.sin(math.pi * outputs[:, 0]), torch.sin(angle))
    torch.testing.assert_close(layer._move_circles(outputs, parameters, True)[0], start)
    torch.testing.assert_close(ladj, torch.zeros_like(ladj))


@pytest.mark.parametrize("circular", [[], [0]])
@pytest.mark.parametrize("features", [1, 3])
def test_one_context_serves_all_rows(features, circular):
    flow = moved_flow(features, 4, circular=circular)
    context, x = torch.ones(1, 4, dtype=torch.float64), uniform(30, features)
    rows = context.expand(30, -1)
    torch.testing.assert_close(log_prob(flow, x, context), log_prob(flow, x, rows))
    for one, each in zip(from_noise(flow, x, context), from_noise(flow, x, rows), strict=True):
        torch.testing.assert_close(one, each)
    events, density = from_noise(flow, x, context)
    torch.testing.assert_close(log_prob(flow, events, context), density)
    torch.testing.assert_close(flow.log_prob(events, rows), density)


@pytest.mark.parametrize("engine", ["auto", "compiled"])
def test_engines_run_it_eagerly(engine):
    flow = build_flow("nsf-box", 2, 3, **SMALL)
    assert native_flow(flow) is None
    x, context = uniform(3000, 2).float(), torch.ones(1, 3)
    assert torch.equal(log_prob(flow, x, context, engine=engine), log_prob(flow, x, context, engine="eager"))


def test_a_support_is_mapped_as_it_is():
    bounds = torch.tensor([[0.0, 10.0], [-3.0, -1.0]], dtype=torch.float64)
    density = build_density(Architecture("nsf-box", (2,), None), bounds=bounds).double()
    events = torch.tensor([[5.0, -2.0], [0.0, -1.0], [10.0, -1.5]], dtype=torch.float64)
    encoded, ladj = density.fit_scaling(events).encode(events)
    torch.testing.assert_close(encoded, torch.tensor([[0.0, 0.0], [-1.0, 1.0], [1.0, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(ladj, torch.full((3,), -math.log(5.0), dtype=torch.float64))
    torch.testing.assert_close(density.log_prob(events), torch.full((3,), -math.log(20.0), dtype=torch.float64))


def test_parameters_without_bounds_are_squeezed_into_the_box():
    """Whatever their scale, up to nine standard deviations; those between two bounds are mapped as they are."""
    bounds = torch.tensor([[0.0, 10.0], [0.0, torch.inf], [-torch.inf, torch.inf]], dtype=torch.float64)
    density = build_density(Architecture("nsf-box", (3,), None, SMALL), bounds=bounds)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        events = torch.stack([10 * torch.rand(500), torch.randn(500).exp(), 1e6 + 1e3 * torch.randn(500)], 1)
    density.fit_scaling(events)
    far = torch.tensor([[5.0, 3e-4, 1e6 + 9e3], [5.0, 3e3, 1e6 - 9e3]])
    for rows in (events, far):
        encoded, ladj = density.encode(rows)
        assert bool((encoded.abs() <= 1).all())
        torch.testing.assert_close(encoded[:, 0], rows[:, 0] / 5 - 1, rtol=0, atol=1e-6)
        again, back = density.decoded(encoded)
        torch.testing.assert_close(again, rows, rtol=0.2, atol=1e-4)
        torch.testing.assert_close(back, -ladj, rtol=0, atol=0.6)
    # What is told apart is so to the precision of what is near.
    again, back = density.decoded(density.encode(events)[0])
    torch.testing.assert_close(again, events, rtol=1e-4, atol=1e-4)
    assert bool((density.encode(events)[0].std(0) > 0.3).all())
    # Beyond all that was seen: pressed against the edge, and neither lost nor infinite.
    beyond = torch.tensor([[5.0, 1e30, 1e9]])
    assert bool(torch.isfinite(density.log_prob(beyond)).all())


def test_a_circle_is_between_bounds():
    prior = sp.Parameters([sp.Parameter("a", td.Uniform(0.0, 1.0)), sp.Parameter("b", td.HalfNormal(1.0))])
    with pytest.raises(UsageError, match=r"circular: a circle needs finite bounds, got \[0.0, inf\] for b"):
        sp.NPE(prior, "nsf-box", circular=[1])


def fit(architecture, bounds, events, contexts=None, epochs=6, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        density = build_density(architecture, bounds=bounds)
        density.fit_scaling(events, contexts)
        data = [density.encode(events)[0].detach()]
        data += [] if contexts is None else [density.context_scaling(contexts)]
        train(density, density.loss, data, config=TrainConfig(epochs=epochs), seed=seed, progress=False)
    return density


def test_a_mode_at_the_wrap_is_learnt_without_a_seam():
    exact = td.VonMises(torch.tensor(math.pi), torch.tensor(3.0))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        events, held_out = exact.sample((4000, 1)), exact.sample((2000, 1))
    bounds = torch.tensor([[-math.pi, math.pi]], dtype=torch.float64)
    options = {"transforms": 2, "hidden_features": 16, "blocks": 1}
    density = fit(Architecture("nsf-box", (1,), None, {**options, "circular": [0]}), bounds, events)
    with torch.no_grad():
        low, high = density.log_prob(torch.tensor([[-math.pi], [math.pi]]))
        assert float((low - high).abs()) < 1e-3
        assert float((low - exact.log_prob(torch.tensor(math.pi))).abs()) < 0.15
        difference = density.log_prob(held_out) - exact.log_prob(held_out)[:, 0]
    # The Kullback-Leibler divergence, up to three standard errors of its estimate.
    assert -float(difference.mean()) < 0.01 + 3 * float(difference.std()) / math.sqrt(2000)


@pytest.mark.parametrize("prior", [td.Uniform(0.5, 2.0), td.LogNormal(0.1, 0.4)], ids=["interval", "half-open"])
def test_periodic_parameters_are_the_circles_of_a_posterior(prior, tmp_path):
    """An angle seen through its cosine and sine: the posterior of the angle opposite to zero straddles the wrap."""
    parameters = sp.Parameters(
        [
            sp.Parameter("scale", prior),
            sp.Parameter("angle", td.Uniform(-math.pi, math.pi), unit="rad", periodic=True),
        ]
    )
    theta = parameters.sample(4000, seed=1)
    generator = torch.Generator().manual_seed(2)
    x = theta[:, :1] * torch.stack([theta[:, 1].cos(), theta[:, 1].sin()], 1)
    x = x + 0.2 * torch.randn(4000, 2, generator=generator)
    options = {"transforms": 2, "hidden_features": 24, "blocks": 1, "config": TrainConfig(epochs=5)}
    posterior = sp.NPE(parameters, "nsf-box", augment=False, **options).fit(theta, x, progress=False)
    assert posterior.architecture.options["circular"] == [1]
    opposite = torch.tensor([-1.2, 0.0])
    draws = posterior.sample(2000, opposite, seed=3).values
    assert float((draws[:, 1].abs() > math.pi / 2).double().mean()) > 0.99
    assert 0.4 < float((draws[:, 1] > 0).double().mean()) < 0.6
    scale = torch.linspace(0.9, 1.5, 7)
    sides = [
        posterior.log_prob(torch.stack([scale, torch.full_like(scale, end)], 1), opposite)
        for end in (-math.pi, math.pi)
    ]
    torch.testing.assert_close(*sides, rtol=0, atol=1e-2)
    posterior.save(tmp_path / "p.st")
    assert torch.equal(sp.load(tmp_path / "p.st").sample(2000, opposite, seed=3).values, draws)


def test_a_density_that_is_cut_is_right_up_to_its_edge():
    """Of a truncated exponential; a flow on the real line bends down or up in its tail, where the edge has gone."""
    generator = torch.Generator().manual_seed(3)
    width = 0.1 + 0.4 * torch.rand(6000, 1, generator=generator)
    share = torch.rand(6000, 1, generator=generator) * -torch.expm1(-1 / width)
    events = -width * torch.log1p(-share)

    def exact(events, width):
        return (-events / width - torch.log(-width * torch.expm1(-1 / width)))[:, 0]

    bounds = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    edge, widths = torch.full((9, 1), 1e-4), torch.linspace(0.12, 0.48, 9).unsqueeze(1)
    errors, divergence = {}, {}
    for name in ("nsf", "nsf-box"):
        architecture = Architecture(name, (1,), (1,), {"transforms": 2, "hidden_features": 16, "blocks": 1})
        density = fit(architecture, bounds, events[:4000], width[:4000])
        with torch.no_grad():
            errors[name] = (density.log_prob(edge, widths) - exact(edge, widths)).abs()
            learnt = density.log_prob(events[4000:], width[4000:])
        divergence[name] = float((exact(events[4000:], width[4000:]) - learnt).mean())
    assert float(errors["nsf-box"].max()) < 0.35
    assert float(errors["nsf"].max()) > 1.5 * float(errors["nsf-box"].max())
    assert abs(divergence["nsf-box"]) < 0.02
