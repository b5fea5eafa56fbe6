"""Spots in voxels: each where it belongs, none twice, and no energy lost but outside."""

import math

import pytest
import torch

from sbi_physics.core.random import seeded
from sbi_physics.core.voxels import DATASET_1_PHOTONS, DATASET_1_PIONS, VoxelGeometry, VoxelLayer
from simulators.shower_spots import ShowerComponent, SpotGrid

HOLLOW = VoxelGeometry((VoxelLayer(0, (3, 10)), VoxelLayer(4, (5, 20, 20.001, 20.002, 40), 6), VoxelLayer(5, (0, 1))))


def component(layers, *, n=1, energy=1.0, spots=1000.0, share=0.6, core=5.0, tail=30.0, resolution=0.0):
    full = [torch.full((n, layers), value, dtype=torch.float64) for value in (energy, spots, share, core, tail)]
    return ShowerComponent(*full, resolution)


def deposit(geometry, what, *, seed=1, max_spots=2**16):
    grid = SpotGrid(geometry, torch.arange(len(geometry.layers)), max_spots)
    with seeded(seed):
        return grid.deposit(what)


@pytest.mark.parametrize("geometry", [DATASET_1_PHOTONS, DATASET_1_PIONS, HOLLOW], ids=["photons", "pions", "hollow"])
def test_every_place_is_found_as_by_a_search(geometry):
    """Random radii, and the edges themselves, against a plain search in each layer."""
    table = SpotGrid(geometry, torch.arange(len(geometry.layers)), 10).rings
    generator = torch.Generator().manual_seed(1)
    for index, (layer, place) in enumerate(zip(geometry.layers, geometry.layer_slices, strict=True)):
        edges = torch.tensor(layer.r_edges, dtype=torch.float32)
        radii = torch.cat([edges, 1e5 * torch.rand(20_000, generator=generator) ** 6])
        turn = torch.rand(len(radii), generator=generator)
        found = table.voxel(index + radii / (radii + 50.0), turn)
        keys = torch.tensor([index + r / (r + 50.0) for r in layer.r_edges])
        ring = torch.bucketize(index + radii / (radii + 50.0), keys, right=True) - 1
        expected = place.start + (turn * layer.sectors).long() * layer.rings + ring
        outside = (ring < 0) | (ring >= layer.rings)
        assert torch.equal(found, torch.where(outside, geometry.size, expected))
        assert bool(outside.any())
        assert not bool(outside.all())


def mean_pulls(total, core, tail, n_spots):
    """Of each voxel, with p r^2 / (r^2 + R_C^2) + (1 - p) r^2 / (r^2 + R_T^2) within r, the same in all sectors."""
    expected = []
    for layer in DATASET_1_PHOTONS.layers:
        square = torch.tensor(layer.r_edges, dtype=torch.float64) ** 2
        below = 0.6 * square / (square + core**2) + 0.4 * square / (square + tail**2)
        expected.append((below.diff() / layer.sectors).repeat(layer.sectors))
    expected = torch.cat(expected)
    return (total - expected) / torch.sqrt(expected / n_spots)


def test_mean_energies_follow_the_profile():
    n, spots = 200, 500.0
    total = deposit(DATASET_1_PHOTONS, component(5, n=n, spots=spots)).mean(0)
    pulls = mean_pulls(total, 5.0, 30.0, n * spots)
    assert float(pulls.abs().max()) < 5
    assert float(pulls.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / 368))
    assert float(mean_pulls(total, 5.5, 30.0, n * spots).abs().max()) > 10


def test_no_energy_is_lost_between_spots():
    """Few spots in many intervals, all narrow: what an interval without a spot would have gets to one with."""
    intervals = torch.zeros(100, dtype=torch.int64)
    expected = torch.rand(50, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    narrow = torch.full_like(expected, 1e-3)
    what = ShowerComponent(expected, torch.full_like(expected, 0.3), torch.ones_like(expected), narrow, narrow, 0.0)
    with seeded(2):
        seen = SpotGrid(VoxelGeometry((VoxelLayer(0, (0, 1000)),)), intervals, 100).deposit(what)
    # Of 1500 spots at 1 micrometre about 1e-9 are beyond a metre.
    torch.testing.assert_close(seen.squeeze(1), expected.sum(1))


def test_what_is_beside_the_voxels_is_lost():
    far = deposit(DATASET_1_PHOTONS, component(5, core=1e5, tail=1e5))
    assert float(far.sum()) < 0.01 * 5


def test_sampling_fluctuates_as_it_should():
    n, sigma = 4000, 0.1
    what = component(5, n=n, energy=2.0, spots=30.0, core=1e-3, tail=1e-3, resolution=sigma)
    seen = deposit(DATASET_1_PHOTONS, what).sum(1)
    assert float(seen.mean()) == pytest.approx(10, abs=5 * sigma * math.sqrt(10 / n))
    assert float(seen.std()) == pytest.approx(sigma * math.sqrt(10), rel=5 / math.sqrt(2 * n))
    exact = deposit(DATASET_1_PHOTONS, component(5, n=n, energy=2.0, spots=30.0, core=1e-3, tail=1e-3)).sum(1)
    assert float(exact.std()) < 0.1 * float(seen.std())


def test_the_number_of_spots_is_the_expected_one():
    """Without any fluctuation of the energy, half of a Poisson number of equal spots lies within the radius."""
    n, spots = 20_000, 40.0
    geometry = VoxelGeometry((VoxelLayer(0, (0, 5)),))
    seen = deposit(geometry, component(1, n=n, spots=spots, share=1.0)).squeeze(1)
    # Var = E[1/N] / 4, and E[1/N] is about (1 + 1/40) / 40.
    assert float(seen.mean()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(spots * n))
    assert float(seen.var()) == pytest.approx((1 + 1 / spots + 2 / spots**2) / spots / 4, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("max_spots", [1, 700, 2**20])
def test_the_parts_of_the_list_do_not_matter(max_spots):
    what = component(5, n=20, spots=200.0, resolution=0.1)
    assert torch.equal(deposit(DATASET_1_PHOTONS, what), deposit(DATASET_1_PHOTONS, what, max_spots=max_spots))


def test_showers_without_energy_or_spots():
    assert float(deposit(DATASET_1_PHOTONS, component(5, n=3, energy=0.0, resolution=0.1)).sum()) == 0
    assert float(deposit(DATASET_1_PHOTONS, component(5, n=3, spots=0.0)).sum()) == 0
    assert deposit(DATASET_1_PHOTONS, component(5, n=0)).shape == (0, 368)
