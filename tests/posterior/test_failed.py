"""Simulations that fail for a part of the parameter space: refused by default, corrected for where asked."""

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.train.config import TrainConfig

N = 8000


def fails_often_below_zero(n=N):
    """Theta uniform on [-1, 1], x = theta + noise; below zero nine simulations of ten give NaN."""
    generator = torch.Generator().manual_seed(1)
    theta = 2 * torch.rand(n, 1, generator=generator) - 1
    x = theta + 0.5 * torch.randn(n, 1, generator=generator)
    lost = (theta < 0) & (torch.rand(n, 1, generator=generator) < 0.9)
    return theta, torch.where(lost, torch.nan, x)


@pytest.fixture(scope="module")
def parameters():
    return sp.Parameters([sp.Parameter("t", td.Uniform(-1.0, 1.0))])


@pytest.fixture(scope="module")
def pairs():
    return fails_often_below_zero()


@pytest.fixture(scope="module")
def exact():
    """The share of the posterior of x = 0 above zero: the likelihood is symmetric, success is not."""
    return 1 / 1.1


def estimators(parameters):
    config = TrainConfig(epochs=8)
    return {
        "npe": sp.NPE(parameters, transforms=2, hidden_features=16, config=config),
        "nle": sp.NLE(parameters, transforms=2, hidden_features=16, config=config),
        "nre": sp.NRE(parameters, hidden_features=32, config=config),
    }


@pytest.mark.parametrize("name", ["npe", "nle", "nre"])
def test_the_default_refuses_and_the_option_corrects(name, parameters, pairs, exact):
    estimator = estimators(parameters)[name]
    failed = int(torch.isnan(pairs[1]).sum())
    with pytest.raises(sp.NonFiniteError, match=rf"x: {failed} of {N} simulations failed.*say failed='correct'"):
        estimator.fit(*pairs, progress=False)
    posterior = estimator.fit(*pairs, failed="correct", progress=False)
    assert posterior.provenance["failed"] == failed
    share = float((posterior.sample(4000, torch.tensor([0.0]), seed=1).values > 0).double().mean())
    # The draws alone scatter by 0.005, and 400 simulations that succeeded below zero by 0.01.
    assert share == pytest.approx(exact, abs=0.04)


def test_without_the_correction_a_likelihood_is_biased(parameters, pairs, exact):
    """The twin: what dropping the failures in silence would give."""
    theta, x = pairs
    good = torch.isfinite(x[:, 0])
    posterior = estimators(parameters)["nle"].fit(theta[good], x[good], progress=False)
    share = float((posterior.sample(4000, torch.tensor([0.0]), seed=1).values > 0).double().mean())
    assert abs(share - exact) > 0.3


def test_a_file_with_failures_is_refused_by_name(parameters, tmp_path):
    theta, x = fails_often_below_zero(200)
    store = sp.Simulations.from_arrays(theta, x, parameters)
    store.save(tmp_path / "s.h5")
    estimator = estimators(parameters)["npe"]
    with pytest.raises(sp.SimulationError, match=r"s\.h5: .* of 200 simulations failed"):
        estimator.fit(tmp_path / "s.h5", progress=False)
    assert estimator.fit(store, failed="correct", progress=False).provenance["failed"] == store.counts()["nonfinite"]
    with pytest.raises(sp.UsageError, match="failed: expected one of correct, refuse; got 'drop'"):
        estimator.fit(store, failed="drop", progress=False)


def test_too_few_that_succeeded_are_refused(parameters):
    theta, x = fails_often_below_zero(200)
    x[9:] = torch.nan
    with pytest.raises(sp.ShapeError, match=r"at least 10 simulations that succeeded, got \d of 200"):
        estimators(parameters)["npe"].fit(theta, x, failed="correct", progress=False)


def test_weights_are_those_of_all_simulations_or_of_the_good_ones(parameters, pairs):
    theta, x = (t[:500] for t in pairs)
    good = torch.isfinite(x[:, 0])
    weights = torch.rand(500, generator=torch.Generator().manual_seed(2)) + 0.5
    fits = [
        estimators(parameters)["npe"].fit(theta, x, weights=w, failed="correct", progress=False)
        for w in (weights, weights[good])
    ]
    probes = torch.linspace(-0.9, 0.9, 5).unsqueeze(1)
    assert torch.equal(*(fit.log_prob(probes, torch.tensor([0.1])) for fit in fits))
