"""The spectra of the dijet mass: normalised, and their inverses are inverses."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest

from simulators.dijet_spectrum import FallingSpectrum, Peak

FALLING = FallingSpectrum(2.5, 5.0, 13.0, (5.0, 3.6, 0.1))
PEAK = Peak(2.5, 5.0, 0.12)


def density(spectrum, mass):
    return math.exp(float(spectrum.log_prob(torch.tensor(mass, dtype=torch.float64))))


@pytest.mark.parametrize("exponents", [(5.0, 3.6, 0.1), (0.0, 0.0, 0.0), (2.0, -1.0, 0.0)])
def test_density_of_the_background_integrates_to_one(exponents):
    spectrum = FallingSpectrum(2.5, 5.0, 13.0, exponents)
    total, _ = quad(lambda mass: density(spectrum, mass), 2.5, 5.0)
    assert abs(total - 1) < 1e-6


@pytest.mark.parametrize("exponents", [(5.0, 3.6, 0.1), (0.0, 0.0, 0.0)])
def test_distribution_function_is_the_integral_and_has_its_inverse(exponents):
    spectrum = FallingSpectrum(2.5, 5.0, 13.0, exponents)
    below, _ = quad(lambda mass: density(spectrum, mass), 2.5, 3.3)
    assert abs(float(spectrum.cdf(torch.tensor(3.3, dtype=torch.float64))) - below) < 1e-6
    uniform = torch.linspace(0, 1, 1_001, dtype=torch.float64)
    torch.testing.assert_close(spectrum.cdf(spectrum.inverse_cdf(uniform)), uniform, rtol=0, atol=1e-12)
    torch.testing.assert_close(spectrum.inverse_cdf(uniform[[0, -1]]), torch.tensor([2.5, 5.0]).double())


def test_background_follows_the_dijet_function():
    masses = torch.tensor([3.0, 4.0], dtype=torch.float64)
    x = masses / 13
    expected = 5 * torch.log(1 - x) - (3.6 + 0.1 * torch.log(x)) * torch.log(x)
    torch.testing.assert_close(FALLING.log_prob(masses).diff(), expected.diff(), rtol=1e-12, atol=0)


def test_no_density_outside_the_range():
    outside = torch.tensor([2.49, 5.01], dtype=torch.float64)
    for log_prob in (FALLING.log_prob(outside), PEAK.log_prob(outside, 3.5)):
        assert bool(torch.isneginf(log_prob).all())


@pytest.mark.parametrize("centre", [3.5, 2.55, 4.9])
def test_peak_integrates_to_one_and_draws_follow_it(centre):
    grid = torch.linspace(2.5, 5.0, 20_001, dtype=torch.float64)
    assert abs(float(torch.trapezoid(torch.exp(PEAK.log_prob(grid, centre)), grid)) - 1) < 1e-6
    uniform = torch.rand(5_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    masses = PEAK.inverse_cdf(uniform, centre)
    shares = [PEAK.share(2.5, float(mass), centre) for mass in masses]
    assert kstest(shares, "uniform").pvalue > 1e-3
    torch.testing.assert_close(torch.tensor(shares, dtype=torch.float64), uniform, rtol=0, atol=1e-9)


def test_a_window_of_the_peak_holds_its_share():
    uniform = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inside = PEAK.inverse_cdf(uniform, 3.5, (3.4, 3.7))
    assert float(inside.min()) >= 3.4
    assert float(inside.max()) <= 3.7
    whole = PEAK.inverse_cdf(uniform, 3.5)
    share = PEAK.share(3.4, 3.7, 3.5)
    counted = float(((whole > 3.4) & (whole < 3.7)).double().mean())
    assert abs(counted - share) < 5 * math.sqrt(share * (1 - share) / len(whole))
