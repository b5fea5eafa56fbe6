"""Significance improvement of cuts on a score whose distributions are known."""

import math

import pytest
import torch

import sbi_physics as sp
from sbi_physics.anomaly.significance import significance_improvement


def test_two_normal_distributions():
    generator = torch.Generator().manual_seed(1)
    background = torch.randn(200_000, generator=generator, dtype=torch.float64)
    signal = 2 + torch.randn(50_000, generator=generator, dtype=torch.float64)
    curve = significance_improvement(background, signal)

    def tail(cut):
        return 0.5 * math.erfc(cut / math.sqrt(2))

    for cut in (0.0, 1.0, 2.0, 3.0):
        wanted = tail(cut - 2) / math.sqrt(tail(cut))
        # The cut that keeps this share of the background is known as well as those events are many.
        assert abs(curve.at(tail(cut)) / wanted - 1) < 4 / math.sqrt(200_000 * tail(cut))
    assert curve.maximum > curve.at(0.5)
    assert round(200_000 * float(curve.background_efficiency[0])) == 25


def test_a_score_that_says_nothing():
    curve = significance_improvement(torch.zeros(1000), torch.zeros(10))
    assert curve.maximum == 1.0
    assert torch.equal(curve.background_efficiency, torch.ones(1000, dtype=torch.float64))


def test_too_few():
    with pytest.raises(sp.ShapeError, match="at least 25 background events"):
        significance_improvement(torch.zeros(24), torch.zeros(10))
    with pytest.raises(sp.NonFiniteError, match="signal_scores"):
        significance_improvement(torch.zeros(30), torch.tensor([float("nan")]))
