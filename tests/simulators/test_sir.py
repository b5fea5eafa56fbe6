"""The counts of the epidemic against the binomial distribution and against what must happen in the extreme."""

import math

import pytest
import torch
import torch.distributions as td
from scipy.integrate import solve_ivp

from simulators.sir import SIR

THETA = torch.tensor([0.5, 0.12]).double()


def infected_share(beta, gamma):
    """The textbook equations in people, by scipy."""

    def slope(_, people):
        infections = beta * people[0] * people[1] / 1e6
        return [-infections, infections - gamma * people[1]]

    days = range(0, 160, 17)
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12}
    people = solve_ivp(slope, (0, 160), [1e6 - 1, 1.0], t_eval=days, **options).y
    return torch.as_tensor(people[1] / 1e6)


def test_likelihood_is_a_product_of_binomials():
    counts = torch.arange(1001.0).unsqueeze(-1).expand(-1, 10)
    expected = td.Binomial(1000, infected_share(*THETA.tolist())).log_prob(counts.double()).sum(-1)
    torch.testing.assert_close(SIR().log_likelihood(THETA, counts), expected, rtol=1e-8, atol=1e-6)


def test_counts_follow_the_likelihood():
    """Chi-square of the counts on the day of the peak, with a twin of another beta that must fail."""
    simulator, n = SIR(), 20_000
    x = simulator(THETA.expand(n, 2), seed=1)
    day = int(infected_share(*THETA.tolist()).argmax())
    counts = torch.bincount(x[:, day].long(), minlength=1001).double()

    def chi2_and_cells(theta):
        share = infected_share(*theta.tolist())[day]
        expected = n * td.Binomial(1000, share).log_prob(torch.arange(1001.0).double()).exp()
        seen = expected > 10
        return float(((counts - expected)[seen] ** 2 / expected[seen]).sum()), int(seen.sum())

    chi2, cells = chi2_and_cells(THETA)
    assert abs(chi2 - cells) < 5 * math.sqrt(2 * cells)
    chi2, cells = chi2_and_cells(THETA * torch.tensor([1.02, 1.0]))
    assert chi2 > 5 * cells


def test_nothing_but_whole_numbers_up_to_the_tests_is_possible():
    simulator = SIR()
    x = torch.zeros(10)
    assert math.isfinite(simulator.log_likelihood(THETA, x))
    for bad in (-1.0, 1001.0, 0.5, math.nan, math.inf):
        wrong = x.clone()
        wrong[3] = bad
        assert float(simulator.log_likelihood(THETA, wrong)) == -math.inf


@pytest.mark.parametrize("theta", [[30.0, 0.01], [1e-6, 5.0], [0.4, 1e-9], [200.0, 100.0]])
def test_extreme_epidemics_stay_finite(theta):
    simulator = SIR()
    x = simulator(torch.tensor([theta]), seed=1)
    assert bool(((x >= 0) & (x <= 1000)).all())
    value = torch.tensor(theta).double().requires_grad_()
    log_likelihood = simulator.log_likelihood(value, torch.stack([torch.zeros(10), torch.full((10,), 1000.0)]))
    assert bool(torch.isfinite(log_likelihood).all())
    assert bool(torch.isfinite(torch.autograd.grad(log_likelihood.sum(), value)[0]).all())


def test_everybody_infected_for_ever():
    """Without recovery all are infected in the end, and all tests are positive."""
    assert torch.equal(SIR()(torch.tensor([[5.0, 1e-12]]), seed=1)[0, 2:], torch.full((8,), 1000.0))


def test_rates_beyond_all_numbers_are_not_a_number():
    simulator = SIR()
    theta = torch.tensor([[1e30, 1e29], [0.4, 0.1]])
    x = simulator(theta, seed=1)
    assert bool(torch.isnan(x[0]).any())
    assert bool(torch.isfinite(x[1]).all())
    assert simulator.log_likelihood(theta, x[1]).isneginf().tolist() == [True, False]


def test_units_are_per_day():
    assert SIR().parameters.units == ("1 / d", "1 / d")
