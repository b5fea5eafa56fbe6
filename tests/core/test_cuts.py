"""Cuts: each on momenta of which the answer is known, and joined."""

import math

import pytest
import torch

from sbi_physics.core.cuts import BeamAngleCut, PairAngleCut, PairMassCut, RapidityCut, TransverseMomentumCut
from sbi_physics.core.errors import UsageError


def light(size, theta, phi=0.0):
    """A massless momentum."""
    across = size * math.sin(theta)
    return [size, across * math.cos(phi), across * math.sin(phi), size * math.cos(theta)]


# Two particles across the beams and back to back; two near the first beam and near each other.
WIDE = [light(10.0, math.pi / 2), light(10.0, math.pi / 2, math.pi)]
NARROW = [light(10.0, 0.1), light(10.0, 0.1, 0.5)]
EVENTS = torch.tensor([WIDE, NARROW], dtype=torch.float64)


@pytest.mark.parametrize(
    "cut",
    [
        TransverseMomentumCut(least=5.0),
        RapidityCut(most=1.0),
        PairMassCut(least=19.0),
        PairAngleCut(least=1.0),
        BeamAngleCut(least=0.5),
        TransverseMomentumCut(least=5.0, particles=(1,)),
    ],
)
def test_wide_events_pass_and_narrow_ones_do_not(cut):
    assert cut(EVENTS).tolist() == [True, False]
    assert (~cut)(EVENTS).tolist() == [False, True]
    assert (cut & ~cut)(EVENTS).tolist() == [False, False]
    assert (cut | ~cut)(EVENTS).tolist() == [True, True]


def test_bounds_are_those_that_were_given():
    assert TransverseMomentumCut(most=5.0)(EVENTS).tolist() == [False, True]
    assert PairMassCut(most=19.0)(EVENTS).tolist() == [False, True]
    # The rapidity of a massless particle is -ln tan(theta / 2).
    edge = -math.log(math.tan(0.05))
    assert RapidityCut(most=edge + 1e-9)(EVENTS).tolist() == [True, True]
    assert RapidityCut(most=edge - 1e-9)(EVENTS).tolist() == [True, False]
    assert BeamAngleCut(least=0.1 - 1e-9)(EVENTS).tolist() == [True, True]


def test_every_pair_counts():
    three = torch.tensor([[*WIDE, light(10.0, math.pi / 2, 0.2)]], dtype=torch.float64)
    assert PairAngleCut(least=0.15)(three).tolist() == [True]
    assert PairAngleCut(least=0.25)(three).tolist() == [False]
    assert PairAngleCut(least=0.25, particles=(0, 1))(three).tolist() == [True]


@pytest.mark.parametrize("make", [lambda: PairMassCut(least=3.0, most=2.0), lambda: RapidityCut(most=-1.0)])
def test_bounds_out_of_order_are_refused(make):
    with pytest.raises(UsageError, match="expected 0 <= least <= most"):
        make()
