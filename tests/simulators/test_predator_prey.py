"""The solver against scipy's, against a law of conservation, and in the extreme."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from simulators.lotka_volterra import LotkaVolterra
from simulators.predator_prey import log_populations
from simulators.sir import SIR

WEEKS = tuple(7.0 * k for k in range(5))


def sir_rates(n, seed):
    beta, gamma = SIR().parameters.sample(n, seed=seed).double().unbind(-1)
    return torch.stack([torch.zeros_like(beta), beta, gamma, beta], -1)


def by_scipy(rates, start, times):
    alpha, beta, gamma, delta = rates.tolist()

    def slope(_, logs):
        return [alpha - beta * math.exp(logs[1]), delta * math.exp(logs[0]) - gamma]

    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12}
    return torch.as_tensor(solve_ivp(slope, (0.0, times[-1]), start.tolist(), t_eval=times, **options).y.T)


@pytest.mark.parametrize(
    ("rates", "start", "times"),
    [
        (sir_rates(30, 1), torch.tensor([1 - 1e-6, 1e-6]).double().log(), tuple(17.0 * k for k in range(10))),
        (LotkaVolterra().parameters.sample(20, seed=2), torch.tensor([30.0, 1.0]).double().log(), WEEKS),
    ],
    ids=["sir", "lotka_volterra"],
)
def test_populations_are_those_of_scipy(rates, start, times):
    found = log_populations(rates, start, times)
    expected = torch.stack([by_scipy(row, start, times) for row in rates])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_alone_each_population_grows_or_dies_exponentially():
    rates = torch.tensor([[0.3, 0.0, 0.7, 0.0]]).double()
    start = torch.tensor([1.0, 2.0]).double()
    expected = start + torch.outer(torch.tensor(WEEKS).double(), torch.tensor([0.3, -0.7]).double())
    torch.testing.assert_close(log_populations(rates, start, WEEKS)[0], expected, rtol=1e-6, atol=1e-6)


def test_the_constant_of_motion_is_constant():
    """delta X - gamma ln X + beta Y - alpha ln Y never changes; with the wrong sign of one term it does."""
    rates = LotkaVolterra().parameters.sample(500, seed=3).double()
    logs = log_populations(rates, torch.tensor([30.0, 1.0]).log(), WEEKS)
    alpha, beta, gamma, delta = rates.unsqueeze(1).unbind(-1)
    of_predators = beta * logs[..., 1].exp() - alpha * logs[..., 1]
    of_prey = delta * logs[..., 0].exp() - gamma * logs[..., 0]
    constant = of_prey + of_predators
    torch.testing.assert_close(constant, constant[:, :1].expand_as(constant), rtol=1e-7, atol=1e-7)
    wrong = of_prey - of_predators
    assert float((wrong - wrong[:, :1]).abs().median()) > 0.1


def test_a_row_does_not_depend_on_its_neighbours():
    """Also where rows are many enough to be cut into blocks."""
    rates = sir_rates(10_000, 4)
    start = torch.tensor([-1e-6, math.log(1e-6)]).double()
    together = log_populations(rates, start, (17.0, 34.0))
    assert together.shape == (10_000, 2, 2)
    for row in (0, 8_191, 8_192, 9_999):
        alone = log_populations(rates[row], start, (17.0, 34.0))
        torch.testing.assert_close(alone, together[row], rtol=1e-12, atol=1e-12)


def test_gradient_of_many_rows_is_that_of_few():
    """Many rows keep less in memory and compute each step again on the way back."""
    rates = sir_rates(1_500, 5)
    start = torch.tensor([-1e-6, math.log(1e-6)]).double()
    gradients = []
    for block in (rates, rates[:3]):
        leaf = block.clone().requires_grad_()
        gradients.append(torch.autograd.grad(log_populations(leaf, start, (17.0,)).sum(), leaf)[0][:3])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_what_is_too_fast_is_not_a_number_and_ends():
    rates = torch.tensor([[1.0, 0.1, 1.0, 0.1], [1e9, 0.1, 1e9, 0.1], [torch.nan, 0.1, 1.0, 0.1]])
    logs = log_populations(rates, torch.tensor([30.0, 1.0]).log(), (0.0, 10.0))
    assert bool(torch.isfinite(logs[0]).all())
    assert bool(torch.isnan(logs[1:, 1]).all())
