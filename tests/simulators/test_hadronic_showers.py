"""The hadronic parametrisation: its fractions, its profiles and its radii against the published means."""

import math

import pytest
import torch

from simulators.hadronic_showers import energy_shares, hadronic_profiles, hadronic_radius, hadronic_spots

N = 20_000


def energies(gev, n=N):
    return torch.full((n,), float(gev), dtype=torch.float64)


@pytest.mark.parametrize("gev", [0.5, 5, 100, 1000])
def test_the_shares_have_the_published_means(gev):
    """The share of neutral pions is 1 - E^(k - 1); of the energy a third at most comes from the first interaction."""
    torch.manual_seed(1)
    hadronic, early, late = (part / gev for part in energy_shares(energies(gev)))
    assert bool(((hadronic >= 0) & (early >= 0) & (late >= 0)).all())
    pions = early + late
    torch.testing.assert_close(hadronic * 1.36 + pions, torch.ones(N, dtype=torch.float64))
    mean = max(0.0, 1 - gev**-0.18)
    assert float(pions.mean()) == pytest.approx(mean, abs=5 * 0.17 / math.sqrt(N))
    assert float(early.mean()) == pytest.approx(min(mean, 1 / 3), abs=5 * 0.17 / math.sqrt(N))
    assert (float(pions.std()) > 0.1) == (gev > 1)


def test_typical_profiles_are_those_of_bock():
    ln_e = math.log(100)
    profiles = hadronic_profiles(energies(100, 1), torch.zeros(1, 4, dtype=torch.float64))
    assert float(profiles.hadronic.shape) == pytest.approx(0.6165 + 0.3183 * ln_e)
    assert float(profiles.hadronic.rate) == pytest.approx(0.9099 - 0.0237 * ln_e)
    assert float(profiles.early.rate) == pytest.approx(0.2198)
    assert float(profiles.late.mean) > float(profiles.hadronic.mean)


def test_profiles_fluctuate_and_deepen_with_the_energy():
    normals = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    means = []
    for gev in (1, 10, 100, 1000):
        profiles = hadronic_profiles(energies(gev), normals)
        means.append(float(profiles.hadronic.mean.mean()))
        assert float(torch.log(profiles.hadronic.shape).std()) == pytest.approx(0.25, rel=5 / math.sqrt(2 * N))
        assert float(torch.log(profiles.early.rate).std()) == pytest.approx(0.25, rel=5 / math.sqrt(2 * N))
    assert means == sorted(means)
    assert 1 < means[2] < 4


def test_radii_grow_with_the_depth_and_average_to_their_mean():
    normal = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    depth = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64).expand(N, -1)
    radius = hadronic_radius(energies(50), depth, torch.tensor([False, False, True]), normal)
    ln_e = math.log(50)
    slope = 0.40 - 0.06 * ln_e
    scale = torch.tensor([5.5 - 0.4 * ln_e] * 2 + [14 - 1.5 * ln_e], dtype=torch.float64)
    expected = scale * (0.20 + slope * depth[0])
    relative = (0.70 - 0.05 * ln_e) * (1 + 0.2 * depth[0])
    assert float(((radius.mean(0) / expected - 1) / relative).abs().max()) < 5 / math.sqrt(N)
    assert bool((radius.diff(dim=1) > 0).double().mean() > 0.9)


def test_the_number_of_spots():
    assert hadronic_spots(torch.tensor([0.1, 1.0, math.e])).tolist() == pytest.approx([50, 50, 130])
