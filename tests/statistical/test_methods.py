"""Every method on a problem whose posterior is known: moments, calibration, and twins that must fail."""

from dataclasses import replace

import pytest
import torch

import sbi_physics as sp
from sbi_physics.models.build import training_settings
from sbi_physics.train.config import TrainConfig

pytestmark = pytest.mark.slow

N, DRAWS = 200, 128
DIFFUSION = TrainConfig(**training_settings("score"))
SMALL = {"transforms": 2, "hidden_features": 32}
FEW = {"hidden_features": 48, "blocks": 2, "steps": 12, "config": replace(DIFFUSION, epochs=60)}


def estimators(parameters):
    return {
        "npe": sp.NPE(parameters, **SMALL),
        "mixture": sp.NPE(parameters, "mixture"),
        "flow matching": sp.NPE(parameters, "flow-matching", **FEW),
        "score": sp.NPE(parameters, "score", **FEW),
        "nle": sp.NLE(parameters, **SMALL, config=TrainConfig(epochs=15)),
        "nre": sp.NRE(parameters, hidden_features=48, config=TrainConfig(epochs=15)),
        "balanced nre": sp.NRE(parameters, balance=100.0, candidates=1, hidden_features=48),
    }


METHODS = ("npe", "mixture", "flow matching", "score", "nle", "nre", "balanced nre")


@pytest.fixture(scope="module")
def training(gaussian):
    return sp.simulate(gaussian, 10_000, seed=31, workers=1, progress=False).training_set()


@pytest.fixture(scope="module", params=METHODS)
def method(request, gaussian, training):
    fitted = estimators(gaussian.parameters)[request.param].fit(*training, seed=32, progress=False)
    return request.param, fitted.with_sampler(particles=200) if request.param.endswith(("nle", "nre")) else fitted


def test_mean_and_covariance_are_the_exact_ones(method, gaussian):
    name, posterior = method
    observations = gaussian(gaussian.parameters.sample(20, seed=33), seed=34)
    samples = posterior.sample(2000, observations, seed=35).values.double()
    mean, covariance = gaussian.posterior_mean_and_covariance(observations)
    sigma = covariance.diagonal().sqrt()
    # 10,000 simulations fix mean and width to a few percent of sigma at a typical observation.
    bias = (samples.mean(1) - mean) / sigma
    widths = samples.std(1) / sigma
    assert float(bias.square().mean().sqrt()) < 0.15, name
    # The balance condition asks for wide posteriors rather than narrow ones.
    high = 1.35 if name == "balanced nre" else 1.1
    assert 0.92 < float(widths.mean()) < high, name
    correlation = torch.stack([torch.corrcoef(s.T)[0, 1] for s in samples])
    assert abs(float(correlation.mean())) < 0.1, name


def test_it_is_calibrated_and_its_twins_are_not(method, fresh, rescaled):
    name, posterior = method
    pairs = tuple(t[:N] for t in fresh)
    checked = sp.diagnostics.calibrate(posterior, *pairs, draws=DRAWS, seed=36)
    too_wide = name == "balanced nre"
    if not too_wide:
        assert checked.sbc.passed, checked.sbc.verdict
        assert checked.tarp.passed, checked.tarp.verdict
    narrow = sp.diagnostics.calibrate(rescaled(posterior, 0.5), *pairs, draws=DRAWS, seed=36)
    assert not narrow.sbc.passed
    assert not narrow.tarp.passed
    assert "over-confident" in narrow.sbc.verdict
