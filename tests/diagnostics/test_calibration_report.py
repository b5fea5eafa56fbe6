"""All checks from one pass: the same numbers as one by one, and the same verdicts."""

import pytest
import torch

from sbi_physics.core.errors import UsageError
from sbi_physics.diagnostics import calibrate, coverage, sbc


def test_exact_posterior_passes_and_twins_flunk(gaussian, pairs):
    theta, x = pairs(400, seed=1)
    result = calibrate(gaussian(), theta, x, draws=100, seed=2)
    assert result.passed
    assert result.verdict == "calibrated over 400 simulations: ranks, intervals, random points, highest density"
    for width, kind in ((0.6, "over"), (1.6, "under")):
        result = calibrate(gaussian(width), theta, x, draws=100, seed=2)
        assert not any(check.passed for check in result.checks.values())
        for check in ("ranks", "random points", "highest density"):
            assert f"{check}: {kind}-confident" in result.verdict
    result = calibrate(gaussian(shift=0.5), theta, x, draws=100, seed=2)
    assert "ranks: biased high in K_b" in result.verdict
    assert "random points: biased: the posterior lies above the truth" in result.verdict


def test_it_is_the_checks_one_by_one_in_a_single_pass(gaussian, pairs):
    theta, x = pairs(100, seed=1)
    posterior = gaussian()
    result = calibrate(posterior, theta, x, draws=50, seed=2)
    assert posterior.calls == [100]
    assert torch.equal(result.sbc.ranks, sbc(gaussian(), theta, x, draws=50, seed=2).ranks)
    assert torch.equal(result.coverage.coverage, coverage(gaussian(), theta, x, draws=50, seed=2).coverage)
    assert torch.equal(calibrate(gaussian(), theta, x, draws=50, seed=2).tarp.credibility, result.tarp.credibility)


def test_what_barely_passes_is_not_called_calibrated(gaussian, pairs):
    """Over many parameters the bar is high; a p-value between it and 1 % is said."""
    theta, x = pairs(400, seed=1)
    seen = set()
    for width in (1.0, 1.04, 1.08, 1.12, 1.16, 1.2, 1.24):
        result = calibrate(gaussian(width), theta, x, draws=100, seed=2)
        for p, verdict, kind in zip(result.sbc.p_values.tolist(), result.sbc.verdicts, result.sbc.kinds, strict=True):
            borderline = kind == "calibrated" and p < 0.01
            assert verdict.startswith("borderline in") == borderline
            assert ("p-value" in verdict) == borderline
            seen.add(borderline)
            if result.passed:
                assert (verdict in result.verdict) == borderline
    assert seen == {True, False}


def test_a_posterior_without_density(pairs, gaussian):
    class Sampler:
        def sample(self, n, x_obs, *, seed):
            return gaussian().sample(n, x_obs, seed=seed).values

    theta, x = pairs(50)
    result = calibrate(Sampler(), theta, x, draws=20)
    assert result.highest_density is None
    assert "highest density" not in result.checks
    assert calibrate(gaussian(), theta, x, draws=20, highest_density=False).highest_density is None
    with pytest.raises(UsageError, match="highest_density: expected a posterior with log_prob"):
        calibrate(Sampler(), theta, x, highest_density=True)


def test_failed_simulations_are_counted_once(gaussian, pairs):
    theta, x = pairs(50)
    x[7] = torch.nan
    result = calibrate(gaussian(), theta, x, draws=20, failed="drop")
    assert result.failed == 1
    assert result.verdict.count("failed simulation") == 1


def test_conservative_is_too_wide_and_nothing_else(gaussian, pairs):
    theta, x = pairs(400, seed=1)
    posteriors = {1.0: gaussian(), 1.6: gaussian(1.6), 0.6: gaussian(0.6)}
    found = {width: calibrate(each, theta, x, draws=100, seed=2).conservative for width, each in posteriors.items()}
    assert found == {1.0: False, 1.6: True, 0.6: False}
    assert not calibrate(gaussian(1.6, shift=0.8), theta, x, draws=100, seed=2).conservative
