"""Recurrent encoders recover a damped oscillator from irregular series with missing samples, and are calibrated."""

import pytest
import torch

import sbi_physics as sp
from sbi_physics.core.random import seeded
from sbi_physics.models.embedding.build import build_encoder
from sbi_physics.train.config import TrainConfig
from simulators.oscillator import DampedOscillator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

N, DRAWS = 300, 128


def simulated(simulator, n, seed):
    return simulator.parameters.sample(n, seed=seed), simulator(
        simulator.parameters.sample(n, seed=seed), seed=seed + 1
    )


@pytest.fixture(scope="module")
def simulator():
    return DampedOscillator(missing_fraction=0.2)


@pytest.fixture(scope="module")
def fresh(simulator):
    return simulated(simulator, N, 43)


@pytest.fixture(scope="module", params=["lstm", "gru"])
def posterior(request, simulator):
    with seeded(1):
        encoder = build_encoder(request.param, simulator.x_shape, times=0, frequencies=20, drop=0.7, hidden=48)
    estimator = sp.NPE(
        simulator.parameters,
        embedding=encoder,
        transforms=3,
        hidden_features=48,
        config=TrainConfig(epochs=6, batch_size=256),
    )
    # Fewer series, seen more often, take as long and end over-confident.
    return estimator.fit(*simulated(simulator, 40_000, 41), seed=42, progress=False)


def calibrated(posterior, theta, x):
    return sp.diagnostics.calibrate(posterior, theta, x, draws=DRAWS, missing=True, seed=44)


def correlations(posterior, theta, x):
    mean = posterior.sample(DRAWS, x, seed=45).values.double().mean(1)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(mean.T, theta.double().T, strict=True)])


def test_the_parameters_are_recovered(posterior, fresh):
    assert float(torch.isnan(fresh[1][..., 1]).double().mean()) == pytest.approx(0.2, abs=0.02)
    found = correlations(posterior, *fresh)
    assert (found > torch.tensor([0.95, 0.85, 0.9])).all(), found


def test_it_is_calibrated(posterior, fresh):
    report = calibrated(posterior, *fresh)
    assert report.passed, report.verdict


def test_the_posterior_of_another_series_is_not(posterior, fresh):
    """The twin: each theta with the series of its neighbour."""
    theta, x = fresh[0], fresh[1].roll(1, 0)
    assert (correlations(posterior, theta, x).abs() < 4 / N**0.5).all()
    assert not calibrated(posterior, theta, x).passed


def test_made_too_narrow_it_is_not_calibrated(posterior, fresh, rescaled):
    report = calibrated(rescaled(posterior, 0.5), *fresh)
    assert not report.passed
    assert "over-confident" in report.verdict
