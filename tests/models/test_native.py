"""Native code gives what PyTorch gives, in any number of threads, and nothing where it cannot be."""

import contextlib
import logging
import math

import pytest
import torch

from sbi_physics.models.hurdle import HurdleNetwork, Hurdles
from sbi_physics.models.native import compiler
from sbi_physics.models.native.compiler import find_compiler
from sbi_physics.models.native.hurdle import HurdleTables, draw_hurdles
from sbi_physics.models.vae.model import VariationalAutoencoder

RINGS = [0, 1, 0, 1, 2, -1, 0, 1, 2, -1, 3]
# What single precision leaves of a share of nearly one, over the smallest rate, is what a zero can be off.
ROUNDING = 4 * torch.finfo(torch.float32).eps


@pytest.fixture
def needs_a_compiler():
    if find_compiler() is None:
        pytest.skip("no C compiler on this machine")


@contextlib.contextmanager
def threads_of(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def network(groups=RINGS, *, angles=False, components=3):
    turns = [0.7 * i for i in range(len(groups))] if angles else None
    with torch.random.fork_rng():
        torch.manual_seed(components)
        net = HurdleNetwork(2, groups, 1, angles=turns, components=components, hidden_features=8, blocks=1)
        for parameter in net.parameters():
            parameter.data = 0.5 * torch.randn_like(parameter)
        net.edges.copy_(torch.randn_like(net.edges))
        net.scales.copy_(1 + torch.rand_like(net.scales))
    return net.eval()


def given(net, n):
    source = torch.Generator().manual_seed(n)
    return [torch.randn(n, width, generator=source) for width in (2, 1, 2 * len(net.order))]


def natively(net, latent, condition, noise):
    """What native code alone makes of it."""
    tables = HurdleTables(net.edges, net.scales, net.waves, net.group_of, net.order, net.always)
    return draw_hurdles(net._raw(latent, condition), noise, tables, net.components)


@torch.no_grad()
@pytest.mark.usefixtures("needs_a_compiler")
@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("angles", [False, True])
@pytest.mark.parametrize("components", [1, 2, 3, 4])
@pytest.mark.parametrize("groups", [RINGS, [0] * 5, [-1] * 3])
def test_numbers_with_hurdles_agree(groups, components, angles, n):
    net = network(groups, angles=angles, components=components)
    latent, condition, noise = given(net, n)
    drawn, laws = natively(net, latent, condition, noise), Hurdles(net, net._raw(latent, condition).double())
    expected = laws.draw(noise.double())
    assert drawn.shape == expected.shape
    edges = net.edges[net.group_of][net.back]
    zero = (expected < edges) & ~net.always
    # A draw within rounding of where components, or zero and not zero, meet may fall on the other side: none does here.
    assert torch.equal((drawn < edges) & ~net.always, zero)
    error, plain = (drawn - expected).abs(), (net(latent, condition).draw(noise) - expected).abs()
    assert float(error[~zero].max() if bool((~zero).any()) else 0) < 1e-5
    assert bool((error <= 1e-5 + ROUNDING / laws._rates()[:, net.back])[zero].all())
    assert float(error.sum()) < 2 * float(plain.sum())


@torch.no_grad()
@pytest.mark.usefixtures("needs_a_compiler")
def test_it_is_as_near_to_double_precision_in_the_tails():
    """Noise far out, rates at both bounds: the share of a zero is cut off where PyTorch cuts it off."""
    net = network([0, 1])
    bias = net.network.last.bias.data.view(-1, 2)
    bias[0] = torch.tensor([-20.0, 20.0])
    source = torch.linspace(-9, 9, 2001)
    noise = torch.cat([source.unsqueeze(1).expand(-1, 2), torch.zeros(2001, 2)], 1)
    latent, condition = torch.zeros(1, 2).expand(2001, 2), torch.zeros(1, 1)
    drawn, expected = natively(net, latent, condition, noise), net(latent, condition).draw(noise)
    both = (drawn < net.edges[net.group_of][net.back]) == (expected < net.edges[net.group_of][net.back])
    assert float(both.double().mean()) > 1 - 2 / 2001
    assert bool(torch.isfinite(drawn).all())
    torch.testing.assert_close(drawn[:, 1], expected[:, 1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.usefixtures("needs_a_compiler")
def test_a_row_does_not_depend_on_the_others_nor_on_threads():
    net = network(angles=True)
    latent, condition, noise = given(net, 1000)
    with threads_of(1):
        raw = net._raw(latent, condition)
        tables = HurdleTables(net.edges, net.scales, net.waves, net.group_of, net.order, net.always)
        whole = draw_hurdles(raw, noise, tables, 3)
        part = draw_hurdles(raw[301:322], noise[301:322], tables, 3)
    with threads_of(2):
        assert torch.equal(draw_hurdles(raw, noise, tables, 3), whole)
    assert torch.equal(part, whole[301:322])
    wide = torch.cat([torch.zeros(1000, 3), noise], 1)
    assert torch.equal(draw_hurdles(raw, wide[:, 3:], tables, 3), whole)


@torch.no_grad()
@pytest.mark.usefixtures("needs_a_compiler")
def test_what_is_not_a_number_stays_so():
    net = network()
    latent, condition, noise = given(net, 3)
    latent[1] = math.nan
    drawn = natively(net, latent, condition, noise)
    assert bool(drawn[1].isnan().all())
    assert bool(torch.isfinite(drawn[[0, 2]]).all())


def test_gradients_and_other_precisions_are_left_to_pytorch():
    net = network()
    latent, condition, noise = given(net, 4)
    assert natively(net, latent, condition, noise) is None
    assert net.draw(latent, condition, noise).requires_grad
    with torch.no_grad():
        assert natively(net.double(), latent.double(), condition.double(), noise.double()) is None
        assert net.draw(latent.double(), condition.double(), noise.double()).dtype == torch.float64


@torch.no_grad()
def test_without_a_compiler_pytorch_draws(monkeypatch, caplog, tmp_path):
    net = network()
    latent, condition, noise = given(net, 50)
    monkeypatch.setenv("SBI_PHYSICS_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    for function in (compiler.load_library, compiler.find_compiler, compiler._log_once):
        function.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert natively(net, latent, condition, noise) is None
            drawn = net.draw(latent, condition, noise)
        assert torch.equal(drawn, net(latent, condition).draw(noise))
        assert len(caplog.records) == 1
    finally:
        for function in (compiler.load_library, compiler.find_compiler, compiler._log_once):
            function.cache_clear()


def test_an_autoencoder_draws_the_same_in_parts(monkeypatch):
    model = VariationalAutoencoder((11,), decoder="hurdle", groups=RINGS, hidden_features=16).eval()
    with torch.no_grad():
        model.decoder.direct.weight.normal_(generator=torch.Generator().manual_seed(0))
    whole = model.sample(300, seed=1)
    monkeypatch.setattr("sbi_physics.models.vae.model.rows_at_once", lambda device: 32)
    torch.testing.assert_close(model.sample(300, seed=1), whole, rtol=1e-4, atol=1e-4)
