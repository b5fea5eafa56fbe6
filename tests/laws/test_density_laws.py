"""What holds for every density: a new one joins by a line in `MODELS`."""

import copy
import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.protocols import Density
from sbi_physics.models.build import Architecture, build_density
from sbi_physics.models.diffusion.density import DiffusionDensity
from sbi_physics.models.kernel import KernelDensity
from sbi_physics.posterior.direct import DirectPosterior

TAIL_BOUND = 4.0
SMALL = {"transforms": 3, "hidden_features": 12, "blocks": 1}
# Each: the name of the model and its options.
FLOWS = {
    "nsf": ("nsf", {**SMALL, "bins": 5, "tail_bound": TAIL_BOUND}),
    "maf": ("maf", SMALL),
    "maf-spline": ("maf-spline", {**SMALL, "bins": 5, "tail_bound": TAIL_BOUND}),
    "box": ("nsf-box", {**SMALL, "bins": 5}),
    "box with a circle": ("nsf-box", {**SMALL, "bins": 5, "circular": [0]}),
}
# The model "score" is another way to train the same density.
SOLVED = {"flow-matching": ("flow-matching", {"hidden_features": 12, "blocks": 1, "steps": 12})}
MIXTURES = {"components": 4, "hidden_features": 12, "blocks": 1}
MODELS = {
    **FLOWS,
    "mixture": ("mixture", MIXTURES),
    "made": ("made", MIXTURES),
    "recurrent": ("recurrent", {**MIXTURES, "network": "lstm"}),
    "kernel": ("kernel", {"bandwidth": "silverman"}),
    **SOLVED,
}
ON_A_BOX = ("box", "box with a circle")
PRIORS = {"free": td.Normal(0.5, 2.0), "interval": td.Uniform(-1.5, 2.0), "half-open": td.HalfNormal(2.0)}
# An equation and a sum over all events take their time, and meet a support in the same way as all others.
ONE_SUPPORT = ("box with a circle", *SOLVED, "kernel")
CASES = [(model, support) for model in MODELS for support in (["interval"] if model in ONE_SUPPORT else PRIORS)]
CONTEXT_SHAPE = (2, 2)


def build(model, dims, context, support, dtype=torch.float64):
    """A density whose weights are moved away from the identity that they start as."""
    shape = CONTEXT_SHAPE if context else None
    parameters = Parameters([Parameter(f"theta_{i}", PRIORS[support]) for i in range(dims)])
    name, options = MODELS[model]
    architecture = Architecture(name, (dims,), shape, options)
    with torch.random.fork_rng():
        torch.manual_seed(dims)
        density = build_density(architecture, bounds=parameters.bounds)
        learn = density.fit if isinstance(density, KernelDensity) else density.fit_scaling
        learn(parameters.sample(500), 3 * torch.randn(500, *shape) + 1 if shape else None)
        with torch.no_grad():
            for weight in density.parameters():
                weight.add_((0.2 if model in SOLVED else 0.12) * torch.randn_like(weight))
    density.to(dtype).eval()
    return density, parameters, architecture


@pytest.fixture(params=MODELS)
def model(request):
    return request.param


@pytest.fixture(params=FLOWS)
def flow(request):
    return request.param


@pytest.fixture(params=[name for name in MODELS if name not in ON_A_BOX])
def unbounded_model(request):
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: ", ".join(case))
def case(request):
    """A model and a support that it takes."""
    return request.param


@pytest.fixture(params=[1, 2, 5])
def dims(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["unconditional", "conditional"])
def context(request):
    return request.param


@pytest.fixture
def built(case, dims, context):
    return build(case[0], dims, context, case[1])


@pytest.fixture(params=[case for case in CASES if case[0] in FLOWS], ids=lambda case: ", ".join(case))
def built_flow(request, dims, context):
    return build(request.param[0], dims, context, request.param[1])


def solved(density):
    return isinstance(density, DiffusionDensity)


def widest(model):
    """The widest support that a model takes."""
    return "interval" if model in ON_A_BOX else "free"


def rows(built, n=40, seed=0):
    """Events inside the support and a context for each, or None."""
    density, parameters, _ = built
    dtype = density.event_scaling.mean.dtype
    events = parameters.sample(n, seed=seed).to(dtype)
    if not density.conditional:
        return events, None
    generator = torch.Generator().manual_seed(seed)
    return events, torch.randn(n, *density.context_shape, generator=generator, dtype=dtype)


def features(density, contexts):
    return None if contexts is None else density._summary(contexts)


