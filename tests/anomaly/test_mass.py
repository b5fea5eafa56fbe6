"""Masses of the background in the signal region are those of the spectrum, whether there is a signal or not."""

import pytest
import torch
from scipy.stats import kstest

import sbi_physics as sp
from sbi_physics.anomaly.events import SignalRegion, checked_events, split_regions
from sbi_physics.anomaly.mass import MassModel, search_edges
from simulators.dijet import DijetResonance

REGION = SignalRegion(3.3, 3.7)


def fitted(kind, signal=0, seed=1):
    data = DijetResonance().events(background=40_000, signal=signal, seed=seed)
    inside, beside = split_regions(checked_events(data.features, data.mass, None), REGION)
    return MassModel(kind, REGION, None).fit(beside, inside)


def background_probability(mass):
    """Of the background in the region below a mass."""
    simulator = DijetResonance()
    below = torch.tensor([simulator.background_share(2.5, float(m)) for m in mass])
    low, high = simulator.background_share(2.5, 3.3), simulator.background_share(2.5, 3.7)
    return (below - low) / (high - low)


@pytest.mark.parametrize("kind", ["fit", "kernels"])
def test_masses_follow_the_background(kind):
    mass = fitted(kind).sample(2000, seed=3)
    assert kstest(background_probability(mass).numpy(), "uniform").pvalue > 1e-3


def test_a_signal_does_not_move_the_fit_but_the_kernels():
    shares = []
    for kind in ("fit", "kernels"):
        mass = fitted(kind, signal=6000).sample(4000, seed=3)
        shares.append(kstest(background_probability(mass).numpy(), "uniform").pvalue)
    assert shares[0] > 1e-3
    assert shares[1] < 1e-6


def test_the_expected_background():
    expected = 40_000 * DijetResonance().background_share(3.3, 3.7)
    pulls = []
    for seed in range(5):
        background = fitted("fit", signal=1000, seed=seed).background
        pulls.append((background.total - expected) / (background.uncertainty**2 + expected) ** 0.5)
    assert max(map(abs, pulls)) < 4
    assert abs(sum(pulls)) < 4 * 5**0.5


def test_edges_hold_all_masses_and_those_of_the_region():
    mass = torch.linspace(2.5, 5.0, 101, dtype=torch.float64)
    edges = search_edges(mass, REGION)
    assert edges[0] < 2.5
    assert edges[-1] > 5.0
    assert {3.3, 3.7} <= set(edges.round(12).tolist())


def test_an_unknown_kind():
    with pytest.raises(sp.UsageError, match="mass_model: expected one of"):
        MassModel("guess", REGION, None)
