"""Where a curve falls below a depth."""

import math

import pytest
import torch

from sbi_physics.posterior.crossings import crossings

FREE = torch.tensor([-math.inf, math.inf], dtype=torch.float64)


def ends(at, value, depth=0.5, bounds=FREE):
    at, value = (torch.tensor(v, dtype=torch.float64) for v in (at, value))
    return crossings(at, value, depth, bounds).tolist()


def test_a_parabola_needs_few_points():
    at = [-3.0, 0.0, 4.0]
    assert ends(at, [-0.5 * t**2 for t in at]) == pytest.approx([-1.0, 1.0])
    assert ends(at[::-1], [-0.5 * t**2 for t in at[::-1]], depth=2.0) == pytest.approx([-2.0, 2.0])


def test_pieces_count_as_one():
    at = [0.0, 1.0, 2.0, 3.0, 4.0]
    low, high = ends(at, [-8.0, 0.0, -50.0, -0.1, -8.0])
    assert 0 < low < 1
    assert 3 < high < 4


def test_no_end_within_the_points():
    assert ends([0.0, 1.0], [-0.1, 0.0]) == [-math.inf, math.inf]
    bounds = torch.tensor([0.0, 5.0], dtype=torch.float64)
    assert ends([0.0, 1.0], [-0.1, 0.0], bounds=bounds) == [0.0, math.inf]
    # Where the curve falls to minus infinity within a step it is cut half way.
    assert ends([0.0, 1.0, 2.0], [-math.inf, 0.0, -math.inf]) == [0.5, 1.5]
