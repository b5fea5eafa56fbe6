"""One law for every component: the share of its draws in a box of phase space is the integral of its density there."""

import dataclasses
import math

import pytest
import torch

from simulators.galaxy_components import gauss_legendre, log_normal
from simulators.galaxy_disc import Disc
from simulators.galaxy_halo import StellarHalo
from simulators.galaxy_population import Population
from simulators.galaxy_potential import NFW, MiyamotoNagai, TotalPotential
from simulators.galaxy_structures import Satellite, Stream

OLD = Population(8.0, 13.0, -0.4)
POTENTIAL = TotalPotential((NFW(8.54e6, 19.6), MiyamotoNagai(7e10, 3.0, 0.36)))
START = {"position": (12.0, 6.0, 9.0), "velocity": (-95.0, 130.0, 110.0), "population": OLD}
COMPONENTS = {
    "disc": Disc("disc", 1.5e10, 2.2, 0.9, 1.3, OLD, max_radius=20.0, max_height=5.0),
    "halo": StellarHalo("halo", 1e9, 20.0, OLD),
    "stream": Stream("stream", 1e9, leading=0.004, trailing=0.004, position_width=0.3, velocity_width=4.0, **START),
    "satellite": Satellite("satellite", 1e9, radius=0.8, dispersion=10.0, elapsed=0.2, **START),
}
TWINS = {
    "disc": {"vertical_scale": 1.0},
    "halo": {"scale_radius": 32.0},
    "stream": {"position_width": 0.34},
    "satellite": {"radius": 0.9},
}
N = 200_000


def cylindrical(w):
    x, y, z, vx, vy, vz = w.unbind(-1)
    r = torch.hypot(x, y)
    return torch.stack([r, torch.atan2(y, x), z, (x * vx + y * vy) / r, (x * vy - y * vx) / r, vz], -1)


def cartesian(c):
    r, phi, z, vr, vt, vz = c.unbind(-1)
    cos, sin = torch.cos(phi), torch.sin(phi)
    return torch.stack([r * cos, r * sin, z, vr * cos - vt * sin, vr * sin + vt * cos, vz], -1)


def draws_in_box(name, w):
    """Coordinates in which the component is simple, and a box about the middle of them or, in the halo, off centre."""
    if name == "disc":
        c = cylindrical(w)
        levels = [[0.25, 0.7]] * 6
    else:
        c = w
        levels = [[0.55, 0.95]] * 3 + [[0.15, 0.85]] * 3 if name == "halo" else [[0.15, 0.85]] * 6
    edges = torch.stack(
        [torch.quantile(c[:, i], torch.tensor(level, dtype=torch.float64)) for i, level in enumerate(levels)], 1
    )
    return c, edges


def box_pull(name, truth, model):
    """Share of the draws of `truth` in a box less the integral of the density of `model`, in standard errors."""
    draws = truth.sample(N, seed=21)
    c, (low, high) = draws_in_box(name, draws)
    share = ((c > low) & (c < high)).all(-1).double()
    uniform = torch.rand(N, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(22))
    at = low + (high - low) * uniform
    density = torch.exp(model.log_density(cartesian(at) if name == "disc" else at)) * (high - low).prod()
    if name == "disc":
        density = density * at[:, 0]
    assert float(share.sum()) > 400
    error = math.sqrt(float(share.var() + density.var()) / N)
    return float(share.mean() - density.mean()) / error


@pytest.mark.parametrize("name", COMPONENTS)
def test_share_of_the_draws_in_a_box_is_the_integral_of_the_density(name):
    truth = COMPONENTS[name].phase_space(POTENTIAL)
    twin = dataclasses.replace(COMPONENTS[name], **TWINS[name]).phase_space(POTENTIAL)
    assert abs(box_pull(name, truth, truth)) < 4
    assert abs(box_pull(name, truth, twin)) > 6


@pytest.mark.parametrize("name", COMPONENTS)
def test_same_seed_same_bytes_and_another_seed_differs(name):
    density = COMPONENTS[name].phase_space(POTENTIAL)
    state = torch.random.get_rng_state()
    first, second, other = density.sample(50, seed=3), density.sample(50, seed=3), density.sample(50, seed=4)
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", COMPONENTS)
def test_density_of_a_batch_is_that_of_its_rows(name):
    density = COMPONENTS[name].phase_space(POTENTIAL)
    w = density.sample(5, seed=3)
    rows = torch.cat([density.log_density(row.unsqueeze(0)) for row in w])
    torch.testing.assert_close(density.log_density(w), rows, rtol=1e-9, atol=1e-9)
    assert density.sample(0, seed=3).shape == (0, 6)


def test_log_normal_and_quadrature():
    offsets = torch.linspace(-2, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(
        log_normal(offsets, 0.7), torch.distributions.Normal(0.0, 0.7).log_prob(offsets), rtol=1e-6, atol=0
    )
    nodes, weights = gauss_legendre(5)
    assert float((nodes**9 * weights).sum()) == pytest.approx(0.1, rel=1e-12)
