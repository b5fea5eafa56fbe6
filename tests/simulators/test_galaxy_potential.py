"""The laws of gravity in the galaxy's potentials, and of the leapfrog in them."""

import math

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from simulators.galaxy_potential import GRAVITY, KPC_PER_GYR, NFW, MiyamotoNagai, TotalPotential, orbit

DISC = MiyamotoNagai(5.5e10, 3.0, 0.28)
HALO = NFW(8.54e6, 19.6)
POTENTIALS = {"disc": DISC, "halo": HALO, "total": TotalPotential((DISC, HALO))}


@pytest.fixture(params=POTENTIALS)
def potential(request):
    return POTENTIALS[request.param]


@pytest.fixture
def positions():
    generator = torch.Generator().manual_seed(1)
    return 6 * torch.randn(200, 3, dtype=torch.float64, generator=generator)


def radii(*values):
    return torch.tensor(values, dtype=torch.float64)


def energy(potential, path):
    return potential.value(path[..., :3]) + 0.5 * (path[..., 3:] ** 2).sum(-1)


def test_acceleration_is_minus_the_gradient(potential, positions):
    x = positions.requires_grad_()
    (gradient,) = torch.autograd.grad(potential.value(x).sum(), x)
    torch.testing.assert_close(potential.acceleration(x), -gradient, rtol=1e-10, atol=1e-8)


def divergence(potential, positions):
    x = positions.detach().requires_grad_()
    acceleration = potential.acceleration(x)
    return sum(torch.autograd.grad(acceleration[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(3))


def test_poisson_equation_of_the_disc(positions):
    torch.testing.assert_close(
        -divergence(DISC, positions), 4 * math.pi * GRAVITY * DISC.density(positions), rtol=1e-7, atol=1e-4
    )
    thicker = MiyamotoNagai(5.5e10, 3.0, 0.30)
    assert not torch.allclose(
        -divergence(DISC, positions), 4 * math.pi * GRAVITY * thicker.density(positions), rtol=1e-2
    )


def test_poisson_equation_of_the_halo(positions):
    x = positions.norm(dim=-1) / HALO.scale_radius
    density = HALO.scale_density / (x * (1 + x) ** 2)
    torch.testing.assert_close(-divergence(HALO, positions), 4 * math.pi * GRAVITY * density, rtol=1e-8, atol=1e-6)


def test_circular_velocity_against_the_numerical_derivative(potential):
    r, step = radii(0.1, 1.0, 8.122, 30.0), 1e-4
    at = [torch.stack([r + sign * step, 0 * r, 0 * r], -1) for sign in (1, -1)]
    slope = (potential.value(at[0]) - potential.value(at[1])) / (2 * step)
    torch.testing.assert_close(potential.circular_velocity(r), torch.sqrt(r * slope), rtol=1e-5, atol=0)


def test_the_default_masses_turn_at_the_speed_of_the_milky_way():
    total = TotalPotential((DISC, MiyamotoNagai(1.5e10, 2.2, 0.9), HALO))
    assert float(total.circular_velocity(radii(8.122))) == pytest.approx(229.0, abs=5.0)


def test_epicyclic_frequencies_where_they_are_known():
    """Twice the circular one where density is constant, equal to it about a point mass, sqrt(3) in a 1/r cusp."""
    assert float(DISC.frequency_ratio(radii(1e-3))) == pytest.approx(1.0, abs=1e-5)
    assert float(DISC.frequency_ratio(radii(1e5))) == pytest.approx(0.25, abs=1e-6)
    assert float(HALO.frequency_ratio(radii(1e-4))) == pytest.approx(0.75, abs=1e-4)


def test_mass_of_the_halo():
    assert float(HALO.enclosed_mass(radii(19.6))) == pytest.approx(HALO.scale_mass * (math.log(2) - 0.5), rel=1e-12)
    below, above = HALO.enclosed_mass(19.6e-3 * radii(1 - 1e-9, 1 + 1e-9))
    assert float(below) == pytest.approx(float(above), rel=1e-8)


def test_a_circular_orbit_stays_one_and_closes():
    potential = POTENTIALS["total"]
    speed = float(potential.circular_velocity(radii(8.0)))
    period = 2 * math.pi * 8.0 / (speed * KPC_PER_GYR)
    path = orbit(potential, radii(8.0, 0, 0, 0, speed, 0), duration=period, steps=2000)
    assert path.shape == (2001, 6)
    assert float((path[:, :3].norm(dim=-1) - 8.0).abs().max()) < 1e-4
    torch.testing.assert_close(path[-1], path[0], rtol=0, atol=0.02)


def test_energy_error_is_bounded_and_of_second_order():
    potential, start = POTENTIALS["total"], radii(12.0, 6.0, 9.0, -95.0, 130.0, 110.0)
    errors = []
    for steps in (2000, 4000):
        levels = energy(potential, orbit(potential, start, duration=2.0, steps=steps))
        errors.append(float((levels / levels[0] - 1).abs().max()))
    assert errors[0] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)


def test_angular_momentum_is_kept_and_time_runs_back():
    potential, start = POTENTIALS["total"], radii(12.0, 6.0, 9.0, -95.0, 130.0, 110.0)
    path = orbit(potential, start, duration=1.0, steps=500)
    x, y, _, vx, vy, _ = path.unbind(-1)
    torch.testing.assert_close(x * vy - y * vx, (x * vy - y * vx)[:1].expand(501), rtol=1e-11, atol=0)
    torch.testing.assert_close(orbit(potential, path[-1], duration=-1.0, steps=500)[-1], start, rtol=1e-9, atol=1e-9)


def test_many_orbits_are_those_of_each(positions):
    start = torch.cat([positions, 20 * positions.flip(0)], -1)[:6]
    together = orbit(HALO, start.reshape(2, 3, 6), duration=0.1, steps=20)
    assert together.shape == (21, 2, 3, 6)
    torch.testing.assert_close(together[:, 1, 2], orbit(HALO, start[5], duration=0.1, steps=20))


def test_bad_input_is_named():
    start = radii(8.0, 0, 0, 0, 200, 0)
    with pytest.raises(ShapeError, match=r"start: expected shape \(\*, 6\), got \(5,\)"):
        orbit(HALO, start[:5], duration=1.0, steps=10)
    with pytest.raises(NonFiniteError, match="start"):
        orbit(HALO, start / 0, duration=1.0, steps=10)
    with pytest.raises(UsageError, match="steps: expected at most"):
        orbit(HALO, start, duration=1.0, steps=10**7)
    with pytest.raises(UsageError, match="duration: expected a finite number"):
        orbit(HALO, start, duration=math.inf, steps=10)
    with pytest.raises(UsageError, match="one potential or more"):
        TotalPotential(())
    with pytest.raises(UsageError, match="MiyamotoNagai: mass: expected above 0 in M_sun"):
        MiyamotoNagai(-1.0, 3.0, 0.3)
