"""The rational-quadratic spline of each boundary: its derivative both ways, at knots and edges, for extreme weights."""

import math

import pytest
import torch

from sbi_physics.models.flows.spline import rational_quadratic_spline, spline_parameters, wrap

BINS, BOUND = 5, 3.0
DIRECTIONS = [False, True]


class Spline:
    """The spline of one boundary, with inputs and parameters for it."""

    def __init__(self, boundary):
        self.boundary = boundary

    def __call__(self, inputs, parameters, inverse=False):
        options = {"bins": BINS, "tail_bound": BOUND, "boundary": self.boundary}
        return rational_quadratic_spline(inputs, parameters, inverse=inverse, **options)

    def parameters(self, n, scale=1.5, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        return scale * torch.randn(n, spline_parameters(BINS, self.boundary), generator=generator, dtype=dtype)

    def inputs(self, n, reach=4.0, dtype=torch.float64):
        """Numbers beyond the edges as well, where those are allowed."""
        reach = min(reach, BOUND) if self.boundary == "bounded" else reach
        return torch.linspace(-reach, reach, n, dtype=dtype)


@pytest.fixture(params=["linear", "bounded", "circular"])
def spline(request):
    return Spline(request.param)


def knots(parameters, heights=False):
    """The inner knots, read off the definition in the paper rather than off the code."""
    raw = parameters[..., BINS : 2 * BINS] if heights else parameters[..., :BINS]
    sizes = 1e-3 + (1 - 1e-3 * BINS) * torch.softmax(raw, -1)
    return 2 * BOUND * sizes.cumsum(-1)[..., :-1] - BOUND


def test_zero_is_the_identity(spline):
    x = spline.inputs(101, 7.0)
    for inverse in DIRECTIONS:
        y, ladj = spline(x, 0 * spline.parameters(101), inverse)
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(ladj, torch.zeros_like(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.3, 1.5, 4.0])
def test_round_trip(spline, scale):
    x = spline.inputs(801)
    parameters = spline.parameters(801, scale)
    y, ladj = spline(x, parameters)
    back, inverse_ladj = spline(y, parameters, True)
    slope = torch.exp(-ladj).clamp(min=1)
    assert float(((back - x) / slope).abs().max()) < 1e-9
    near = slope < 100
    torch.testing.assert_close(inverse_ladj[near], -ladj[near], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_ladj_matches_autograd(spline, inverse):
    x = spline.inputs(801).requires_grad_()
    y, ladj = spline(x, spline.parameters(801), inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope.log(), ladj)


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_gradients_match_finite_differences(spline, inverse):
    """Of output and log-derivative, with respect to input and parameters, away from the knots and in the tails."""
    parameters = spline.parameters(12, 1.0).requires_grad_()
    x = (0.97 * spline.inputs(12, 3.7) - 0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: spline(a, b, inverse), (x, parameters), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_gradient_of_one_output_alone(spline, inverse):
    """Either output may be unused."""
    x = spline.inputs(9, 3.5).requires_grad_()
    parameters = spline.parameters(9).requires_grad_()
    both = [torch.autograd.grad(spline(x, parameters, inverse)[i].sum(), [x, parameters]) for i in (0, 1)]
    y, ladj = spline(x, parameters, inverse)
    together = torch.autograd.grad(y.sum() + ladj.sum(), [x, parameters])
    for i in (0, 1):
        torch.testing.assert_close(both[0][i] + both[1][i], together[i])


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_inverse_gradients_are_those_of_the_forward_map(spline, inverse):
    """By the implicit function theorem: y(x(y, p), p) does not move with p."""
    start = torch.linspace(-2.8, 2.8, 50, dtype=torch.float64)
    parameters = spline.parameters(50).requires_grad_()
    moved, ladj = spline(start, parameters, inverse)
    back, back_ladj = spline(moved, parameters, not inverse)
    (gradient,) = torch.autograd.grad(back.sum() + (ladj + back_ladj).sum(), parameters)
    assert float(gradient.abs().max()) < 1e-7


@pytest.mark.parametrize("inverse", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knots_edges_and_beyond(spline, inverse, dtype):
    parameters = spline.parameters(40, dtype=dtype)
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
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(outputs[inputs.abs() == BOUND], inputs[inputs.abs() == BOUND], rtol=0, atol=tolerance)
    beyond = inputs.abs() > BOUND
    if spline.boundary == "linear":
        assert torch.equal(outputs[beyond], inputs[beyond])
        assert bool((ladj[beyond] == 0).all())
    elif spline.boundary == "bounded":
        assert float(outputs.detach().abs().max()) <= BOUND
        edges, edge_ladj = spline(inputs.clamp(-BOUND, BOUND), parameters, inverse)
        assert torch.equal(outputs, edges)
        assert torch.equal(ladj, edge_ladj)


def test_knots_map_to_knots(spline):
    parameters = spline.parameters(20)
    inputs = knots(parameters)
    outputs, _ = spline(inputs, parameters.unsqueeze(1).expand(-1, BINS - 1, -1))
    torch.testing.assert_close(outputs, knots(parameters, heights=True))


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_is_continuous_with_its_derivative_at_knots_and_edges(spline, inverse):
    parameters = spline.parameters(20)
    places = knots(parameters, heights=inverse)
    if spline.boundary != "bounded":
        places = torch.cat([places, torch.tensor([-BOUND, BOUND]).double().expand(20, 2)], dim=-1)
    spread = parameters.unsqueeze(1).expand(-1, places.shape[1], -1)
    below, above = (spline(places + step, spread, inverse) for step in (-1e-10, 1e-10))
    torch.testing.assert_close(below[0], above[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(below[1], above[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_the_edges_have_the_derivatives_that_are_chosen(spline, inverse):
    """Read off the definition: the softplus of the first and of the last free one."""
    parameters = spline.parameters(20)
    free = parameters[:, 2 * BINS :]
    # So that zero gives one.
    raw = torch.stack([free[:, 0], free[:, -1] if spline.boundary == "bounded" else free[:, 0]], dim=1)
    raw = torch.zeros_like(raw) if spline.boundary == "linear" else raw
    expected = torch.nn.functional.softplus(raw + math.log(math.expm1(0.999))) + 1e-3
    edges = torch.tensor([-BOUND, BOUND], dtype=torch.float64).expand(20, 2)
    _, ladj = spline(edges, parameters.unsqueeze(1).expand(-1, 2, -1), inverse)
    torch.testing.assert_close(ladj, -expected.log() if inverse else expected.log())


@pytest.mark.parametrize("inverse", DIRECTIONS)
def test_a_circle_has_a_period(inverse):
    spline = Spline("circular")
    x, parameters = spline.inputs(200, BOUND), spline.parameters(200)
    outputs, ladj = spline(x, parameters, inverse)
    for turns in (-2, 1):
        moved, moved_ladj = spline(x + turns * 2 * BOUND, parameters, inverse)
        torch.testing.assert_close(moved, outputs + turns * 2 * BOUND)
        torch.testing.assert_close(moved_ladj, ladj)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrapping_keeps_what_is_inside(dtype):
    x = torch.tensor([-BOUND, -1e-30, 0.0, 1.1, 2.9999], dtype=dtype)
    assert torch.equal(wrap(x, BOUND), x)
    torch.testing.assert_close(wrap(x + 4 * BOUND, BOUND), x, rtol=0, atol=1e-5)
    assert wrap(torch.tensor(BOUND, dtype=dtype), BOUND) == -BOUND
    below = torch.nextafter(-torch.tensor(BOUND, dtype=dtype), torch.tensor(-9.0, dtype=dtype))
    assert abs(float(wrap(below, BOUND))) <= BOUND


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", DIRECTIONS)
@pytest.mark.parametrize("scale", [10.0, 100.0, 1e4])
def test_extreme_weights_stay_finite(spline, dtype, inverse, scale):
    inputs = spline.inputs(2000, dtype=dtype).requires_grad_()
    parameters = spline.parameters(2000, scale, seed=1, dtype=dtype).requires_grad_()
    outputs, ladj = spline(inputs, parameters, inverse)
    assert bool(torch.isfinite(outputs).all())
    assert bool(torch.isfinite(ladj).all())
    assert float((outputs - inputs).detach().abs().max()) <= 2 * BOUND + 1e-4
    if spline.boundary != "circular":
        assert float(outputs.detach().abs().max()) <= 4.0001
    for gradient in torch.autograd.grad(outputs.sum() + ladj.sum(), [inputs, parameters]):
        assert bool(torch.isfinite(gradient).all())


def test_is_increasing_in_single_precision(spline):
    x = spline.inputs(4001, dtype=torch.float32)
    for seed in range(20):
        parameters = spline.parameters(1, 2.0, seed, torch.float32).expand(4001, -1)
        for inverse in DIRECTIONS:
            steps = spline(x, parameters, inverse)[0].diff()
            assert float(steps.min()) > -1e-5


def test_single_precision_is_close_to_double(spline):
    x, parameters = spline.inputs(2000), spline.parameters(2000, 1.0)
    for inverse in DIRECTIONS:
        for double, single in zip(
            spline(x, parameters, inverse), spline(x.float(), parameters.float(), inverse), strict=True
        ):
            torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_batch_axes_are_free(spline):
    parameters = spline.parameters(24).reshape(2, 3, 4, -1)
    x = spline.inputs(24).reshape(2, 3, 4)
    y, ladj = spline(x, parameters)
    assert y.shape == ladj.shape == x.shape
    flat = spline(x.flatten(), parameters.flatten(0, 2))
    torch.testing.assert_close(y.flatten(), flat[0])
    empty = spline(x[:0], parameters[:0])
    assert empty[0].shape == empty[1].shape == (0, 3, 4)


def test_maps_over_a_batch_by_torch_func(spline):
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)
    parameters = spline.parameters(6)
    mapped = torch.func.vmap(torch.func.grad(lambda a, b: spline(a, b)[1]))(x, parameters)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(spline(x, parameters)[1].sum(), x)
    torch.testing.assert_close(mapped, expected)


def test_one_bin_will_do(spline):
    options = {"bins": 1, "tail_bound": BOUND, "boundary": spline.boundary}
    parameters = torch.ones(7, spline_parameters(1, spline.boundary), dtype=torch.float64)
    x = spline.inputs(7, 2.0)
    y, _ = rational_quadratic_spline(x, parameters, **options)
    torch.testing.assert_close(rational_quadratic_spline(y, parameters, inverse=True, **options)[0], x)


def test_number_of_parameters():
    assert [spline_parameters(8, boundary) for boundary in ("linear", "bounded", "circular")] == [23, 25, 24]
    assert spline_parameters(8) == 23
