"""Simultaneous bands: their probability, counted; their corners; ranks and continuous numbers."""

import math

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.diagnostics import ecdf_bands


def uniform(n, curves, seed=0):
    return torch.rand(n, curves, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "points", "level"), [(100, 50, 0.05), (1000, 100, 0.05), (300, 20, 0.2)])
def test_the_band_is_left_as_often_as_promised(n, points, level):
    band = ecdf_bands(n, points, level=level)
    left = 1 - float(band.inside(band.difference(uniform(n, 2000))).double().mean())
    error = math.sqrt(level / 2000)
    assert 0.75 * level - 4 * error < left < level + 4 * error  # a little less: counts are whole


def test_pointwise_intervals_would_be_left_far_more_often():
    band = ecdf_bands(1000, 100, level=0.05)
    assert band.pointwise_level < 0.05 / 10
    naive = ecdf_bands(1000, [0.5], level=0.05)
    middle = int((band.z - 0.5).abs().argmin())
    assert float(naive.upper[0]) < float(band.upper[middle])


def test_one_point_is_the_binomial_interval():
    band = ecdf_bands(400, [0.5], level=0.05)
    assert float(band.upper[0]) == pytest.approx(1.96 * math.sqrt(0.25 / 400), abs=2 / 400)
    assert float(band.lower[0]) == pytest.approx(-float(band.upper[0]))


def test_a_wrong_distribution_leaves_the_band():
    band = ecdf_bands(1000, level=0.01)
    values = uniform(1000, 1)
    assert bool(band.inside(band.difference(values)))
    for wrong in (values**1.3, 0.5 + 0.8 * (values - 0.5)):
        assert not bool(band.inside(band.difference(wrong)))


def test_ranks_are_exact_at_the_points_between_them():
    """Ranks among 4 draws: at k / 5 their distribution function, strictly below, is that of uniform numbers."""
    ranks = torch.randint(5, (500, 4000), generator=torch.Generator().manual_seed(1))
    band = ecdf_bands(500, [k / 5 for k in range(1, 5)], level=0.1)
    left = 1 - float(band.inside(band.difference((ranks + 0.5) / 5)).double().mean())
    assert 0.05 < left < 0.1 + 4 * math.sqrt(0.09 / 4000)


def test_few_numbers_and_wrong_input():
    band = ecdf_bands(1, 3, level=0.01)
    assert bool(band.inside(band.difference(torch.tensor([0.999]))))
    with pytest.raises(UsageError, match="points: expected increasing numbers"):
        ecdf_bands(10, [0.5, 0.2])
    with pytest.raises(UsageError, match="level"):
        ecdf_bands(10, level=0.0)
    with pytest.raises(UsageError, match="n: expected an integer"):
        ecdf_bands(0)
    with pytest.raises(ShapeError, match="uniform: expected 1 numbers"):
        band.difference(torch.zeros(3))
