"""Every engine computes the same flow: values, draws and gradients agree with the eager flow in double precision."""

import contextlib
import logging
import math
import os
import subprocess
import sys

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, UsageError
from sbi_physics.models.flows import engines
from sbi_physics.models.flows.build import build_flow
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.models.flows.native.engine import native_flow
from sbi_physics.models.native import compiler

SMALL = {"transforms": 3, "hidden_features": 20, "blocks": 1, "bins": 5}
# In nats for each dimension beside 1e-6 of the value, and relative to the largest gradient: what rounding to single
# precision leaves in a flow of a few layers.
TOLERANCE = 1e-5


def flow_of(features, context, **options):
    """A flow whose weights are all at work, and its copy in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(features)
        flow = build_flow("nsf", features, context, **{**SMALL, **options})
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.3 / math.sqrt(max(features, 20)) * torch.randn_like(parameter))
    exact = build_flow("nsf", features, context, **{**SMALL, **options}).double()
    exact.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in flow.state_dict().items()})
    return flow.eval(), exact.eval()


def rows(n, features, context, seed=0):
    generator = torch.Generator().manual_seed(seed)
    events = 1.5 * torch.randn(n, features, generator=generator)
    return events, None if context is None else torch.randn(n, context, generator=generator)


def double(tensor):
    return None if tensor is None else tensor.double()


@contextlib.contextmanager
def threads_of(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def needs_a_compiler():
    if native_flow(build_flow("nsf", 2, 1, **SMALL)) is None:
        pytest.skip("no C compiler on this machine")


@pytest.mark.parametrize("n", [1, 7, 1024])
@pytest.mark.parametrize("context", [None, 1, 50])
@pytest.mark.parametrize("features", [1, 2, 5, 40])
def test_compiled_flows_agree(features, context, n):
    flow, exact = flow_of(features, context)
    events, contexts = rows(n, features, context)
    log_prob = engines.log_prob(flow, events, contexts, engine="compiled")
    reference = engines.log_prob(exact, events.double(), double(contexts), engine="eager")
    torch.testing.assert_close(log_prob.double(), reference, rtol=1e-6, atol=TOLERANCE * features)
    noise, _ = rows(n, features, None, seed=1)
    drawn, density = engines.from_noise(flow, noise, contexts, engine="compiled")
    back, ladj = exact._transform(drawn.double(), double(contexts))
    torch.testing.assert_close(back, noise.double(), rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(density.double(), exact._distribution.log_prob(back) + ladj, rtol=1e-5, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("features", "context"), [(1, 1), (2, 50), (5, None), (40, 50)])
def test_compiled_flows_round_no_more_than_eager_ones(features, context):
    flow, exact = flow_of(features, context)
    events, contexts = rows(4096, features, context)
    reference = engines.log_prob(exact, events.double(), double(contexts), engine="eager")
    errors = [engines.log_prob(flow, events, contexts, engine=e).double() - reference for e in ("compiled", "eager")]
    compiled, eager = (float(error.square().mean().sqrt()) for error in errors)
    assert compiled < 1.2 * eager
    assert compiled < (1e-5 if features <= 5 else 2e-5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("features", "context"), [(1, None), (1, 4), (2, None), (5, 3), (40, 50)])
def test_compiled_gradients_agree(features, context, threads):
    flow, exact = flow_of(features, context)
    events, contexts = rows(300, features, context)
    weights = torch.randn(300, generator=torch.Generator().manual_seed(2))
    with threads_of(threads):
        found = gradients(flow, events, contexts, weights, "compiled")
    expected = gradients(exact, events.double(), double(contexts), weights.double(), "eager")
    scale = max(float(g.abs().max()) for g in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=TOLERANCE * scale)


def gradients(flow, events, contexts, weights, engine):
    inputs = [t.clone().requires_grad_() for t in (events, contexts) if t is not None]
    value = (weights * engines.log_prob(flow, inputs[0], inputs[1] if inputs[1:] else None, engine=engine)).sum()
    used = [p for p in flow.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, [*inputs, *used], allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, [*inputs, *used], strict=True)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("features", "context"), [(1, None), (1, 4), (2, None), (5, 3), (40, 50)])
def test_value_and_gradient_in_one_pass_agree(features, context, threads):
    flow, exact = flow_of(features, context)
    events, contexts = rows(300, features, context)
    weights = torch.randn(300, generator=torch.Generator().manual_seed(2))
    with threads_of(threads):
        found = added_gradients(flow, events, contexts, weights, "compiled")
    expected = added_gradients(exact, events.double(), double(contexts), weights.double(), "eager")
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-6, atol=TOLERANCE * features)
    scale = max(float(g.abs().max()) for g in expected[1:])
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=TOLERANCE * scale)


def added_gradients(flow, events, contexts, weights, engine):
    """The log-densities, and the gradients that were added to those of context and parameters."""
    context = None if contexts is None else contexts.clone().requires_grad_()
    leaves = [*([] if context is None else [context]), *flow.parameters()]
    for leaf in leaves:
        leaf.grad = torch.ones_like(leaf)
    # Twice what is asked is asked for through a graph of the user's own, as an embedding network makes it.
    summary = None if context is None else 2 * context
    log_prob = engines.add_gradient(flow, events, summary, weights, engine=engine)
    assert not log_prob.requires_grad
    return [log_prob, *(leaf.grad - 1 for leaf in leaves)]


def test_one_context_gets_the_gradient_of_all_rows():
    flow, _ = flow_of(5, 3)
    events, contexts = rows(70, 5, 3)
    gradients = []
    for context in (contexts[:1].clone(), contexts[:1].repeat(70, 1)):
        context.requires_grad_()
        engines.add_gradient(flow, events, context, torch.ones(70), engine="compiled")
        gradients.append(context.grad.sum(0))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)


def test_frozen_weights_get_no_gradient():
    flow, _ = flow_of(5, 3)
    events, contexts = rows(70, 5, 3)
    frozen = flow._transform._transforms[1].bias.requires_grad_(False)
    engines.add_gradient(flow, events, contexts, torch.ones(70), engine="compiled")
    assert frozen.grad is None
    assert all(p.grad is not None for p in flow.parameters() if p is not frozen)


@pytest.mark.parametrize(("blocks", "bins", "tail_bound"), [(1, 3, 1.0), (2, 8, 5.0), (3, 16, 10.0)])
def test_compiled_flows_of_other_shapes_agree(blocks, bins, tail_bound):
    flow, exact = flow_of(3, 2, blocks=blocks, bins=bins, tail_bound=tail_bound, hidden_features=33)
    events, contexts = rows(100, 3, 2)
    log_prob = engines.log_prob(flow, events, contexts, engine="compiled").double()
    reference = engines.log_prob(exact, events.double(), contexts.double(), engine="eager")
    # Sixteen narrow bins round more than five.
    torch.testing.assert_close(log_prob, reference, rtol=0, atol=2 * TOLERANCE * 3)


def test_at_the_bounds_and_far_in_the_tails():
    """A new flow is a standard normal, in one dimension without any rounding by a linear map before the spline."""
    flow = build_flow("nsf", 1, None, **SMALL)
    edge = torch.tensor(5.0)
    events = torch.stack([-edge, edge, edge.nextafter(edge + 1), edge.nextafter(edge - 1), edge * 0, edge * 1e18])
    events = torch.cat([events, -5 + 10 * torch.arange(6) / 5])[:, None]
    found = engines.log_prob(flow, events, None, engine="compiled")
    torch.testing.assert_close(found, -0.5 * (events[:, 0] ** 2 + math.log(2 * math.pi)), rtol=1e-5, atol=1e-5)
    events.requires_grad_()
    engines.log_prob(flow, events, None, engine="compiled").sum().backward()
    torch.testing.assert_close(events.grad, -events.detach(), rtol=1e-4, atol=1e-4)


def test_far_in_the_tails_gradients_stay_finite():
    flow, _ = flow_of(5, 3)
    events, contexts = rows(64, 5, 3)
    found = gradients(flow, 1e3 * events, contexts, torch.ones(64), "compiled")
    assert all(g.isfinite().all() for g in found)


@pytest.mark.parametrize("where", ["events", "contexts", "weights"])
def test_what_is_not_finite_is_not_lost(where):
    """The training loop stops at a loss that is not finite: no engine may turn it into a number."""
    flow, _ = flow_of(5, 3)
    events, contexts = rows(40, 5, 3)
    if where == "weights":
        with torch.no_grad():
            flow._transform._transforms[-1].conditioner.final_layer.bias[0] = math.nan
    else:
        {"events": events, "contexts": contexts}[where][7, 1] = math.nan
    bad = engines.log_prob(flow, events, contexts, engine="compiled").isnan()
    assert bad[7]
    assert bad.all() if where == "weights" else bad.sum() == 1


def test_a_density_refuses_what_is_not_finite():
    density = FlowDensity(build_flow("nsf", 2, 1, **SMALL), (2,), (1,), engine="compiled")
    with pytest.raises(NonFiniteError, match="x: "):
        density.log_prob(torch.tensor([[0.0, math.inf]]), torch.zeros(1))
    with pytest.raises(NonFiniteError, match="context: "):
        density.sample(3, torch.tensor([math.nan]))


def test_one_context_serves_all_rows():
    flow, _ = flow_of(5, 50)
    events, contexts = rows(200, 5, 50)
    for engine in ("eager", "compiled"):
        single = engines.log_prob(flow, events, contexts[:1], engine=engine)
        torch.testing.assert_close(single, engines.log_prob(flow, events, contexts[:1].expand(200, -1), engine=engine))
        context = contexts[:1].clone().requires_grad_()
        full = contexts[:1].repeat(200, 1).requires_grad_()
        engines.log_prob(flow, events, context, engine=engine).sum().backward()
        engines.log_prob(flow, events, full, engine=engine).sum().backward()
        torch.testing.assert_close(context.grad, full.grad.sum(0, keepdim=True), rtol=1e-3, atol=1e-3)


def test_equal_bits_for_equal_rows():
    flow, _ = flow_of(5, 3)
    events, contexts = rows(3000, 5, 3)
    first = gradients(flow, events, contexts, torch.ones(3000), "compiled")
    again = gradients(flow, events, contexts, torch.ones(3000), "compiled")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    whole = engines.log_prob(flow, events, contexts, engine="compiled")
    assert torch.equal(whole[100:333], engines.log_prob(flow, events[100:333], contexts[100:333], engine="compiled"))


@pytest.mark.parametrize(
    ("flow", "dtype"),
    [
        (build_flow("maf", 3, 2), torch.float32),
        (build_flow("nsf", 3, 2).double(), torch.float64),
        (build_flow("nsf", 3, 2, hidden_features=300), torch.float32),
    ],
    ids=["autoregressive", "double", "wide"],
)
def test_other_flows_run_eagerly(flow, dtype):
    events, contexts = (t.to(dtype) for t in rows(10, 3, 2))
    compiled = engines.log_prob(flow, events, contexts, engine="compiled")
    assert torch.equal(compiled, engines.log_prob(flow, events, contexts, engine="eager"))


def test_without_a_compiler_flows_run_eagerly_and_say_so_once(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("SBI_PHYSICS_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    for function in (compiler.load_library, compiler.find_compiler, compiler._log_once):
        function.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                flow = build_flow("nsf", 2, 1, **SMALL)
                assert native_flow(flow) is None
                assert engines.log_prob(flow, *rows(5, 2, 1), engine="compiled").shape == (5,)
        assert [r.message for r in caplog.records] == [
            "running without native code: no C compiler was found (cc, gcc or clang)"
        ]
    finally:
        for function in (compiler.load_library, compiler.find_compiler, compiler._log_once):
            function.cache_clear()


def test_a_compiler_that_fails_is_named(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("SBI_PHYSICS_CACHE", str(tmp_path))
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\ncase $1 in --version) exit 0;; esac\necho 'no such flag' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    for function in (compiler.load_library, compiler.find_compiler, compiler._log_once):
        function.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert native_flow(build_flow("nsf", 2, 1, **SMALL)) is None
        assert [r.message for r in caplog.records] == ["running without native code: no such flag"]
        assert not list((tmp_path / "native").iterdir())
    finally:
        for function in (compiler.load_library, compiler.find_compiler, compiler._log_once):
            function.cache_clear()


FORKED = """
import os, torch
from sbi_physics.models.flows import engines
from sbi_physics.models.flows.build import build_flow

torch.set_num_threads(2)
flow = build_flow("nsf", 2, 1, transforms=3, hidden_features=20, blocks=1, bins=5)
rows, context = torch.ones(500, 2), torch.ones(1, 1)
value = engines.log_prob(flow, rows, context, engine="compiled").sum().item()
child = os.fork()
if child == 0:
    os._exit(0 if engines.log_prob(flow, rows, context, engine="compiled").sum().item() == value else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_does_not_wait_for_threads_that_it_lacks():
    result = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (0, "0"), result.stderr


def test_engines_by_name():
    with pytest.raises(UsageError, match="engine: expected one of auto, eager, compiled, fused, graphed, got 'fast'"):
        FlowDensity(build_flow("nsf", 2, None), (2,), engine="fast")
