"""The local test: the exact posterior passes; twins flunk where they are wrong, and only there."""

import math

import pytest
import torch

from sbi_physics.core.errors import BudgetError, NonFiniteError, ShapeError, UsageError
from sbi_physics.diagnostics import lc2st

QUICK = {"n": 300, "draws": 32, "exchanges": 199}
X_OBS = torch.tensor([1.5, -0.5, 0.3])


@pytest.mark.parametrize("entries", [3, 30])
def test_exact_posterior_passes(gaussian, pairs, entries):
    theta, x = pairs(400, seed=1, entries=entries)
    x_obs = torch.cat([X_OBS, torch.zeros(entries - 3)])
    result = lc2st(gaussian(), theta, x, x_obs, seed=1, **QUICK)
    assert result.passed
    assert result.verdict.startswith("no local deviation: smallest p-value")
    assert result.statistic.shape == (1,)
    assert result.null.shape == (199, 1)
    assert result.samples.shape == (1, 300, 3)


@pytest.mark.parametrize("entries", [3, 30])
@pytest.mark.parametrize(("width", "shift"), [(0.6, 0.0), (1.6, 0.0), (1.0, 0.5), (1.0, -0.5)])
def test_wrong_posteriors_flunk_and_the_verdict_says_how(gaussian, pairs, width, shift, entries):
    theta, x = pairs(800, seed=2, entries=entries)
    x_obs = torch.cat([X_OBS, torch.zeros(entries - 3)])
    result = lc2st(gaussian(width, shift), theta, x, x_obs, seed=1, **QUICK)
    assert not result.passed
    assert float(result.p_values) == pytest.approx(1 / 200)
    assert result.verdict.startswith("wrong at this observation: p-value 0.005; most in ")
    # In deviations of the posterior; the means over parameters are steadier than each alone.
    if shift:
        assert float(result.shift.mean()) * shift < 0
    else:
        assert float(torch.log(result.stretch).mean()) * (1 - width) > 0


def test_a_posterior_that_is_wrong_somewhere_flunks_there(gaussian, pairs):
    """Too narrow where the first entry is above one; the prior is as wide as 1.4 there and elsewhere."""
    theta, x = pairs(1500, seed=3, dims=1)
    posterior = gaussian(0.5, dims=1, where=lambda x: x[:, 0] > 1)
    result = lc2st(posterior, theta, x, torch.tensor([[2.0], [-1.5]]), seed=1, **QUICK)
    assert float(result.p_values[0]) <= 0.01 < float(result.p_values[1])
    assert result.verdict.startswith("wrong at observation 0: ")
    assert "the truth seems" in result.verdict
    assert "times as wide as the posterior" in result.verdicts[0]
    assert result.verdicts[1].startswith("no deviation at observation 1")


@pytest.mark.parametrize("entries", [3, 30])
def test_a_posterior_that_ignores_x_flunks(gaussian, pairs, entries):
    """It is calibrated, so that ranks do not see it."""
    theta, x = pairs(800, seed=4, entries=entries)
    x_obs = torch.cat([X_OBS, torch.zeros(entries - 3)])
    assert not lc2st(gaussian(blind=True), theta, x, x_obs, seed=1, **QUICK).passed


def test_boosted_trees_agree(gaussian, pairs):
    theta, x = pairs(300, seed=1)
    options = {"n": 200, "draws": 32, "classifier": "boosting", "exchanges": 19, "level": 0.05}
    assert lc2st(gaussian(), theta, x, X_OBS, **options).passed
    assert not lc2st(gaussian(0.5), theta, x, X_OBS, **options).passed


def test_what_the_classifier_sees_can_be_chosen(gaussian, pairs):
    theta, x = pairs(400, seed=1, entries=30)
    seen = lc2st(gaussian(0.5), theta, x, x[0], features=lambda x: x[:, :3], seed=1, **QUICK)
    assert not seen.passed


def test_dictionaries_and_missing_entries(gaussian, pairs):
    theta, x = pairs(400, seed=1)
    x_obs = {"x": X_OBS, "flag": torch.tensor(torch.nan)}
    flags = torch.where(torch.arange(400) % 2 == 0, 1.0, torch.nan)
    result = lc2st(gaussian(), theta, {"x": x, "flag": flags}, x_obs, missing=True, **QUICK)
    assert result.passed
    x[5] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 400 rows failed"):
        lc2st(gaussian(), theta, x, X_OBS, **QUICK)
    result = lc2st(gaussian(), theta, x, X_OBS, failed="drop", **QUICK)
    assert (result.failed, result.pairs) == (1, 399)


def test_weights_turn_draws_into_truths(gaussian, pairs):
    """A shift by 0.3 deviations, seen by 4,000 pairs: the weighted mean moves back by most of it."""
    theta, x = pairs(4000, seed=5, dims=1)
    result = lc2st(gaussian(shift=0.3, dims=1), theta, x, torch.zeros(1), n=2000, draws=64, exchanges=99, seed=1)
    assert -0.45 < float(result.shift) < -0.2
    assert float(result.shift_error) < 0.15
    weights = result.weights[0] / result.weights.sum()
    moved = (weights * result.samples[0, :, 0]).sum() - result.samples[0, :, 0].mean()
    assert float(moved / math.sqrt(0.5)) == pytest.approx(float(result.shift), abs=0.03)


def test_same_seed_same_result(gaussian, pairs):
    theta, x = pairs(100)
    first, second, third = (lc2st(gaussian(), theta, x, X_OBS, seed=seed, **QUICK) for seed in (1, 1, 2))
    assert torch.equal(first.null, second.null)
    assert not torch.equal(first.null, third.null)


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_promised(gaussian, pairs):
    """At level 0.1, over three observations at once."""
    runs, level, x_obs = 200, 0.1, torch.stack([X_OBS, -X_OBS, 2 * X_OBS])
    options = {"n": 100, "draws": 16, "exchanges": 49, "level": level}
    flunked = sum(not lc2st(gaussian(), *pairs(100, seed=s), x_obs, seed=s, **options).passed for s in range(runs))
    assert abs(flunked - runs * level) < 4 * math.sqrt(runs * level)


def test_wrong_input_is_named(gaussian, pairs):
    theta, x = pairs(50)
    with pytest.raises(ShapeError, match=r"x_obs: expected shape \(3\) or \(B, 3\), got \(2,\)"):
        lc2st(gaussian(), theta, x, torch.zeros(2))
    with pytest.raises(UsageError, match=r"exchanges: expected at least 99 for level 0\.01, got 20"):
        lc2st(gaussian(), theta, x, X_OBS, exchanges=20)
    with pytest.raises(UsageError, match="classifier: expected one of boosting, kernel"):
        lc2st(gaussian(), theta, x, X_OBS, classifier="mlp")
    with pytest.raises(UsageError, match="draws: expected at least 4"):
        lc2st(gaussian(), theta, x, X_OBS, draws=3)
    with pytest.raises(UsageError, match="n: expected at least 10"):
        lc2st(gaussian(), theta, x, X_OBS, n=5)
    with pytest.raises(UsageError, match="x_obs: expected at most 13 observations with 10000 draws each, got 50"):
        lc2st(gaussian(), theta, x, x, n=10_000)
    with pytest.raises(ShapeError, match="at least 10 pairs"):
        lc2st(gaussian(), theta[:9], x[:9], X_OBS)
    with pytest.raises(BudgetError, match=r"lc2st: 0 exchanges in 0 seconds, expected at least 99"):
        lc2st(gaussian(), theta, x, X_OBS, max_seconds=0)
