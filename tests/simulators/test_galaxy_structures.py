"""Streams are as thin as they were made and lie along an orbit; satellites are Plummer spheres in balance."""

import dataclasses
import math

import pytest
import torch
from scipy import stats

from sbi_physics.core.errors import UsageError
from simulators.galaxy_population import Population
from simulators.galaxy_potential import NFW, MiyamotoNagai, TotalPotential
from simulators.galaxy_structures import Satellite, Stream

OLD = Population(10.0, 13.0, -1.5)
POTENTIAL = TotalPotential((NFW(8.54e6, 19.6), MiyamotoNagai(7e10, 3.0, 0.36)))
NOW = {"position": (12.0, 6.0, 9.0), "velocity": (-95.0, 130.0, 110.0)}
STREAM = Stream("stream", 1e9, population=OLD, **NOW)
SATELLITE = Satellite("satellite", 1e9, population=OLD, **NOW)
N = 20_000


def widths_across(density, n):
    """Root mean square of the distances from the nearest point of the orbit, per direction across it."""
    w = density.sample(n, seed=4)
    interior = density.points[len(density.points) // 10 : -len(density.points) // 10]
    near = torch.cdist(w[:, :3], density.points[:, :3]).min(-1)
    along = (w[:, :3].unsqueeze(1) - interior[::50, :3]).norm(dim=-1).min(-1).values < 2.0
    return float((near.values[along] ** 2).mean().div(2).sqrt()), int(along.sum())


def test_stream_is_as_thin_as_given():
    """Spacing of one width leaves up to half of it along the orbit, which adds at most 1/24 to the mean square."""
    density = STREAM.phase_space(POTENTIAL)
    width, used = widths_across(density, N)
    error = 5 * 0.1 / math.sqrt(4 * used)
    assert 0.1 - error < width < 0.1 * math.sqrt(1 + 1 / 24) + error
    wide, _ = widths_across(dataclasses.replace(STREAM, position_width=0.12).phase_space(POTENTIAL), N)
    assert wide > 0.1 * math.sqrt(1 + 1 / 24) + error


def test_velocities_scatter_by_the_width_given():
    density = dataclasses.replace(STREAM, leading=1e-9, trailing=1e-9).phase_space(POTENTIAL)
    w = density.sample(N, seed=5) - density.points[0]
    assert stats.kstest((w[:, 3:] / 3.0).flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest((w[:, 3:] / 3.1).flatten().numpy(), "norm").pvalue < 1e-3
    assert stats.kstest((w[:, :3] / 0.1).flatten().numpy(), "norm").pvalue > 1e-3


def test_stream_lies_along_one_orbit_through_the_progenitor():
    points = STREAM.phase_space(POTENTIAL).points
    energy = POTENTIAL.value(points[:, :3]) + 0.5 * (points[:, 3:] ** 2).sum(-1)
    assert float((energy / energy[0] - 1).abs().max()) < 1e-4
    now = torch.tensor(NOW["position"] + NOW["velocity"], dtype=torch.float64)
    scaled = (points - now) / torch.tensor([0.1] * 3 + [3.0] * 3)
    assert float(scaled.norm(dim=-1).min()) < 1.0


def test_no_gap_along_the_orbit_is_wider_than_the_widths():
    points = STREAM.phase_space(POTENTIAL).points
    gaps = points[1:] - points[:-1]
    assert float(gaps[:, :3].norm(dim=-1).max()) < 0.1 * 1.001
    assert float(gaps[:, 3:].norm(dim=-1).max()) < 3.0 * 1.001


def test_stream_density_is_that_of_its_gaussians():
    density = STREAM.phase_space(POTENTIAL)
    w = density.sample(20, seed=6)
    scales = torch.tensor([0.1] * 3 + [3.0] * 3, dtype=torch.float64)
    kernels = torch.distributions.Normal(density.points, scales).log_prob(w.unsqueeze(1)).sum(-1)
    expected = torch.logsumexp(kernels, -1) - math.log(len(density.points))
    torch.testing.assert_close(density.log_density(w), expected, rtol=1e-9, atol=1e-7)


def test_stream_too_thin_for_its_length_is_refused():
    thin = dataclasses.replace(STREAM, position_width=1e-4)
    with pytest.raises(UsageError, match="Stream stream: expected at most 20000 widths along the orbit"):
        thin.phase_space(POTENTIAL)


def test_satellite_is_a_plummer_sphere():
    """Mass within r is (1 + b^2 / r^2)^(-3/2), and the mean square dispersion 3 pi / 16 of that in the centre."""
    density = SATELLITE.phase_space(POTENTIAL)
    w = density.sample(N, seed=7) - density.centre
    radii = w[:, :3].norm(dim=-1).numpy()
    assert stats.kstest(radii, lambda r: (1 + 0.25 / r**2) ** -1.5).pvalue > 1e-3
    assert stats.kstest(radii, lambda r: (1 + 0.28 / r**2) ** -1.5).pvalue < 1e-6
    square = (w[:, 3:] ** 2).mean(-1)
    assert abs(float(square.mean()) - 100 * 3 * math.pi / 16) < 5 * float(square.std()) / math.sqrt(N)


def test_satellite_is_in_virial_balance_with_itself():
    """For a Plummer sphere of GM = 6 b sigma_0^2: <v^2> = <x . grad Phi>."""
    density = SATELLITE.phase_space(POTENTIAL)
    w = density.sample(N, seed=8) - density.centre
    square = (w[:, :3] ** 2).sum(-1)
    balance = (w[:, 3:] ** 2).sum(-1) - 6 * 0.5 * 100 * square * (square + 0.25) ** -1.5
    assert abs(float(balance.mean())) < 5 * float(balance.std()) / math.sqrt(N)


def test_satellite_moves_along_its_orbit():
    moved = dataclasses.replace(SATELLITE, elapsed=0.3).phase_space(POTENTIAL).centre
    back = Satellite("back", 1e9, moved[:3].numpy(), moved[3:].numpy(), OLD, elapsed=-0.3).phase_space(POTENTIAL).centre
    torch.testing.assert_close(back, SATELLITE.phase_space(POTENTIAL).centre, rtol=1e-8, atol=1e-8)
    assert float((moved - back)[:3].norm()) > 5
