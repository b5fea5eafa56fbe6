"""Where a curve falls below a depth."""

import math

import pytest
import torch

from sbi_physics.posterior.crossings import crossings, opened

FREE = torch.tensor([-math.inf, math.inf], dtype=torch.float64)


def ends(at, value, depth=0.5, bounds=FREE):
    at, value = (torch.tensor(v, dtype=torch.float64) for v in (at, value))
    pieces = crossings(at, value, depth, bounds)
    assert len(pieces) == 1
    return pieces[0].tolist()


def test_a_parabola_needs_few_points():
    at = [-3.0, 0.0, 4.0]
    assert ends(at, [-0.5 * t**2 for t in at]) == pytest.approx([-1.0, 1.0])
    assert ends(at[::-1], [-0.5 * t**2 for t in at[::-1]], depth=2.0) == pytest.approx([-2.0, 2.0])


def test_pieces():
    at, value = torch.arange(5.0).double(), torch.tensor([-8.0, 0.0, -50.0, -0.1, -8.0]).double()
    (a, b), (c, d) = crossings(at, value, 0.5, FREE).tolist()
    assert 0 < a < 1 < b < 2 < c < 3 < d < 4
    assert crossings(at, value - 1.0, 0.5, FREE).isnan().all()


def test_a_circle_is_cut_at_its_lowest_point():
    at = torch.cat([torch.arange(0.0, 360.0, 20.0), torch.tensor([355.0])]).double()
    value = 10 * ((at - 355).deg2rad().cos() - 1)
    bounds = torch.tensor([0.0, 360.0]).double()
    (low, high), *others = crossings(*opened(at, value, bounds)[:2], 0.5, bounds).tolist()
    assert not others
    # The maximum stays within the bounds; the interval goes on beyond them.
    half = math.degrees(math.acos(1 - 0.05))
    assert (low, high) == pytest.approx((355 - half, 355 + half), abs=1.5)
    # Not opened, there are two pieces.
    assert len(crossings(at, value, 0.5, bounds)) == 2


def test_no_end_within_the_points():
    assert ends([0.0, 1.0], [-0.1, 0.0]) == [-math.inf, math.inf]
    bounds = torch.tensor([0.0, 5.0], dtype=torch.float64)
    assert ends([0.0, 1.0], [-0.1, 0.0], bounds=bounds) == [0.0, math.inf]
    # Where the curve falls to minus infinity within a step it is cut half way.
    assert ends([0.0, 1.0, 2.0], [-math.inf, 0.0, -math.inf]) == [0.5, 1.5]