def jacobian(outputs, inputs):
    """``(n, D, D)`` where row i of the outputs depends on row i of the inputs alone."""
    columns = [torch.autograd.grad(outputs[:, j].sum(), inputs, retain_graph=True)[0] for j in range(outputs.shape[1])]
    return torch.stack(columns, dim=1)


def test_satisfies_the_protocol(built, dims):
    density, _, _ = built
    assert isinstance(density, Density)
    assert density.event_shape == (dims,)
    assert density.context_shape == (CONTEXT_SHAPE if density.conditional else ())


@torch.no_grad()
def test_a_flow_is_not_the_identity(flow, dims, context):
    """Else the laws below would hold for nothing."""
    density, *_ = built = build(flow, dims, context, widest(flow))
    events, contexts = rows(built)
    z, ladj = density.flow._transform(density.encode(events)[0], context=features(density, contexts))
    assert float((z - density.encode(events)[0]).abs().mean()) > 0.05
    assert float(ladj.abs().mean()) > 0.05


@torch.no_grad()
def test_a_model_is_not_the_normal_distribution_and_reads_its_context(model, dims):
    density, *_ = built = build(model, dims, True, "interval")
    events, contexts = rows(built)
    first, second = (density.log_prob(events, context) for context in contexts[:2])
    encoded, ladj = density.encode(events)
    normal = td.Normal(0.0, 1.0).log_prob(encoded).sum(-1) + ladj
    assert float((first - second).abs().mean()) > 0.001
    assert float((first - normal).abs().mean()) > 0.05


def test_inverse_of_inverse_is_the_identity(built_flow):
    density, *_ = built_flow
    events, contexts = rows(built_flow)
    summary, transform = features(density, contexts), density.flow._transform
    # Into the tails, where there are any.
    encoded = density.encode(events)[0] * (1.5 if density.bijection.box is None else 1.0)
    noise, ladj = transform(encoded, context=summary)
    back, inverse_ladj = transform.inverse(noise, context=summary)
    torch.testing.assert_close(back, encoded, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-7, atol=1e-7)
    forth, ladj = transform(transform.inverse(encoded, context=summary)[0], context=summary)
    torch.testing.assert_close(forth, encoded, rtol=1e-8, atol=1e-8)


def test_ladj_matches_autograd(built_flow):
    density, *_ = built_flow
    events, contexts = rows(built_flow, 12)
    summary = features(density, contexts)
    summary = None if summary is None else summary.detach()
    inputs = density.encode(events)[0].detach().requires_grad_()
    for direction in (density.flow._transform, density.flow._transform.inverse):
        outputs, ladj = direction(inputs, context=summary)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian(outputs, inputs)).logabsdet, ladj)


def test_log_prob_is_the_change_of_variables(built_flow):
    """All maps from theta to noise at once: support, standardisation and flow."""
    density, *_ = built_flow
    events, contexts = rows(built_flow, 12)
    events.requires_grad_()
    noise, _ = density.flow._transform(density.encode(events)[0], context=features(density, contexts))
    base = (td.Normal(0.0, 1.0) if density.bijection.box is None else td.Uniform(-1.0, 1.0)).log_prob(noise).sum(-1)
    expected = base + torch.linalg.slogdet(jacobian(noise, events)).logabsdet
    torch.testing.assert_close(density.log_prob(events, contexts), expected)


def axis(support, points):
    """A grid over a support with the logarithm of its steps, in coordinates that are not those of the package."""
    t = torch.linspace(-1.0, 1.0, points, dtype=torch.float64)
    if support == "free":
        return torch.sinh(4.5 * t), torch.log(4.5 * torch.cosh(4.5 * t) * (t[1] - t[0]))
    if support == "half-open":
        return torch.exp(14.0 * t), 14.0 * t + torch.log(14.0 * (t[1] - t[0]))
    low, high = -1.5, 2.0
    u = 30.0 * t
    step = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u)
    return low + (high - low) * torch.sigmoid(u), step + torch.log((high - low) * 30.0 * (t[1] - t[0]))


