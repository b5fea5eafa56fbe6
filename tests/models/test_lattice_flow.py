"""Flows on a torus: laws of a flow, and the symmetries that they keep."""

import pytest
import torch

from sbi_physics.core.errors import UsageError
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.models.flows.lattice import lattice_flow


@pytest.fixture(params=[(2, True), (4, True), (4, False), (6, False)], ids=str)
def case(request):
    """Side, whether odd, the transform of a flow that is not at its start, and fields; all in double precision."""
    side, odd = request.param
    flow = lattice_flow(side, couplings=3, hidden_features=12, odd=odd).double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=random, dtype=torch.float64))
    return side, odd, flow._transform, torch.randn(4, side**2, generator=random, dtype=torch.float64)


def moved(fields, side, *by):
    return fields.unflatten(1, (side, side)).roll(by, (1, 2)).flatten(1)


def test_the_inverse_inverts(case):
    _, _, transform, fields = case
    noise, ladj = transform(fields)
    back, inverse_ladj = transform.inverse(noise)
    torch.testing.assert_close(back, fields)
    torch.testing.assert_close(inverse_ladj, -ladj)


def test_the_log_determinant_is_that_of_the_jacobian(case):
    _, _, transform, fields = case
    jacobian = torch.autograd.functional.jacobian(lambda field: transform(field.unsqueeze(0))[0][0], fields[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, transform(fields)[1][0])


def test_an_odd_flow_commutes_with_the_sign_and_a_plain_one_does_not(case):
    _, odd, transform, fields = case
    difference = (transform(-fields)[0] + transform(fields)[0]).detach().abs().max()
    assert (float(difference) < 1e-10) is odd


def test_translations_that_keep_the_colours_commute_and_others_do_not(case):
    side, _, transform, fields = case
    noise, ladj = transform(fields)
    for by in ((1, 1), (0, 2), (side - 1, 1)):
        after, ladj_after = transform(moved(fields, side, *by))
        torch.testing.assert_close(after, moved(noise, side, *by))
        torch.testing.assert_close(ladj_after, ladj)
    assert not torch.allclose(transform(moved(fields, side, 1, 0))[0], moved(noise, side, 1, 0))


def test_every_parameter_learns(case):
    transform, fields = case[2:]
    noise, ladj = transform(fields)
    (0.5 * noise.square().sum(1) - ladj).sum().backward()
    assert [name for name, p in transform.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_new_flow_is_a_gaussian_of_the_width():
    fields = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    expected = torch.distributions.Normal(0.0, 0.3).log_prob(fields).sum(1)
    torch.testing.assert_close(lattice_flow(4, width=0.3).log_prob(fields), expected, rtol=1e-4, atol=1e-4)


def test_it_is_a_density():
    """Draws come with their densities, and the same seed gives the same flow."""
    flow = lattice_flow(4, seed=3)
    draws, log_prob = FlowDensity(flow, (16,)).sample_and_log_prob(50, seed=0)
    torch.testing.assert_close(FlowDensity(lattice_flow(4, seed=3), (16,)).log_prob(draws), log_prob)
    same, other = lattice_flow(4, seed=3).state_dict(), lattice_flow(4, seed=4).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in flow.state_dict().items())
    assert any(not torch.equal(value, other[name]) for name, value in flow.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"side": 3}, "side: expected an even number"),
        ({"couplings": 0}, "couplings: expected an integer of at least 1"),
        ({"hidden_features": 1.5}, "hidden_features: expected an integer"),
        ({"blocks": -1}, "blocks: expected an integer"),
        ({"bins": 1000}, "bins: expected fewer than 1000"),
        ({"tail_bound": 0.0}, "tail_bound: expected a finite number above 0"),
        ({"width": float("inf")}, "width: expected a finite number above 0"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(UsageError, match=message):
        lattice_flow(**{"side": 4, **wrong})
