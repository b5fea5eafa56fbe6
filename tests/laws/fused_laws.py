"""Laws of the fused kernels; `test_fused_laws` runs this file in a process with Triton's interpreter, or on a GPU."""

import math
import os

import pytest
import torch

from sbi_physics.models.flows import engines
from sbi_physics.models.flows.build import build_flow
from sbi_physics.models.flows.fused.engine import FusedFlow, fused_flow

# The interpreter computes with NumPy, which warns of every infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
SMALL = {"transforms": 3, "hidden_features": 20, "blocks": 1, "bins": 5}
# Per dimension; the eager flow in single precision errs by as much.
TOLERANCE = 2e-5
# What 10 bits leave: a few milli-nats for most rows, none far off.
TYPICAL_TF32, LARGEST_TF32 = 5e-3, 3e-2


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def flow_of(features, context, **options):
    """A flow whose weights are all at work, and its copy in double precision."""
    options = {**SMALL, **options}
    with torch.random.fork_rng():
        torch.manual_seed(features)
        flow = build_flow("nsf", features, context, **options)
        for parameter in flow.parameters():
            parameter.add_(0.3 / math.sqrt(max(features, 20)) * torch.randn_like(parameter))
    return flow.to(DEVICE).eval(), exactly(flow, features, context, **options)


def exactly(flow, features, context, **options):
    exact = build_flow("nsf", features, context, **{**SMALL, **options}).double()
    exact.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in flow.state_dict().items()})
    return exact.eval()


def rows(n, features, context, seed=0):
    generator = torch.Generator().manual_seed(seed)
    events = 1.5 * torch.randn(n, features, generator=generator)
    contexts = None if context is None else torch.randn(n, context, generator=generator)
    return events.to(DEVICE), None if contexts is None else contexts.to(DEVICE)


def double(tensor):
    return None if tensor is None else tensor.double().cpu()


def errors(flow, exact, events, contexts, precision):
    """Errors of log-densities of `events`; and of data and log-determinants with `events` as noise."""
    fused = FusedFlow(flow, precision)
    density = engines.log_prob(exact, double(events), double(contexts), engine="eager")
    data, ladj = exact._transform.inverse(double(events), double(contexts))
    found = [fused.log_prob(events, contexts), *fused.inverse(events, contexts)]
    return [(one.cpu() - other).abs() for one, other in zip(found, (density, data, ladj), strict=True)]


@pytest.mark.parametrize(
    ("features", "context", "n"),
    [(d, c, n) for d in (1, 2, 5, 40) for c in (None, 1, 50) for n in (1, 7)] + [(2, 3, 1024), (5, None, 200)],
)
def test_fused_flows_agree(features, context, n):
    flow, exact = flow_of(features, context)
    for error in errors(flow, exact, *rows(n, features, context), "tf32x3"):
        assert error.max() < TOLERANCE * max(features, 2)


@pytest.mark.parametrize(("features", "context"), [(1, 1), (2, None), (5, 50), (40, 3)])
def test_without_the_matrix_units_flows_agree(features, context):
    flow, exact = flow_of(features, context)
    for error in errors(flow, exact, *rows(16, features, context), "ieee"):
        assert error.max() < TOLERANCE * max(features, 2)


@pytest.mark.parametrize(("features", "context"), [(1, 1), (2, None), (5, 50), (40, 3)])
def test_ten_bits_leave_milli_nats(features, context):
    flow, exact = flow_of(features, context)
    for error in errors(flow, exact, *rows(16, features, context), "tf32"):
        assert error.median() < TYPICAL_TF32
        assert error.max() < LARGEST_TF32


@pytest.mark.parametrize(
    ("blocks", "bins", "tail_bound", "hidden"), [(1, 1, 2.0, 7), (2, 8, 5.0, 64), (3, 16, 10.0, 33), (1, 32, 1.0, 128)]
)
def test_flows_of_other_shapes_agree(blocks, bins, tail_bound, hidden):
    options = {"blocks": blocks, "bins": bins, "tail_bound": tail_bound, "hidden_features": hidden}
    flow, exact = flow_of(3, 2, **options)
    for error in errors(flow, exact, *rows(30, 3, 2), "tf32x3"):
        assert error.max() < 10 * TOLERANCE


