"""What holds for every simulator with an exact likelihood."""

import pickle

import pytest
import torch

from sbi_physics.core.errors import ShapeError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.protocols import TractableSimulator


def test_satisfies_the_protocol(simulator):
    assert isinstance(simulator, TractableSimulator)
    assert isinstance(simulator.parameters, Parameters)
    assert isinstance(simulator.name, str)
    assert Parameters.from_dict(simulator.parameters.to_dict()) == simulator.parameters


def test_shapes_and_types(simulator):
    theta = simulator.parameters.sample(7, seed=1)
    x = simulator(theta, seed=2)
    assert x.shape == (7, *simulator.x_shape)
    assert x.dtype == torch.float32
    log_likelihood = simulator.log_likelihood(theta, x)
    assert log_likelihood.shape == (7,)
    assert log_likelihood.dtype == torch.float64
    assert bool(torch.isfinite(log_likelihood).all())


def test_same_seed_same_bytes_and_another_seed_differs(simulator):
    theta = simulator.parameters.sample(5, seed=1)
    state = torch.random.get_rng_state()
    first, second, other = simulator(theta, seed=3), simulator(theta, seed=3), simulator(theta, seed=4)
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert not torch.equal(first.nan_to_num(), other.nan_to_num())
    assert torch.equal(state, torch.random.get_rng_state())


def test_pickled_simulator_gives_the_same_bytes(simulator):
    theta = simulator.parameters.sample(5, seed=1)
    copy = pickle.loads(pickle.dumps(simulator))
    assert copy(theta, seed=3).numpy().tobytes() == simulator(theta, seed=3).numpy().tobytes()
    assert copy.parameters == simulator.parameters


def test_likelihood_of_a_batch_is_that_of_its_rows(simulator):
    theta = simulator.parameters.sample(6, seed=1)
    x = simulator(theta, seed=2)
    together = simulator.log_likelihood(theta, x)
    one_by_one = torch.stack([simulator.log_likelihood(t, y) for t, y in zip(theta, x, strict=True)])
    torch.testing.assert_close(together, one_by_one, rtol=1e-12, atol=1e-12)
    grid = simulator.log_likelihood(theta.unsqueeze(1), x)
    assert grid.shape == (6, 6)
    torch.testing.assert_close(grid.diagonal(), together, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(simulator.log_likelihood(theta, x[0]), grid[:, 0], rtol=1e-12, atol=1e-12)


def test_gradient_matches_finite_differences(simulator):
    theta = simulator.parameters.sample(2, seed=5).double()
    x = simulator(theta, seed=6)
    assert torch.autograd.gradcheck(
        lambda t: simulator.log_likelihood(t, x), theta.requires_grad_(), eps=1e-7, atol=1e-3, rtol=1e-4
    )


def test_expected_score_is_zero(simulator, request):
    """E[d ln p(x | theta) / d theta] = 0 over x drawn at theta, within five standard errors."""
    if simulator.name == "two_moons":
        pytest.skip("the density jumps where its half circle ends: test_analytic.py tests it bin by bin")
    n = 5_000
    theta = simulator.parameters.sample(1, seed=7).double().expand(n, -1).clone().requires_grad_()
    x = simulator(theta.detach(), seed=8)
    (score,) = torch.autograd.grad(simulator.log_likelihood(theta, x).sum(), theta)
    pull = score.mean(0) / (score.std(0) / n**0.5)
    assert float(pull.abs().max()) < 5


def test_information_equality(simulator):
    """E[p(x | theta') / p(x | theta)] = 1 over x drawn at theta: the likelihood is normalised where data fall."""
    if simulator.name == "two_moons":
        pytest.skip("the support moves with theta: test_analytic.py integrates the density")
    n = 20_000
    theta = simulator.parameters.sample(1, seed=9).double()
    x = simulator(theta.expand(n, -1), seed=10)
    direction = torch.zeros_like(theta)
    direction[0, 0] = 1.0
    curvature = torch.autograd.functional.hessian(lambda t: simulator.log_likelihood(t, x[:200]).sum(), theta)
    width = (curvature[0, 0, 0, 0].abs() / 200).rsqrt()
    ratio = torch.exp(simulator.log_likelihood(theta + 0.5 * width * direction, x) - simulator.log_likelihood(theta, x))
    assert float((ratio.mean() - 1).abs()) < 5 * float(ratio.std()) / n**0.5


def test_wrong_shapes_are_named(simulator):
    theta = simulator.parameters.sample(3, seed=1)
    x = simulator(theta, seed=2)
    with pytest.raises(ShapeError, match="theta: expected shape"):
        simulator(theta[:, :-1], seed=1)
    with pytest.raises(ShapeError, match="x: expected shape"):
        simulator.log_likelihood(theta, x[:, :-1])
    with pytest.raises(ShapeError, match="theta: expected shape"):
        simulator.log_likelihood(theta[:, :-1], x)


def test_runs_on_the_device_of_theta(simulator):
    """On the meta device, which computes shapes alone and refuses to mix with tensors of another device."""
    theta = simulator.parameters.sample(3, seed=1)
    x = simulator(theta, seed=2)
    assert simulator(theta.to("meta"), seed=2).device.type == "meta"
    assert simulator.log_likelihood(theta.to("meta"), x).device.type == "meta"
    assert simulator.log_likelihood(theta.to("meta"), x.to("meta")).shape == (3,)
