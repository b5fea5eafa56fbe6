"""The stellar halo: its mass within each radius, its shape, and the Jeans equation of its velocities."""

import dataclasses
import math

import pytest
import torch
from scipy import integrate, stats

from sbi_physics.core.errors import UsageError
from simulators.galaxy_halo import StellarHalo
from simulators.galaxy_population import Population
from simulators.galaxy_potential import GRAVITY, NFW, MiyamotoNagai, TotalPotential

DARK = NFW(8.54e6, 19.6)
HALO = StellarHalo("halo", 1e9, 20.0, Population(10.0, 13.0, -1.3))
N = 50_000


def flattened_radius(w):
    return torch.sqrt((w[:, :2] ** 2).sum(-1) + (w[:, 2] / 0.8) ** 2).numpy()


def test_mass_within_each_radius():
    m = flattened_radius(HALO.phase_space(DARK).sample(N, seed=1))

    def cdf(slope):
        return lambda m: (m / (m + 20) / (100 / 120)) ** (3 - slope)

    assert stats.kstest(m, cdf(1.5)).pvalue > 1e-3
    assert stats.kstest(m, cdf(1.45)).pvalue < 1e-6


def test_flattening():
    """In units of the axes, all directions are alike: <z^2> = q^2 <x^2>, counting each star by its direction alone."""
    w = HALO.phase_space(DARK).sample(N, seed=2)
    share = (w[:, 2].numpy() / 0.8 / flattened_radius(w)) ** 2
    assert abs(share.mean() - 1 / 3) < 5 * share.std() / math.sqrt(N)
    rounder = (w[:, 2].numpy() / 0.85 / flattened_radius(w)) ** 2
    assert abs(rounder.mean() - 1 / 3) > 5 * share.std() / math.sqrt(N)


@pytest.mark.parametrize("beta", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("radius", [0.5, 8.0, 60.0])
def test_dispersion_solves_the_jeans_equation(beta, radius):
    halo = dataclasses.replace(HALO, anisotropy=beta, flattening=1.0)

    def pressure(r):
        force = GRAVITY * float(DARK.enclosed_mass(torch.tensor(r, dtype=torch.float64))) / r**2
        return r ** (2 * beta - 1.5) * (r + 20) ** -2.5 * force

    expected = integrate.quad(pressure, radius, math.inf, epsrel=1e-9)[0] / (
        radius ** (2 * beta - 1.5) * (radius + 20) ** -2.5
    )
    at = radius * torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    radial, tangential = halo.phase_space(DARK).dispersions(at)
    assert float(radial) ** 2 == pytest.approx(expected, rel=1e-3)
    assert float(tangential / radial) ** 2 == pytest.approx(1 - beta, rel=1e-9)


def test_velocities_are_radially_anisotropic():
    density = HALO.phase_space(DARK)
    w = density.sample(N, seed=3)
    positions, velocities = w.split(3, -1)
    outward = positions / positions.norm(dim=-1, keepdim=True)
    radial, tangential = density.dispersions(positions)
    v_radial = (velocities * outward).sum(-1)
    v_across = (velocities - v_radial.unsqueeze(-1) * outward).norm(dim=-1)
    assert stats.kstest((v_radial / radial).numpy(), "norm").pvalue > 1e-3
    assert stats.kstest((v_across / tangential).numpy(), "rayleigh").pvalue > 1e-3
    assert stats.kstest((v_across / radial).numpy(), "rayleigh").pvalue < 1e-6


def test_virial_theorem_in_a_spherical_potential_and_nearly_in_the_galaxy():
    """<v^2> = <x . grad Phi>, once the halo reaches so far that its cut does not count."""
    far = dataclasses.replace(HALO, flattening=1.0, max_radius=1e5)
    for potential, tolerance in ((DARK, 0.0), (TotalPotential((DARK, MiyamotoNagai(7e10, 3.0, 0.36))), 0.03)):
        w = far.phase_space(potential).sample(N, seed=4)
        square = (w[:, 3:] ** 2).sum(-1)
        balance = square + (w[:, :3] * potential.acceleration(w[:, :3])).sum(-1)
        assert abs(float(balance.mean())) < tolerance * float(square.mean()) + 5 * float(balance.std()) / math.sqrt(N)


def test_nothing_beyond_the_cut_and_bad_values_are_refused():
    w = torch.zeros(2, 6, dtype=torch.float64)
    w[0, 2], w[1, 2] = 79.0, 81.0
    assert torch.isinf(HALO.phase_space(DARK).log_density(w)).tolist() == [False, True]
    with pytest.raises(UsageError, match="StellarHalo: inner_slope: expected at least 0 and below 3, got 3"):
        dataclasses.replace(HALO, inner_slope=3)
