"""Posterior predictive checks of a model that is right, and of data that it cannot give."""

import math

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.samples import Samples
from sbi_physics.diagnostics import predictive_check

TIMES = torch.linspace(0, 1, 20)


def line(theta, seed):
    """A straight line with noise of 0.3."""
    noise = torch.randn(len(theta), 20, generator=torch.Generator().manual_seed(seed % 2**31))
    return theta[:, :1] + theta[:, 1:] * TIMES + 0.3 * noise


THETA = torch.tensor([1.0, 2.0])
DRAWS = THETA + 0.05 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(7))
X_OBS = line(THETA.unsqueeze(0), 5)[0]


def test_data_of_the_model_pass():
    result = predictive_check(DRAWS, line, X_OBS)
    assert result.passed
    assert result.verdict.startswith("the observation looks like data of the model: p-value")
    assert result.names[3] == "x[3]"
    assert result.replicated.shape == (1000, 20)


def test_p_values_of_fresh_data_are_uniform():
    """At fixed parameters, so that the data are not used twice: each of 20 p-values, over 100 data sets."""
    fixed, fresh = THETA.expand(400, 2), line(THETA.expand(100, 2), 11)
    results = [predictive_check(fixed, line, x, n=400, level=0.05, seed=i) for i, x in enumerate(fresh)]
    single = torch.stack([result.p_values for result in results]).flatten()
    assert abs(float((single <= 0.2).double().mean()) - 0.2) < 4 * math.sqrt(0.16 / 2000) + 2 / 400
    flunked = sum(not result.passed for result in results)
    assert flunked < 5 + 4 * math.sqrt(5)
    assert abs(float(torch.tensor([r.distance_p_value for r in results]).mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 100)


def test_one_bad_point_is_named():
    x = X_OBS.clone()
    x[13] += 2.5
    result = predictive_check(DRAWS, line, x)
    assert not result.passed
    assert result.worst[0] == 13
    assert "worst: x[13] (+" in result.verdict
    assert float(result.p_values[13]) <= 2 / 1001
    assert result.p_value == pytest.approx(2 / 501)


def test_a_wrong_model_is_seen_by_the_distance():
    """A sine instead of a line: no point is far out, all together are."""
    x = X_OBS + 0.52 * torch.sin(4 * math.pi * TIMES)
    result = predictive_check(DRAWS, line, x)
    assert not result.passed
    assert result.distance_p_value < result.largest_p_value


def test_statistics_of_the_user():
    x = X_OBS.clone()
    x[13] += 2.5
    named = {"mean": lambda x: x.mean(1), "largest": lambda x: x.amax(1)}
    result = predictive_check(DRAWS, line, x, statistics=named)
    assert result.names == ("mean", "largest")
    assert not result.passed
    assert "worst: largest (+" in result.verdict
    assert predictive_check(DRAWS, line, x, statistics=lambda x: x[:, :5].mean(1)).names == ("statistic",)
    both = predictive_check(DRAWS, line, x, statistics=lambda x: {"a": x[:, 0], "b": x[:, 1:3]})
    assert both.names == ("a", "b[0]", "b[1]")


def test_posteriors_samples_and_weights(gaussian):
    def simulator(theta, seed):
        return theta + torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed % 2**31))

    x_obs = torch.tensor([0.5, -1.0, 0.2])
    assert predictive_check(gaussian(), simulator, x_obs.unsqueeze(0)).passed
    assert not predictive_check(gaussian(0.1), lambda theta, seed: theta, x_obs.unsqueeze(0)).passed
    wide = Samples(5 * torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)), ("a", "b", "c"))
    log_weights = -0.5 * ((wide.values - x_obs / 2) ** 2 / 0.5 - wide.values**2 / 25).sum(1)
    weighted = Samples(wide.values, wide.names, log_weights=log_weights.double())
    result = predictive_check(weighted, simulator, x_obs)
    assert result.passed
    assert float(result.replicated.std(0).max()) < 2  # unweighted draws would give 5


def test_dictionaries_failures_and_missing_entries():
    def simulator(theta, seed):
        x = line(theta, seed)
        x[::50, 3] = torch.nan
        return {"flux": x, "total": x.sum(1)}

    x_obs = {"flux": X_OBS.clone(), "total": X_OBS.sum()}
    x_obs["flux"][4] = torch.nan
    result = predictive_check(DRAWS, simulator, x_obs)
    assert result.passed
    assert result.failed == 20
    assert "(20 failed simulations left out)" in result.verdict
    assert result.names[-1] == "total"
    assert torch.isnan(result.p_values[4])
    with pytest.raises(NonFiniteError, match=r"simulator output: .*20 of 1000 rows failed"):
        predictive_check(DRAWS, simulator, x_obs, failed="refuse")


def test_missing_entries_of_simulations():
    def simulator(theta, seed):
        x = line(theta, seed)
        holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed % 2**31)) < 0.1
        return torch.where(holes, torch.nan, x)

    result = predictive_check(DRAWS, simulator, X_OBS, missing=True)
    assert (result.passed, result.failed) == (True, 0)


def test_what_is_predicted_without_spread():
    def simulator(theta, seed):
        return torch.cat([line(theta, seed), torch.full((len(theta), 1), 3.0)], 1)

    assert predictive_check(DRAWS, simulator, torch.cat([X_OBS, torch.tensor([3.0])])).passed
    result = predictive_check(DRAWS, simulator, torch.cat([X_OBS, torch.tensor([3.1])]))
    assert not result.passed
    assert "worst: x[20] (predicted without spread)" in result.verdict


def test_same_seed_same_result():
    first, second, third = (predictive_check(DRAWS, line, X_OBS, n=500, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.replicated, second.replicated)
    assert not torch.equal(first.replicated, third.replicated)


def test_wrong_input_is_named():
    with pytest.raises(UsageError, match=r"n: expected at least 400 simulations for level 0\.01, got 100"):
        predictive_check(DRAWS, line, X_OBS, n=100)
    with pytest.raises(ShapeError, match=r"x_obs: expected shape \(20\) or \(B, 20\), got \(19,\)"):
        predictive_check(DRAWS, line, X_OBS[:19])
    with pytest.raises(ShapeError, match="x_obs: expected one observation, got 2"):
        predictive_check(DRAWS, line, torch.stack([X_OBS, X_OBS]))
    with pytest.raises(ShapeError, match=r"samples: expected shape \(m, P\)"):
        predictive_check(torch.zeros(3), line, X_OBS)
    with pytest.raises(NonFiniteError, match="leaves too few for level"):
        predictive_check(DRAWS, lambda t, seed: line(t, seed) / (t[:, :1] > 1.05), X_OBS)
    with pytest.raises(ShapeError, match="statistics: expected one row for each of 1000 simulations, got 20"):
        predictive_check(DRAWS, line, X_OBS, statistics=lambda x: x.mean(0))


def test_simulations_without_any_observed_entry():
    def simulator(theta, seed):
        x = line(theta, seed)
        x[::4, :10] = torch.nan
        return x

    x_obs = torch.where(torch.arange(20) < 10, X_OBS, torch.nan)
    assert predictive_check(DRAWS, simulator, x_obs, missing=True).passed
