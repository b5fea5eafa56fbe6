"""Discs: positions against the analytic density, velocities against the Jeans equations and the virial theorem."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from sbi_physics.core.errors import UsageError
from simulators.galaxy_disc import Disc
from simulators.galaxy_population import Population
from simulators.galaxy_potential import NFW, TotalPotential, in_plane

THICK = Disc("thick", 1.5e10, 2.2, 0.9, 1.3, Population(8.0, 13.0, -0.4))
THIN = Disc("thin", 5.5e10, 3.0, 0.36, 1.6, Population(0.0, 10.0, 0.0), max_height=3.0)
POTENTIAL = TotalPotential((NFW(8.54e6, 19.6), THIN.matter, THICK.matter))
DISCS = {"thin": THIN, "thick": THICK}
N = 100_000


@pytest.fixture(params=DISCS)
def disc(request):
    return DISCS[request.param]


@functools.cache
def phase_space(disc):
    return disc.phase_space(POTENTIAL)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def cylindrical(w):
    """R, and the velocities outward, clockwise and up."""
    x, y, _, vx, vy, vz = w.unbind(-1)
    r = torch.hypot(x, y)
    return r, torch.stack([(x * vx + y * vy) / r, (y * vx - x * vy) / r, vz], -1)


def mass_grid(disc):
    """Mass between nodes in R and in z, by integrating the density on a fine grid; and the nodes."""
    r = disc.radial_scale * np.sinh(np.linspace(0, np.arcsinh(disc.max_radius / disc.radial_scale), 1201))
    z = disc.vertical_scale * np.sinh(np.linspace(0, np.arcsinh(disc.max_height / disc.vertical_scale), 401))
    rr, zz = torch.meshgrid(torch.from_numpy(r), torch.from_numpy(z), indexing="ij")
    density = (disc.matter.density(in_plane(rr, zz)) * 4 * math.pi * rr).numpy()
    over_z, over_r = integrate.simpson(density, x=z, axis=1), integrate.simpson(density, x=r, axis=0)
    return (r, integrate.cumulative_simpson(over_z, x=r, initial=0)), (
        z,
        integrate.cumulative_simpson(over_r, x=z, initial=0),
    )


def distance_pvalues(disc, truth):
    """P-values of the radii and heights drawn from `disc` under the analytic density of `truth`."""
    radii, heights = disc.sample_plane(N, seed=5)
    return [
        stats.kstest(drawn.abs().numpy(), lambda x, nodes=nodes, mass=mass: np.interp(x, nodes, mass / mass[-1])).pvalue
        for drawn, (nodes, mass) in zip((radii, heights), mass_grid(truth), strict=True)
    ]


def test_positions_follow_the_analytic_density(disc):
    assert min(distance_pvalues(disc, disc)) > 1e-3


def test_positions_do_not_follow_the_density_of_another_scale(disc):
    longer = dataclasses.replace(disc, radial_scale=1.05 * disc.radial_scale)
    thicker = dataclasses.replace(disc, vertical_scale=1.05 * disc.vertical_scale)
    assert distance_pvalues(disc, longer)[0] < 1e-6
    assert distance_pvalues(disc, thicker)[1] < 1e-6


def test_mass_within_the_cuts_is_the_integral_of_the_density(disc):
    (_, within_r), (_, within_z) = mass_grid(disc)
    assert disc.stellar_mass == pytest.approx(within_r[-1], rel=1e-6)
    assert disc.stellar_mass == pytest.approx(within_z[-1], rel=1e-6)
    assert 0 < disc.fraction_inside < 1


def test_half_of_the_mass_is_below_the_height_that_the_formula_gives():
    """Without cuts half lies below |z| = b / sqrt(3)."""
    whole = dataclasses.replace(THIN, max_radius=1e7, max_height=1e7)
    _, heights = whole.sample_plane(N, seed=6)
    below = int((heights.abs() < 0.36 / math.sqrt(3)).sum())
    assert abs(below - N / 2) < 5 * math.sqrt(N) / 2
    assert whole.fraction_inside == pytest.approx(1.0, abs=1e-6)


def test_heights_are_on_both_sides_and_azimuths_all_round():
    w = phase_space(THIN).sample(N, seed=7)
    assert float((w[:, :3] > 0).double().mean(0).sub(0.5).abs().max()) < 5 * 0.5 / math.sqrt(N)


def vertical_pressure(disc, radius, height):
    def integrand(z):
        at = in_plane(number(radius), number(z))
        return float(-disc.matter.density(at) * POTENTIAL.acceleration(at)[2])

    return integrate.quad(integrand, height, np.inf, epsrel=1e-9, limit=200)[0]


@pytest.mark.parametrize("radius", [0.5, 2.0, 8.122, 20.0])
@pytest.mark.parametrize("height", [0.0, 0.4, 2.0])
def test_moments_solve_the_jeans_equations(disc, radius, height):
    density = float(disc.matter.density(in_plane(number(radius), number(height))))
    force = -float(POTENTIAL.acceleration(in_plane(number(radius), number(height)))[0])
    step = 1e-3 * radius
    slope = (vertical_pressure(disc, radius + step, height) - vertical_pressure(disc, radius - step, height)) / (
        2 * step
    )
    square_vertical = vertical_pressure(disc, radius, height) / density
    second_moment = radius * force + disc.anisotropy**2 * (square_vertical + radius * slope / density)

    rotation, dispersions = phase_space(disc).moments(number([radius]), number([-height]))
    radial, azimuthal, vertical = dispersions[0].tolist()
    assert vertical**2 == pytest.approx(square_vertical, rel=5e-3)
    assert radial == pytest.approx(disc.anisotropy * vertical, rel=1e-12)
    assert float(rotation) ** 2 + azimuthal**2 == pytest.approx(second_moment, rel=1e-2)


def test_tensor_virial_theorem():
    """Twice the kinetic energy balances the work of gravity, in the plane and across it; without drift it does not."""
    wide = dataclasses.replace(THICK, max_radius=300.0, max_height=300.0)
    w = phase_space(wide).sample(N, seed=8)
    work = w[:, :3] * POTENTIAL.acceleration(w[:, :3])
    square = w[:, 3:] ** 2

    def pull(balance):
        return abs(float(balance.mean() / (balance.std() / math.sqrt(N))))

    assert pull(square[:, 2] + work[:, 2]) < 5
    assert pull(square[:, :2].sum(-1) + work[:, :2].sum(-1)) < 5
    radii, velocities = cylindrical(w)
    _, dispersions = phase_space(wide).moments(radii, w[:, 2])
    without_drift = velocities[:, 0] ** 2 + POTENTIAL.circular_velocity(radii) ** 2 + dispersions[:, 1] ** 2
    assert pull(without_drift + work[:, :2].sum(-1)) > 20


def test_velocities_are_normal_about_the_rotation(disc):
    density = phase_space(disc)
    w = density.sample(N, seed=9)
    radii, velocities = cylindrical(w)
    rotation, dispersions = density.moments(radii, w[:, 2])
    velocities[:, 1] -= rotation
    scores = velocities / dispersions
    for i in range(3):
        assert stats.kstest(scores[:, i].numpy(), "norm").pvalue > 1e-3
        assert stats.kstest(1.03 * scores[:, i].numpy(), "norm").pvalue < 1e-4
    correlations = torch.corrcoef(scores.T) - torch.eye(3)
    assert float(correlations.abs().max()) < 5 / math.sqrt(N)


def test_dispersions_and_drift_near_the_sun_are_those_of_the_milky_way():
    radius, plane = number([8.122]), number([0.0])
    speed = float(POTENTIAL.circular_velocity(radius))
    rotation, thin = phase_space(THIN).moments(radius, plane)
    slower, thick = phase_space(THICK).moments(radius, plane)
    assert speed > float(rotation) > float(slower) > 150
    assert 15 < float(thin[0, 2]) < 25 < float(thick[0, 2]) < 45
    ratio = float(thin[0, 1] / thin[0, 0])
    assert ratio == pytest.approx(float(POTENTIAL.frequency_ratio(radius)) ** 0.5, rel=1e-3)


def test_dispersions_fall_outward():
    radii = torch.linspace(1.0, 25.0, 50, dtype=torch.float64)
    _, dispersions = phase_space(THIN).moments(radii, torch.zeros_like(radii))
    assert bool((dispersions[1:] < dispersions[:-1]).all())


def test_density_beyond_the_cuts_is_zero_and_on_the_axis_finite():
    w = torch.zeros(4, 6, dtype=torch.float64)
    w[1, 0], w[2, 2], w[3, 2] = 31.0, -3.1, 2.9
    log_density = phase_space(THIN).log_density(w)
    assert torch.isinf(log_density).tolist() == [False, True, True, False]


def test_gradient_of_the_log_density_is_finite_at_draws():
    density = phase_space(THIN)
    w = density.sample(1000, seed=3).requires_grad_()
    (gradient,) = torch.autograd.grad(density.log_density(w).sum(), w)
    assert bool(torch.isfinite(gradient).all())


def test_cuts_that_leave_nothing_are_refused():
    with pytest.raises(UsageError, match="Disc thin: expected max_radius and max_height to keep at least 1%"):
        dataclasses.replace(THIN, max_radius=0.1)
