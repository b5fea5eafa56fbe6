"""Ages and metallicities against their closed forms."""

import math

import pytest
import torch
from scipy import stats

from sbi_physics.core.errors import UsageError
from simulators.galaxy_population import SOLAR_RADIUS, Population

POPULATION = Population(1.0, 10.0, 0.2, formation_timescale=4.0, enrichment=0.05, gradient=-0.06, scatter=0.12)


def at_radius(radius, n):
    w = torch.zeros(n, 6, dtype=torch.float64)
    w[:, 1] = radius
    return w


def age_distribution(rate):
    def cdf(ages):
        if rate == 0:
            return (ages - 1) / 9
        return (torch.expm1(rate * (torch.as_tensor(ages) - 1)) / math.expm1(rate * 9)).numpy()

    return cdf


@pytest.mark.parametrize("timescale", [4.0, math.inf])
def test_ages_follow_the_star_formation(timescale):
    population = Population(1.0, 10.0, 0.2, formation_timescale=timescale)
    ages, _ = population.sample(at_radius(5.0, 20_000), seed=3)
    assert stats.kstest(ages.numpy(), age_distribution(1 / timescale)).pvalue > 1e-3
    assert stats.kstest(ages.numpy(), age_distribution(1 / timescale + 0.05)).pvalue < 1e-6


def test_metallicity_falls_with_age_and_radius():
    n = 20_000
    ages, inner = POPULATION.sample(at_radius(SOLAR_RADIUS - 4, n), seed=3)
    same, outer = POPULATION.sample(at_radius(SOLAR_RADIUS + 4, n), seed=3)
    torch.testing.assert_close(ages, same)
    torch.testing.assert_close(outer - inner, torch.full((n,), -0.06 * 8, dtype=torch.float64))
    fit = stats.linregress(ages.numpy(), inner.numpy())
    assert abs(fit.slope + 0.05) < 5 * fit.stderr
    assert abs(fit.intercept - (0.2 + 0.05 + 0.24)) < 5 * fit.intercept_stderr


def test_density_integrates_to_one_within_the_ages():
    ages = torch.linspace(1.0, 10.0, 601, dtype=torch.float64)
    metallicities = torch.linspace(-2.0, 2.0, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(ages, metallicities)
    density = torch.exp(POPULATION.log_density(at_radius(6.0, len(grid)), grid[:, 0], grid[:, 1])).reshape(601, 401)
    integral = torch.trapezoid(torch.trapezoid(density, metallicities), ages)
    assert float(integral) == pytest.approx(1.0, abs=1e-4)
    outside = POPULATION.log_density(at_radius(6.0, 2), torch.tensor([0.9, 10.1]), torch.zeros(2))
    assert outside.tolist() == [-math.inf, -math.inf]


def test_ages_in_the_wrong_order_are_refused():
    with pytest.raises(UsageError, match="expected oldest above youngest, got 2 and 3 Gyr"):
        Population(3.0, 2.0, 0.0)