@pytest.mark.parametrize(("dims", "points"), [(1, 4001), (2, 401)])
def test_integrates_to_one(case, dims, points, context):
    model, support = case
    density, *_ = build(model, dims, context, support)
    nodes, log_step = axis(support, points if model not in SOLVED else points // 4)
    events = torch.cartesian_prod(*[nodes] * dims).reshape(-1, dims)
    log_steps = torch.cartesian_prod(*[log_step] * dims).reshape(-1, dims).sum(-1)
    one_context = rows(build(model, dims, context, support))[1]
    with torch.no_grad():
        log_prob = density.log_prob(events, None if one_context is None else one_context[0])
    assert float(torch.logsumexp(log_prob + log_steps, 0)) == pytest.approx(0.0, abs=2e-3)


def test_draws_come_with_their_density(built):
    density, *_ = built
    _, contexts = rows(built, 3)
    theta, log_prob = density.sample_and_log_prob(50, contexts, seed=3)
    batch = () if contexts is None else (3,)
    assert theta.shape == (50, *batch, *density.event_shape)
    assert log_prob.shape == (50, *batch)
    # Both ways of solving an equation, each with its own error.
    error = 2e-3 if solved(density) else 1e-6
    torch.testing.assert_close(log_prob, density.log_prob(theta, contexts), rtol=error, atol=error)
    assert torch.equal(theta, density.sample(50, contexts, seed=3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_draw_is_outside_the_support(case, dims, context, dtype):
    density, parameters, _ = built = build(case[0], dims, context, case[1], dtype)
    # Far too wide on purpose: most of the draws are pressed against the bounds, where rounding would put them outside.
    density.event_scaling.scale.fill_(8.0)
    contexts = rows(built, 1)[1]
    theta = density.sample(2000, None if contexts is None else contexts[0], seed=1)
    low, high = parameters.bounds.unbind(-1)
    assert bool(torch.isfinite(theta).all())
    assert bool(((theta.double() > low) & (theta.double() < high)).all())
    assert not bool(torch.isposinf(density.log_prob(theta, None if contexts is None else contexts[0])).any())


def test_density_outside_the_support_is_zero(model, dims, context):
    for support, outside in (("interval", (-1.6, 2.1)), ("half-open", (-0.1,))):
        if (model, support) not in CASES:
            continue
        density, *_ = built = build(model, dims, context, support)
        for value in outside:
            events, contexts = rows(built, 4)
            events[1, -1] = value
            log_prob = density.log_prob(events, contexts)
            assert torch.isneginf(log_prob).tolist() == [False, True, False, False]


def test_same_seed_same_bytes_and_the_global_stream_is_untouched(built):
    density, *_ = built
    _, contexts = rows(built, 2)
    state = torch.random.get_rng_state()
    first, second, other = (density.sample(20, contexts, seed=seed) for seed in (7, 7, 8))
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_without_a_seed_draws_differ(model):
    density, *_ = build(model, 2, False, widest(model))
    with torch.random.fork_rng():
        assert not torch.equal(density.sample(5), density.sample(5))


def test_batch_of_n_is_n_batches_of_one(built):
    density, *_ = built
    events, contexts = rows(built, 6)
    together = density.log_prob(events, contexts)
    each = [density.log_prob(events[i], None if contexts is None else contexts[i]) for i in range(6)]
    assert all(one.shape == () for one in each)
    torch.testing.assert_close(together, torch.stack(each))
    folded = density.log_prob(
        events.reshape(3, 2, -1), None if contexts is None else contexts.reshape(3, 2, *CONTEXT_SHAPE)
    )
    torch.testing.assert_close(folded, together.reshape(3, 2))
    if contexts is not None:
        grid = density.log_prob(events.unsqueeze(1), contexts)
        assert grid.shape == (6, 6)
        torch.testing.assert_close(grid.diagonal(), together)
        torch.testing.assert_close(density.log_prob(events, contexts[0]), grid[:, 0])


def test_empty_batch_gives_an_empty_result(built):
    density, *_ = built
    events, contexts = rows(built, 3)
    assert density.log_prob(events[:0], None if contexts is None else contexts[0]).shape == (0,)
    assert density.log_prob(events[:0], None if contexts is None else contexts[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_in_the_tails(unbounded_model, dims, context, dtype):
    """Of the weights, the event and the context: inside, at the tail bound, on both its sides, and far beyond."""
    density, *_ = built = build(unbounded_model, dims, context, "free", dtype)
    edge = torch.tensor(TAIL_BOUND, dtype=dtype)
    near = [torch.nextafter(edge, edge * 0), torch.nextafter(edge, edge * 2)]
    sizes = torch.tensor([0.0, 1e-30, 1.0, TAIL_BOUND, *near, 6.0, 50.0, 1e3], dtype=dtype)
    encoded = torch.cat([sizes, -sizes]).unsqueeze(-1).expand(-1, dims)
    events = density.event_scaling.inverse(encoded).detach().requires_grad_()
    contexts = rows(built, len(events))[1]
    if contexts is not None:
        contexts.requires_grad_()
    for loss in (density.log_prob(events, contexts), density.loss(encoded, contexts)):
        assert bool(torch.isfinite(loss).all())
        inputs = [*density.parameters(), *([events] if loss.shape == events.shape[:1] else [])]
        # The log-density that comes from solving an equation has no gradient.
        gradients = torch.autograd.grad(loss.sum(), inputs, allow_unused=True) if loss.requires_grad else ()
        assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)
    if unbounded_model not in FLOWS:
        return
    summary = features(density, contexts)
    noise = encoded.clone().requires_grad_()
    theta, ladj = density.flow._transform.inverse(noise, context=summary)
    gradients = torch.autograd.grad(theta.sum() + ladj.sum(), [noise, *density.parameters()], allow_unused=True)
    assert bool(torch.isfinite(theta).all())
    assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_have_finite_gradients_at_the_bounds(model, dims, context, dtype):
    """A prior draw may be the bound itself: training must survive it."""
    for support in ("interval", "half-open"):
        if (model, support) not in CASES:
            continue
        density, parameters, _ = built = build(model, dims, context, support, dtype)
        events, contexts = rows(built, 3)
        low, high = parameters.bounds.unbind(-1)
        events[0] = low
        events[1] = high.clamp(max=1e30)
        assert bool(torch.isfinite(density.log_prob(events, contexts)).all())
        loss = density.loss(density.encode(events)[0], contexts)
        assert bool(torch.isfinite(loss).all())
        weights = list(density.parameters())
        # A kernel density estimate has none.
        gradients = torch.autograd.grad(loss.sum(), weights, allow_unused=True) if weights else ()
        assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_input_is_named(model, context, bad):
    density, *_ = built = build(model, 2, context, "interval")
    events, contexts = rows(built, 4)
    spoilt = events.clone()
    spoilt[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"x: expected finite numbers, got 1 .* of 8 \(first at index \(2, 1\)\)"):
        density.log_prob(spoilt, contexts)
    if contexts is None:
        return
    contexts[3, 0, 1] = bad
    with pytest.raises(NonFiniteError, match="context: expected finite numbers"):
        density.log_prob(events, contexts)
    with pytest.raises(NonFiniteError, match="context: expected finite numbers"):
        density.sample(5, contexts, seed=0)


def test_wrong_shapes_are_named(model):
    free, *_ = build(model, 2, False, widest(model))
    conditional, *_ = build(model, 2, True, widest(model))
    events, context = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, 2, dtype=torch.float64)
    for wrong in (events[:, :1], torch.zeros(3, 3), torch.tensor(1.0)):
        with pytest.raises(ShapeError, match=r"x: expected shape \(\*, 2\)"):
            free.log_prob(wrong)
    for wrong in (None, context[..., :1], torch.zeros(4), torch.tensor(1.0)):
        with pytest.raises(ShapeError, match=r"context: expected shape \(\*, 2, 2\)"):
            conditional.log_prob(events, wrong)
        with pytest.raises(ShapeError, match=r"context: expected shape \(\*, 2, 2\)"):
            conditional.sample(4, wrong)
    for call in (lambda: free.log_prob(events, context), lambda: free.sample(3, context)):
        with pytest.raises(ShapeError, match="unconditional"):
            call()
    for n in (0, -1, 2.0, True):
        with pytest.raises(UsageError, match="n: expected an integer of at least 1"):
            free.sample(n)


def test_batches_that_do_not_fit_one_another_are_named(model):
    density, *_ = build(model, 2, True, widest(model))
    with pytest.raises(ShapeError, match="x and context"):
        density.log_prob(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(4, 2, 2, dtype=torch.float64))


def test_saved_and_loaded_are_identical(case, dims, context, tmp_path):
    density, parameters, architecture = built = build(case[0], dims, context, case[1], torch.float32)
    DirectPosterior(parameters, density, architecture, {"note": 1}).save(tmp_path / "posterior.st")
    again = sp.load(tmp_path / "posterior.st", device="cpu")
    assert again.parameters == parameters
    assert again.architecture == architecture
    assert again.provenance == {"note": 1}
    events, contexts = rows(built, 9)
    assert torch.equal(again.density.log_prob(events, contexts), density.log_prob(events, contexts))
    assert torch.equal(again.density.sample(9, contexts, seed=1), density.sample(9, contexts, seed=1))
    again.save(tmp_path / "again.st")
    assert (tmp_path / "again.st").read_bytes() == (tmp_path / "posterior.st").read_bytes()


def test_a_copy_is_independent(model):
    density, *_ = built = build(model, 2, False, widest(model))
    events, _ = rows(built, 4)
    before = density.log_prob(events)
    twin = copy.deepcopy(density)
    with torch.no_grad():
        # What a kernel density estimate has learned are events.
        for weight in list(twin.parameters()) or [twin.points]:
            weight.add_(0.1)
    assert torch.equal(density.log_prob(events), before)
    assert not torch.equal(twin.log_prob(events), before)
