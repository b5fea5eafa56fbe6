"""Kepler's equation against bisection, and the conversions between times of transit and periastron."""

import math

import pytest
import torch

from simulators.kepler import (
    eccentric_anomaly,
    mean_anomaly_at_conjunction,
    periastron_time,
    transit_time,
    unit_velocity,
)


def bisect(mean, ecc):
    """E between M - 1 and M + 1 by 60 halvings: as exact as a double can be."""
    low, high = mean - 1.0, mean + 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        above = middle - ecc * torch.sin(middle) > mean
        high, low = torch.where(above, middle, high), torch.where(above, low, middle)
    return 0.5 * (low + high)


@pytest.fixture(scope="module")
def grid():
    near_zero = torch.logspace(-12, 0, 200, dtype=torch.float64)
    mean = torch.cat([torch.linspace(-math.pi, math.pi, 801, dtype=torch.float64), near_zero, -near_zero])
    ecc = torch.cat([torch.linspace(0, 0.99, 100, dtype=torch.float64), torch.tensor([1e-12, 1e-5, 0.985])])
    return torch.cartesian_prod(mean, ecc).unbind(-1)


def test_solves_to_one_part_in_1e10_everywhere(grid):
    mean, ecc = grid
    solution = eccentric_anomaly(mean, ecc)
    assert float((solution - bisect(mean, ecc)).abs().max()) < 1e-10


@pytest.mark.parametrize("turns", [-1000, -3, 1, 2, 1000])
def test_any_turn_of_the_orbit(grid, turns):
    mean, ecc = grid
    shifted = mean + turns * 2 * math.pi
    solution = eccentric_anomaly(shifted, ecc)
    assert float((solution - ecc * torch.sin(solution) - shifted).abs().max()) < 1e-10


def test_gradients_to_second_order():
    generator = torch.Generator().manual_seed(1)
    mean = (20 * torch.rand(30, dtype=torch.float64, generator=generator) - 10).requires_grad_()
    ecc = (0.9 * torch.rand(30, dtype=torch.float64, generator=generator) + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(eccentric_anomaly, (mean, ecc))
    assert torch.autograd.gradgradcheck(eccentric_anomaly, (mean, ecc), atol=1e-4)


def test_eccentricity_outside_its_range_is_nan():
    solution = eccentric_anomaly(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([-0.1, 1.0, 0.5]))
    assert torch.isnan(solution).tolist() == [True, True, False]


def test_single_precision_input_is_solved_in_double():
    assert eccentric_anomaly(torch.tensor([1.0]), 0.3).dtype == torch.float64


def test_circular_shortcut_equals_the_solver():
    mean = torch.linspace(-7, 7, 50, dtype=torch.float64)
    torch.testing.assert_close(unit_velocity(mean, 0.0, 0.4), unit_velocity(mean, torch.tensor(0.0), 0.4))


@pytest.mark.parametrize("ecc", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("omega", [-2.0, 0.0, 1.5, 3.0])
def test_conjunction_is_where_the_true_anomaly_is_right(ecc, omega):
    """The true anomaly at conjunction is pi/2 - omega: there cos(nu + omega) is zero, so v = e cos(omega)."""
    mean = mean_anomaly_at_conjunction(ecc, omega)
    velocity = float(unit_velocity(mean, torch.tensor(ecc, dtype=torch.float64), omega))
    assert velocity == pytest.approx(ecc * math.cos(omega), abs=1e-9)
    later = float(unit_velocity(mean + 1e-5, torch.tensor(ecc, dtype=torch.float64), omega))
    assert later < velocity


def test_transit_and_periastron_times_are_inverse():
    periastron = periastron_time(100.0, 7.0, 0.4, 0.9)
    assert float(transit_time(periastron, 7.0, 0.4, 0.9)) == pytest.approx(100.0, abs=1e-12)
    assert abs(float(periastron) - 100.0) < 3.5


def test_transit_time_by_the_half_angle_formula():
    """tan(E/2) = sqrt((1-e)/(1+e)) tan(nu/2) with nu = pi/2 - omega, for the eccentric orbit of HD 80606 b."""
    period, ecc, omega = 111.43637, 0.93366, math.radians(300.651)
    eccentric = 2 * math.atan(math.sqrt((1 - ecc) / (1 + ecc)) * math.tan((math.pi / 2 - omega) / 2))
    expected = period / (2 * math.pi) * (eccentric - ecc * math.sin(eccentric))
    assert float(transit_time(0.0, period, ecc, omega)) == pytest.approx(expected, abs=1e-9)
