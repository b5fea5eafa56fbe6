"""Laws of the map between the support of a prior and the real space, for each kind of interval."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sbi_physics.core.bijection import SupportBijection
from sbi_physics.core.errors import ShapeError, SupportError

INF = math.inf
BOUNDS = {
    "free": [[-INF, INF]],
    "unit": [[0.0, 1.0]],
    "below zero": [[-1.0, 0.0]],
    "wide": [[-1e6, 3e6]],
    "narrow and far": [[1000.0, 1000.5]],
    "no float32": [[0.1, 0.7]],
    "lower": [[0.0, INF]],
    "lower far": [[2000.0, INF]],
    "upper": [[-INF, 3.0]],
    "all": [[-INF, INF], [0.0, 15.0], [-20.0, INF], [-INF, 0.1]],
}
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=BOUNDS)
def bijection(request):
    return SupportBijection(torch.tensor(BOUNDS[request.param], dtype=torch.float64))


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def grid(dims, dtype, width=4.0):
    generator = torch.Generator().manual_seed(0)
    return (width * (2 * torch.rand(200, dims, generator=generator, dtype=torch.float64) - 1)).to(dtype)


def test_round_trip(bijection, dtype):
    z = grid(bijection.dims, dtype, 3.0)
    theta, ladj = bijection.to_support(z)
    again, inverse_ladj = bijection.to_unbounded(theta)
    assert theta.dtype == ladj.dtype == again.dtype == inverse_ladj.dtype == dtype
    assert ladj.shape == inverse_ladj.shape == z.shape[:-1]
    # The rounding of theta, seen through the slope dz / dtheta.
    slope = (theta.abs().max() + 1) * torch.exp(inverse_ladj.max() if bijection.dims == 1 else torch.tensor(8.0))
    tolerance = max(4 * torch.finfo(dtype).eps * float(slope), 1e-6 if dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(again, z, rtol=0, atol=tolerance)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-6, atol=10 * tolerance)
    forth, _ = bijection.to_support(again)
    torch.testing.assert_close(forth, theta, rtol=4 * torch.finfo(dtype).eps * 10, atol=tolerance)


def test_ladj_matches_autograd(bijection):
    z = grid(bijection.dims, torch.float64).requires_grad_()
    theta, ladj = bijection.to_support(z)
    (slope,) = torch.autograd.grad(theta.sum(), z)
    torch.testing.assert_close(slope.log().sum(-1), ladj)
    theta = theta.detach().requires_grad_()
    z, ladj = bijection.to_unbounded(theta)
    (slope,) = torch.autograd.grad(z.sum(), theta)
    torch.testing.assert_close(slope.log().sum(-1), ladj)


def test_gradient_at_the_centre(bijection):
    """Where the map changes from the lower to the upper bound."""
    z = torch.zeros(1, bijection.dims, dtype=torch.float64, requires_grad=True)
    theta, ladj = bijection.to_support(z)
    (slope,) = torch.autograd.grad(theta.sum(), z)
    torch.testing.assert_close(slope.log().sum(-1), ladj)


def test_is_increasing(bijection, dtype):
    z = torch.linspace(-9.0, 9.0, 2001).to(dtype).unsqueeze(-1).expand(-1, bijection.dims)
    theta, _ = bijection.to_support(z)
    assert bool((theta.diff(dim=0) >= 0).all())
    assert bool((bijection.to_unbounded(theta)[0].diff(dim=0) >= 0).all())


def test_lands_strictly_inside_however_far_out(bijection, dtype):
    sizes = torch.tensor([0.0, 1.0, 6.0, 9.0, 40.0, 1e3, 1e30], dtype=dtype)
    z = torch.cat([sizes, -sizes]).unsqueeze(-1).expand(-1, bijection.dims)
    theta, ladj = bijection.to_support(z)
    low, high = bijection.bounds.unbind(-1)
    assert bool(((theta.double() > low) & (theta.double() < high)).all())
    assert bool(torch.isfinite(theta).all())
    assert not bool(torch.isnan(ladj).any())
    assert bool(bijection.within(theta).all())


def test_edges_count_as_the_next_number_inside(bijection, dtype):
    bounds = bijection.bounds.clamp(-1e3, 1e3 + 2001).to(dtype)
    for theta in bounds.T:
        theta = theta.unsqueeze(0)
        assert bool(bijection.within(theta).all())
        z, ladj = bijection.to_unbounded(theta)
        assert bool(torch.isfinite(z).all())
        assert bool(torch.isfinite(ladj).all())


@pytest.mark.parametrize("lower", [0.0, -3.0, 2.0, -1e-3])
@pytest.mark.parametrize("width", [1.0, 15.0, 3.5, 1e-3, 1e5])
def test_double_edges_stay_finite(lower, width):
    """One step inside a bound, rounding must not make the share of the interval zero or one."""
    bijection = SupportBijection(torch.tensor([[lower, lower + width]]).double())
    z, ladj = bijection.to_unbounded(bijection.bounds.T.contiguous())
    assert z[0, 0] < -5
    assert z[1, 0] > 5
    assert bool(torch.isfinite(ladj).all())


def test_outside_is_nan(bijection, dtype):
    for i, (low, high) in enumerate(bijection.bounds.tolist()):
        for bad in (low - abs(low) - 1.0, high + abs(high) + 1.0, math.nan):
            if math.isinf(bad):
                continue
            theta, _ = bijection.to_support(torch.zeros(2, bijection.dims, dtype=dtype))
            theta[0, i] = bad
            z, ladj = bijection.to_unbounded(theta)
            assert bool(torch.isnan(z[0, i]))
            assert bool(torch.isfinite(z[1]).all())
            assert bool(torch.isfinite(ladj[1]))
            assert bijection.within(theta).tolist() == [False, True]
            if not bijection.is_identity and not (math.isinf(low) and math.isinf(high)):
                assert bool(torch.isnan(ladj[0]))


def test_a_uniform_density_becomes_a_standard_normal():
    bijection = SupportBijection(torch.tensor([[-2.0, 5.0]]).double())
    z = torch.linspace(-6, 6, 101, dtype=torch.float64).unsqueeze(-1)
    _, ladj = bijection.to_support(z)
    torch.testing.assert_close(ladj - math.log(7.0), torch.distributions.Normal(0.0, 1.0).log_prob(z)[:, 0])


def test_batch_shapes(dtype):
    bijection = SupportBijection(torch.tensor(BOUNDS["all"], dtype=torch.float64))
    for shape in ((), (0,), (3,), (2, 0), (2, 3)):
        z = torch.zeros(*shape, 4, dtype=dtype)
        theta, ladj = bijection.to_support(z)
        assert theta.shape == z.shape
        assert ladj.shape == bijection.within(theta).shape == shape
        assert bijection.to_unbounded(theta)[1].shape == shape


@given(
    lower=st.floats(-1e4, 1e4),
    width=st.floats(1e-2, 1e4),
    share=st.floats(0.0, 1.0),
)
def test_any_interval_and_any_point(lower, width, share):
    bijection = SupportBijection(torch.tensor([[lower, lower + width]], dtype=torch.float64))
    theta = torch.tensor([[min(max(lower + share * width, lower), lower + width)]], dtype=torch.float64)
    z, ladj = bijection.to_unbounded(theta)
    assert bool(torch.isfinite(z).all())
    assert bool(torch.isfinite(ladj).all())
    back, _ = bijection.to_support(z)
    assert lower < float(back) < lower + width
    assert float((back - theta).abs()) <= 1e-12 * (abs(lower) + width)


def test_wrong_bounds_are_named():
    with pytest.raises(ShapeError, match=r"bounds: expected shape \(P, 2\), got \(2,\)"):
        SupportBijection(torch.tensor([0.0, 1.0]))
    with pytest.raises(ShapeError, match="bounds: expected shape"):
        SupportBijection(torch.zeros(3, 3))
    for bad in ([[1.0, 0.0]], [[1.0, 1.0]], [[math.nan, 1.0]], [[0.0, math.nan]]):
        with pytest.raises(SupportError, match="expected lower < upper"):
            SupportBijection(torch.tensor(bad))


class TestBox:
    BOUNDS = torch.tensor([[0.0, 1.0], [-1e6, 3e6], [1000.0, 1000.5], [0.1, 0.7]], dtype=torch.float64)

    def test_round_trip_and_edges(self, dtype):
        bijection = SupportBijection(self.BOUNDS, box=2.0)
        z = grid(4, dtype, 2.0)
        theta, ladj = bijection.to_support(z)
        again, inverse_ladj = bijection.to_unbounded(theta)
        assert theta.dtype == ladj.dtype == again.dtype == dtype
        torch.testing.assert_close(ladj, -inverse_ladj)
        slope = 4 / (self.BOUNDS[:, 1] - self.BOUNDS[:, 0])
        rounding = torch.finfo(dtype).eps * (2 + self.BOUNDS.abs().amax(1) * slope)
        assert bool(((again - z).abs().double() <= 2 * rounding).all())
        corners, _ = bijection.to_unbounded(self.BOUNDS.T.to(torch.float64))
        torch.testing.assert_close(corners, torch.tensor([[-2.0], [2.0]], dtype=torch.float64).expand(2, 4))

    def test_draws_are_strictly_inside(self, dtype):
        bijection = SupportBijection(self.BOUNDS, box=2.0)
        edges = torch.tensor([[-2.0], [2.0], [-2.1], [9.0]], dtype=dtype).expand(4, 4)
        theta = bijection.to_support(edges)[0].double()
        assert bool(((theta > self.BOUNDS[:, 0]) & (theta < self.BOUNDS[:, 1])).all())

    def test_what_is_no_interval_stays_as_it_is(self, dtype):
        bounds = torch.tensor([[0.0, 1.0], [0.0, INF], [-INF, 3.0], [-INF, INF]])
        theta = torch.tensor([[0.75, 2.0, -1.0, 5.0], [0.1, 0.1, 2.9, -7.0]], dtype=dtype)
        boxed, boxed_ladj = SupportBijection(bounds, box=2.0).to_unbounded(theta)
        z, _ = SupportBijection(bounds).to_unbounded(theta)
        assert torch.equal(boxed[:, 1:], z[:, 1:])
        torch.testing.assert_close(boxed[:, 0], 4 * theta[:, 0] - 2)
        back, ladj = SupportBijection(bounds, box=2.0).to_support(boxed)
        torch.testing.assert_close(back, theta)
        torch.testing.assert_close(ladj, -boxed_ladj)
