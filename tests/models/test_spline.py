"""The rational-quadratic spline: its derivative both ways, at the knots, in the tails and for extreme weights."""

import math

import pytest
import torch

from sbi_physics.models.flows.spline import rational_quadratic_spline, spline_parameters

BINS, BOUND = 5, 3.0
DIRECTIONS = [False, True]


def spline(inputs, parameters, inverse=False):
    return rational_quadratic_spline(inputs, parameters, bins=BINS, tail_bound=BOUND, inverse=inverse)


def parameters_for(n, scale=1.5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, spline_parameters(BINS), generator=generator, dtype=dtype)


def knots(parameters, heights=False):
    """The inner knots, read off the definition in the paper rather than off the code."""
    raw = parameters[..., BINS : 2 * BINS] if heights else parameters[..., :BINS]
    sizes = 1e-3 + (1 - 1e-3 * BINS) * torch.softmax(raw, -1)
    return 2 * BOUND * sizes.cumsum(-1)[..., :-1] - BOUND


def test_zero_is_the_identity():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    for inverse in DIRECTIONS:
        y, ladj = spline(x, torch.zeros(101, spline_parameters(BINS), dtype=torch.float64), inverse)
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(ladj, torch.zeros_like(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.3, 1.5, 4.0])
def test_round_trip(scale):
    x = torch.linspace(-4, 4, 801, dtype=torch.float64)
    parameters = parameters_for(801, scale)
    y, ladj = spline(x, parameters)
    back, inverse_ladj = spline(y, parameters, True)
    slope = torch.exp(-ladj).clamp(min=1)
    assert float(((back - x) / slope).abs().max()) < 1e-9
    near = slope < 100
    torch.testing.assert_close(inverse_ladj[near], -ladj[near], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_ladj_matches_autograd(inverse):
    x = torch.linspace(-4, 4, 801, dtype=torch.float64, requires_grad=True)
    y, ladj = spline(x, parameters_for(801), inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope.log(), ladj)


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_gradients_match_finite_differences(inverse):
    """Of output and log-derivative, with respect to input and parameters, away from the knots and in the tails."""
    parameters = parameters_for(12, 1.0).requires_grad_()
    x = torch.linspace(-3.7, 3.6, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: spline(a, b, inverse), (x, parameters), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_gradient_of_one_output_alone(inverse):
    """Either output may be unused."""
    x = torch.linspace(-3.5, 3.5, 9, dtype=torch.float64, requires_grad=True)
    parameters = parameters_for(9).requires_grad_()
    both = [torch.autograd.grad(spline(x, parameters, inverse)[i].sum(), [x, parameters]) for i in (0, 1)]
    y, ladj = spline(x, parameters, inverse)
    together = torch.autograd.grad(y.sum() + ladj.sum(), [x, parameters])
    for i in (0, 1):
        torch.testing.assert_close(both[0][i] + both[1][i], together[i])


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_inverse_gradients_are_those_of_the_forward_map(inverse):
    """By the implicit function theorem: y(x(y, p), p) does not move with p."""
    start = torch.linspace(-2.8, 2.8, 50, dtype=torch.float64)
    parameters = parameters_for(50).requires_grad_()
    moved, ladj = spline(start, parameters, inverse)
    back, back_ladj = spline(moved, parameters, not inverse)
    (gradient,) = torch.autograd.grad(back.sum() + (ladj + back_ladj).sum(), parameters)
    assert float(gradient.abs().max()) < 1e-7


@pytest.mark.parametrize("inverse", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knots_edges_and_tails(inverse, dtype):
    parameters = parameters_for(40, dtype=dtype)
    edge = torch.tensor(BOUND, dtype=dtype)
    up, down = torch.nextafter(edge, edge * 2), torch.nextafter(edge, edge * 0)
    sizes = torch.stack([edge, up, down, edge * 2, edge * 400])
    special = torch.cat([sizes, -sizes]).expand(40, -1)
    inputs = torch.cat([knots(parameters, heights=inverse), special], dim=-1).detach().requires_grad_()
    parameters = parameters.unsqueeze(1).expand(-1, inputs.shape[1], -1).clone().requires_grad_()
    outputs, ladj = spline(inputs, parameters, inverse)
    assert bool(torch.isfinite(outputs).all())
    assert bool(torch.isfinite(ladj).all())
    for gradient in torch.autograd.grad(outputs.sum() + ladj.sum(), [inputs, parameters]):
        assert bool(torch.isfinite(gradient).all())
    tails = inputs.abs() > BOUND
    assert torch.equal(outputs[tails], inputs[tails])
    assert bool((ladj[tails] == 0).all())
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(outputs[inputs.abs() == BOUND], inputs[inputs.abs() == BOUND], rtol=0, atol=tolerance)


def test_knots_map_to_knots():
    parameters = parameters_for(20)
    inputs = knots(parameters)
    outputs, _ = spline(inputs, parameters.unsqueeze(1).expand(-1, BINS - 1, -1))
    torch.testing.assert_close(outputs, knots(parameters, heights=True))


def test_is_continuous_with_its_derivative_at_knots_and_edges():
    parameters = parameters_for(20)
    places = torch.cat([knots(parameters), torch.tensor([-BOUND, BOUND]).double().expand(20, 2)], dim=-1)
    spread = parameters.unsqueeze(1).expand(-1, places.shape[1], -1)
    below, above = (spline(places + step, spread) for step in (-1e-10, 1e-10))
    torch.testing.assert_close(below[0], above[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(below[1], above[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", DIRECTIONS)
@pytest.mark.parametrize("scale", [10.0, 100.0, 1e4])
def test_extreme_weights_stay_finite(dtype, inverse, scale):
    inputs = torch.linspace(-4, 4, 2000, dtype=dtype).requires_grad_()
    parameters = parameters_for(2000, scale, seed=1, dtype=dtype).requires_grad_()
    outputs, ladj = spline(inputs, parameters, inverse)
    assert bool(torch.isfinite(outputs).all())
    assert bool(torch.isfinite(ladj).all())
    assert float(outputs.detach().abs().max()) <= 4.0001
    for gradient in torch.autograd.grad(outputs.sum() + ladj.sum(), [inputs, parameters]):
        assert bool(torch.isfinite(gradient).all())


def test_is_increasing_in_single_precision():
    x = torch.linspace(-4, 4, 4001)
    for seed in range(20):
        parameters = parameters_for(1, 2.0, seed, torch.float32).expand(4001, -1)
        for inverse in DIRECTIONS:
            steps = spline(x, parameters, inverse)[0].diff()
            assert float(steps.min()) > -1e-5


def test_batch_axes_are_free():
    parameters = parameters_for(24).reshape(2, 3, 4, -1)
    x = torch.linspace(-4, 4, 24, dtype=torch.float64).reshape(2, 3, 4)
    y, ladj = spline(x, parameters)
    assert y.shape == ladj.shape == x.shape
    flat = spline(x.flatten(), parameters.flatten(0, 2))
    torch.testing.assert_close(y.flatten(), flat[0])
    empty = spline(x[:0], parameters[:0])
    assert empty[0].shape == empty[1].shape == (0, 3, 4)


def test_maps_over_a_batch_by_torch_func():
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)
    parameters = parameters_for(6)
    mapped = torch.func.vmap(torch.func.grad(lambda a, b: spline(a, b)[1]))(x, parameters)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(spline(x, parameters)[1].sum(), x)
    torch.testing.assert_close(mapped, expected)


def test_number_of_parameters():
    assert spline_parameters(8) == 23
    assert math.isclose(float(spline(torch.zeros(1), torch.zeros(1, spline_parameters(BINS)))[0]), 0.0, abs_tol=1e-6)
