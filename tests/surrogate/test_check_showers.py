"""Showers of a calorimeter: `check` passes the simulator itself, and catches an energy scale, and a lost mode."""

import pytest
import torch

from sbi_physics.surrogate.check import check_surrogate
from simulators.calorimeter import ElectromagneticShowers

pytestmark = pytest.mark.slow

N = 2400
FAST = {"hidden_features": 64, "epochs": 4, "device": "cpu"}
ENERGIES = (1e3, 3e4)
PHOTONS = ElectromagneticShowers(energies=ENERGIES)
# They start at once: photons without those that convert late.
ELECTRONS = ElectromagneticShowers(energies=ENERGIES, converts=False)


def depth(x):
    """The share of the energy that is behind the strips."""
    strips = PHOTONS.geometry.layer_slices[1].stop
    return x[:, strips:].sum(1) / x.sum(1).clamp(min=1e-9)


def late_lost(theta, *, seed):
    """Photons, of which the tenth that converts last is replaced by electrons."""
    x = PHOTONS(theta, seed=seed)
    late = depth(x) > depth(x).quantile(0.9)
    return torch.where(late.unsqueeze(1), ELECTRONS(theta, seed=seed + 1), x)


@pytest.fixture(scope="module")
def events():
    theta = PHOTONS.parameters.sample(N, seed=1)
    return theta, PHOTONS(theta, seed=2)


def check(generator, events, seed=0):
    how = {"geometry": PHOTONS.geometry, "threshold": 1.0, "classifier": FAST, "batches": ()}
    return check_surrogate(generator, *events, **how, seed=seed, progress=False)


def test_the_simulator_itself_passes(events):
    report = check(PHOTONS, events)
    assert report.passed, report.verdicts
    assert report.verdict.startswith("as good as the simulator at this sample size: 1200 generated events")
    assert report.left_out == {}


@pytest.mark.parametrize("scale", [0.98, 1.02])
def test_two_percent_of_the_energy_scale_are_caught(scale, events):
    """With 1200 events of each kind by far: the scale is known to 0.15 %."""
    report = check(lambda theta, *, seed: scale * PHOTONS(theta, seed=seed), events)
    assert report.failed[0] == "response"
    value, error = report.response.energy_scale
    assert value == pytest.approx(scale, abs=4 * error)
    assert error < 0.002
    assert report.response.sigmas > 8
    assert ("above" if scale > 1 else "below") in report.verdict


def test_a_lost_mode_is_caught(events):
    """A tenth of the showers: late ones are not there, and early ones too often."""
    report = check(late_lost, events)
    assert not report.passed
    assert set(report.failed) & {"modes", "histograms", "high-level classifier"}, report.verdicts


def test_a_collapse_is_caught_by_the_modes(events):
    """One shower of fifty is made again and again."""
    report = check(
        lambda theta, *, seed: PHOTONS(theta[:50], seed=seed).repeat(len(theta) // 50 + 1, 1)[: len(theta)], events
    )
    assert "modes" in report.failed
    assert report.manifold.coverage < 0.5 * float(report.manifold.expected[3])
