"""Areas under curves of known scores, with weights that may be negative."""

import math

import pytest
import torch

from sbi_physics.diagnostics.scores import Scored, area_under_curve, operating_curve


def normal(n, seed, shift=0.0):
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift
    return Scored(values, torch.ones(n, dtype=torch.float64))


def phi(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


def test_the_error_is_that_of_delong():
    """For scores that are known: mean and spread of the AUC over 300 samples of unequal size."""
    found = [area_under_curve(normal(200, 2 * s, 1.0), normal(300, 2 * s + 1)) for s in range(300)]
    areas, errors, _ = torch.tensor(found).unbind(1)
    assert float(areas.mean()) == pytest.approx(phi(1 / math.sqrt(2)), abs=4 * float(areas.std()) / 300**0.5)
    assert float(errors.mean() / areas.std()) == pytest.approx(1.0, abs=0.17)


def test_area_by_hand():
    """Pairs (1, 0), (1, 1), (3, 0), (3, 1): three are right, one is a tie; then (3, .) counts thrice, (., 1) twice."""
    real, generated = torch.tensor([1.0, 3.0]).double(), torch.tensor([0.0, 1.0]).double()
    ones = torch.ones(2).double()
    assert area_under_curve(Scored(real, ones), Scored(generated, ones))[0] == pytest.approx(3.5 / 4)
    weighted = Scored(real, torch.tensor([1.0, 3.0]).double()), Scored(generated, torch.tensor([1.0, 2.0]).double())
    assert area_under_curve(*weighted)[0] == pytest.approx((1 * 1 + 1 * 2 * 0.5 + 3 * 1 + 3 * 2) / 12)
    area, error, _ = area_under_curve(Scored(torch.ones(98), torch.ones(98)), Scored(torch.zeros(98), torch.ones(98)))
    assert area == 1.0
    assert error == pytest.approx(0.005)


def test_the_error_with_signed_weights():
    """A quarter of the events of both kinds have the weight -1, whatever their score."""
    found = []
    for seed in range(300):
        weights = torch.where(torch.rand(600, generator=torch.Generator().manual_seed(seed)) < 0.25, -1.0, 1.0).double()
        pair = (
            Scored(normal(300, 2 * seed, 1.0).score, weights[:300]),
            Scored(normal(300, 2 * seed + 1).score, weights[300:]),
        )
        found.append(area_under_curve(*pair))
    areas, errors, _ = torch.tensor(found).unbind(1)
    assert float(areas.mean()) == pytest.approx(phi(1 / math.sqrt(2)), abs=4 * float(areas.std()) / 300**0.5)
    assert float(errors.mean() / areas.std()) == pytest.approx(1.0, abs=0.17)


def test_the_curve_goes_up_and_has_its_area_below_it():
    real, generated = normal(2000, 0, 1.0), normal(2000, 1)
    x, y = operating_curve(real, generated)
    assert (float(x[0]), float(y[0]), float(x[-1]), float(y[-1])) == (0.0, 0.0, 1.0, 1.0)
    assert bool((x.diff() >= 0).all() and (y.diff() >= 0).all())
    assert float(torch.trapezoid(y, x)) == pytest.approx(area_under_curve(real, generated)[0], abs=0.005)