def test_inverse_of_the_fused_inverse():
    flow, exact = flow_of(5, 3)
    noise, contexts = rows(50, 5, 3)
    data, density = engines.from_noise(flow, noise, contexts, engine="fused")
    back, ladj = exact._transform(double(data), double(contexts))
    torch.testing.assert_close(back, double(noise), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(double(density), exact._distribution.log_prob(back) + ladj, rtol=1e-5, atol=1e-3)
    again = engines.log_prob(flow, data, contexts, engine="fused")
    torch.testing.assert_close(again, density, rtol=1e-5, atol=1e-3)


def test_changed_weights_are_noticed():
    flow, _ = flow_of(2, 1)
    events, contexts = rows(5, 2, 1)
    before = engines.log_prob(flow, events, contexts, engine="fused")
    for parameter in flow.parameters():
        # As an optimiser on flat parameters does, without a new version of the parameter.
        parameter.data.add_(0.1)
    after = engines.log_prob(flow, events, contexts, engine="fused")
    assert not torch.equal(before, after)
    reference = engines.log_prob(exactly(flow, 2, 1), double(events), double(contexts), engine="eager")
    torch.testing.assert_close(double(after), reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("inverse", [False, True])
def test_at_the_knots_the_bounds_and_far_in_the_tails(inverse):
    """A new flow is the identity, in one dimension without any rounding by a linear map before the spline."""
    flow = build_flow("nsf", 1, None, **SMALL).to(DEVICE)
    edge = torch.tensor(5.0)
    events = torch.stack([-edge, edge, edge.nextafter(edge + 1), edge.nextafter(edge - 1), edge * 0, edge * 1e18])
    events = torch.cat([events, -5 + 10 * torch.arange(6) / 5])[:, None].to(DEVICE)
    fused = FusedFlow(flow)
    if inverse:
        found, ladj = fused.inverse(events, None)
        torch.testing.assert_close(found, events, rtol=1e-6, atol=5e-6)
        torch.testing.assert_close(ladj, torch.zeros_like(ladj), rtol=0, atol=5e-5)
    else:
        expected = -0.5 * (events[:, 0] ** 2 + math.log(2 * math.pi))
        torch.testing.assert_close(fused.log_prob(events, None), expected, rtol=1e-5, atol=1e-5)


def test_far_in_the_tails():
    flow, exact = flow_of(5, 3)
    events, contexts = rows(30, 5, 3)
    found = FusedFlow(flow).log_prob(100 * events, contexts)
    reference = engines.log_prob(exact, 100 * double(events), double(contexts), engine="eager")
    torch.testing.assert_close(double(found), reference, rtol=1e-5, atol=1e-3)
    data, ladj = FusedFlow(flow).inverse(100 * events, contexts)
    expected, expected_ladj = exact._transform.inverse(100 * double(events), double(contexts))
    torch.testing.assert_close(double(data), expected, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(double(ladj), expected_ladj, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "ieee"])
@pytest.mark.parametrize("where", ["events", "contexts", "weights"])
def test_what_is_not_finite_is_not_lost(where, precision):
    flow, _ = flow_of(5, 3)
    events, contexts = rows(10, 5, 3)
    if where == "weights":
        flow._transform._transforms[-1].conditioner.final_layer.bias[0] = math.nan
    else:
        {"events": events, "contexts": contexts}[where][7, 1] = math.nan
    fused = FusedFlow(flow, precision)
    for found in (fused.log_prob(events, contexts), fused.inverse(events, contexts)[1]):
        bad = found.isnan()
        assert bad[7]
        assert bad.all() if where == "weights" else bad.sum() == 1


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_infinite_rows_as_in_the_eager_flow(features, value):
    flow, _ = flow_of(features, 3)
    events, contexts = rows(features, features, 3)
    events.fill_diagonal_(value)
    found = FusedFlow(flow).log_prob(events, contexts)
    reference = engines.log_prob(flow, events, contexts, engine="eager")
    assert not found.isfinite().any()
    assert torch.equal(found.isfinite(), reference.isfinite())
    if features == 1:
        torch.testing.assert_close(found, reference, equal_nan=True)


def test_one_context_serves_all_rows():
    flow, _ = flow_of(5, 50)
    events, contexts = rows(70, 5, 50)
    fused = FusedFlow(flow)
    single = fused.log_prob(events, contexts[:1])
    torch.testing.assert_close(single, fused.log_prob(events, contexts[:1].expand(70, -1)), rtol=0, atol=5e-5)
    for one, other in zip(
        fused.inverse(events, contexts[:1]), fused.inverse(events, contexts[:1].expand(70, -1)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-5)


def test_a_batch_is_its_rows():
    flow, _ = flow_of(5, 3)
    events, contexts = rows(200, 5, 3)
    fused = FusedFlow(flow)
    whole = fused.log_prob(events, contexts)
    torch.testing.assert_close(whole[100:133], fused.log_prob(events[100:133], contexts[100:133]), rtol=0, atol=5e-5)
    assert torch.equal(whole, fused.log_prob(events, contexts))


def test_double_precision_and_differentiable_draws_run_eagerly():
    flow, exact = flow_of(2, 1)
    events, contexts = rows(5, 2, 1)
    assert fused_flow(flow, events.device) is not None
    assert engines.log_prob(exact, double(events), double(contexts), engine="fused").dtype == torch.float64
    with torch.enable_grad():
        assert engines.from_noise(flow, events, contexts, engine="fused")[0].requires_grad


def gradients(flow, events, contexts, weights, value):
    inputs = [t.clone().requires_grad_() for t in (events, contexts) if t is not None]
    with torch.enable_grad():
        loss = (weights * value(inputs[0], inputs[1] if inputs[1:] else None)).sum()
        variables = [*inputs, *flow.parameters()]
        found = torch.autograd.grad(loss, variables, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, variables, strict=True)]


@pytest.mark.parametrize(
    ("features", "context", "options", "precision"),
    [
        (1, None, {}, "tf32x3"),
        (1, 4, {}, "tf32x3"),
        (2, None, {"blocks": 2}, "tf32x3"),
        (5, 3, {"bins": 8, "tail_bound": 1.0}, "tf32x3"),
        (5, 3, {"transforms": 2}, "ieee"),
        (40, 50, {"transforms": 2}, "tf32x3"),
    ],
)
def test_gradients_agree(features, context, options, precision):
    flow, exact = flow_of(features, context, **options)
    events, contexts = rows(40, features, context)
    weights = torch.randn(40, generator=torch.Generator().manual_seed(2))
    fused = FusedFlow(flow, precision)
    found = gradients(flow, events, contexts, weights.to(DEVICE), fused.log_prob)
    expected = gradients(
        exact,
        double(events),
        double(contexts),
        weights.double(),
        lambda x, c: engines.log_prob(exact, x, c, engine="eager"),
    )
    scale = max(float(g.abs().max()) for g in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(double(one), other, rtol=1e-3, atol=TOLERANCE * scale)


def test_gradients_of_one_context_and_equal_bits():
    flow, _ = flow_of(5, 50)
    events, contexts = rows(40, 5, 50)
    weights = torch.ones(40, device=DEVICE)
    fused = FusedFlow(flow)
    single = gradients(flow, events, contexts[:1], weights, fused.log_prob)
    repeated = gradients(flow, events, contexts[:1].repeat(40, 1), weights, fused.log_prob)
    repeated[1] = repeated[1].sum(0, keepdim=True)
    for one, other in zip(single, repeated, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    again = gradients(flow, events, contexts[:1], weights, fused.log_prob)
    assert all(torch.equal(a, b) for a, b in zip(single, again, strict=True))


def test_far_in_the_tails_gradients_stay_finite():
    flow, _ = flow_of(5, 3)
    events, contexts = rows(20, 5, 3)
    found = gradients(flow, 1e3 * events, contexts, torch.ones(20, device=DEVICE), FusedFlow(flow).log_prob)
    assert all(g.isfinite().all() for g in found)
