"""The damped oscillator: its equation of motion, its likelihood, and samples that are missing."""

import math

import pytest
import torch
import torch.distributions as td

from sbi_physics.core.errors import UsageError
from simulators.oscillator import DampedOscillator


def test_the_displacement_solves_the_equation_of_motion():
    """y'' + 2 gamma y' + omega^2 y = 0 with y(0) = A and y'(0) = 0."""
    simulator = DampedOscillator()
    theta = simulator.parameters.sample(20, seed=1).double()
    t = torch.linspace(0, 10, 101, dtype=torch.float64).expand(20, -1).clone().requires_grad_()
    y = simulator.displacement(theta, t)
    (speed,) = torch.autograd.grad(y.sum(), t, create_graph=True)
    (acceleration,) = torch.autograd.grad(speed.sum(), t)
    omega, gamma, amplitude = theta.unsqueeze(-1).unbind(1)
    residual = acceleration + 2 * gamma * speed + omega**2 * y
    assert float(residual.detach().abs().max()) < 1e-10 * 25 * 5
    torch.testing.assert_close(y[:, :1], amplitude)
    torch.testing.assert_close(speed[:, 0], torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-12)


def test_times_are_irregular_and_in_order():
    simulator = DampedOscillator(duration=7.0, missing_fraction=0.0)
    times = simulator(simulator.parameters.sample(2000, seed=1), seed=2)[..., 0]
    gaps = times.diff(dim=1)
    assert bool((gaps >= 0).all())
    assert bool((times >= 0).all() & (times <= 7).all())
    assert float(times.mean()) == pytest.approx(3.5, abs=5 * 7 / math.sqrt(12 * times.numel()))
    # Between uniform times the gaps are about exponential: their spread is their mean.
    assert float(gaps.std() / gaps.mean()) == pytest.approx(1.0, abs=0.05)


def test_samples_are_missing_at_random_and_whole():
    simulator = DampedOscillator(missing_fraction=0.3)
    missing = simulator(simulator.parameters.sample(2000, seed=1), seed=2).isnan()
    assert simulator.missing
    assert torch.equal(missing[..., 0], missing[..., 1])
    share = missing[..., 0].double()
    sigma = math.sqrt(0.3 * 0.7)
    assert float(share.mean()) == pytest.approx(0.3, abs=5 * sigma / math.sqrt(share.numel()))
    assert float((share.mean(0) - 0.3).abs().max()) < 5 * sigma / math.sqrt(2000)
    assert float(share.sum(1).var()) == pytest.approx(40 * sigma**2, rel=5 * math.sqrt(2 / 2000))
    complete = DampedOscillator(missing_fraction=0.0)
    assert not bool(complete(complete.parameters.sample(100, seed=1), seed=2).isnan().any())


def test_the_likelihood_is_that_of_the_samples_that_are_there():
    simulator = DampedOscillator(epochs=12)
    theta = simulator.parameters.sample(8, seed=1)
    x = simulator(theta, seed=2)
    x[0] = torch.nan
    for row, data, value in zip(theta, x, simulator.log_likelihood(theta, x), strict=True):
        times, observed = data[~data.isnan().any(-1)].double().unbind(-1)
        expected = td.Normal(simulator.displacement(row, times), simulator.noise).log_prob(observed).sum()
        torch.testing.assert_close(value, expected)
    assert float(simulator.log_likelihood(theta, x)[0]) == 0.0


def test_gradients_are_finite_where_samples_are_missing():
    simulator = DampedOscillator()
    theta = simulator.parameters.sample(50, seed=1).double().requires_grad_()
    x = simulator(theta.detach(), seed=2)
    assert bool(x.isnan().any())
    (gradient,) = torch.autograd.grad(simulator.log_likelihood(theta, x).sum(), theta)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"duration": 0.0}, {"noise": math.nan}, {"missing_fraction": 1.0}], ids=str
)
def test_wrong_arguments_are_named(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        DampedOscillator(**options)
