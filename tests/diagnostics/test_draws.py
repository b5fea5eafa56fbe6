"""One sampling pass: chunks, failures, dictionaries, densities."""

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.samples import Samples
from sbi_physics.diagnostics import coverage, posterior_draws, sbc


def test_many_observations_are_sampled_together(gaussian, pairs):
    posterior = gaussian()
    made = posterior_draws(posterior, *pairs(1000), draws=256)
    assert made.samples.shape == (1000, 256, 3)
    assert made.names == ("K_b", "gamma", "log_jitter")
    assert posterior.calls == [1000]  # 0.77 million numbers: one call


def test_chunks_shrink_with_what_they_hold(gaussian, pairs):
    posterior = gaussian(dims=1)
    posterior_draws(posterior, *pairs(3000, dims=1), draws=1000)
    assert posterior.calls == [1048, 1048, 904]
    posterior = gaussian(dims=1)
    posterior_draws(posterior, *pairs(30, dims=1, entries=100_000), draws=10)
    assert posterior.calls == [10, 10, 10]
    posterior = gaussian(dims=1)
    posterior_draws(posterior, *pairs(30, dims=1), draws=10, chunk=25)
    assert posterior.calls == [25, 5]


def test_log_densities_belong_to_their_draws(gaussian, pairs):
    theta, x = pairs(21)
    posterior = gaussian()
    made = posterior_draws(posterior, theta, x, draws=7, chunk=10, log_prob=True)
    for i in (0, 20):
        torch.testing.assert_close(made.log_prob_samples[i], posterior.log_prob(made.samples[i], x[i : i + 1]).double())
    torch.testing.assert_close(made.log_prob_theta, posterior.log_prob(theta, x).double())


def test_failed_simulations_are_refused_or_left_out(gaussian, pairs):
    theta, x = pairs(50)
    x[3, 1], x[7] = torch.nan, torch.inf
    with pytest.raises(NonFiniteError, match=r"2 of 50 rows failed"):
        posterior_draws(gaussian(), theta, x)
    made = posterior_draws(gaussian(), theta, x, failed="drop")
    assert made.failed == 2
    good = [i for i in range(50) if i not in (3, 7)]
    torch.testing.assert_close(made.theta, theta[good])
    for check in (sbc, coverage):
        result = check(gaussian(), theta, x, failed="drop", draws=50)
        assert result.failed == 2
        assert result.verdict.endswith("(2 failed simulations left out)")


def test_leaving_out_what_fails_does_not_change_the_verdict(gaussian, pairs):
    """Large x fail: the theta that are left are not from the prior, and yet the exact posterior passes."""
    theta, x = pairs(2000, seed=4)
    x[x[:, 0] > 0.5] = torch.nan
    result = sbc(gaussian(), theta, x, failed="drop", seed=1)
    assert result.failed > 500
    assert result.passed, result.verdict


def test_dictionaries_are_cut_like_arrays(gaussian, pairs):
    theta, x = pairs(40)
    plain = posterior_draws(gaussian(), theta, x, draws=5, chunk=16)
    named = posterior_draws(gaussian(), theta, {"x": x, "other": torch.zeros(40)}, draws=5, chunk=16)
    assert torch.equal(plain.samples, named.samples)


def test_missing_entries_are_for_the_posterior_to_handle(gaussian, pairs):
    theta, x = pairs(20, entries=5)
    x[:, 4] = torch.nan
    assert posterior_draws(gaussian(), theta, x, missing=True).failed == 0


def test_wrong_posteriors_are_named(gaussian, pairs):
    class Weighted(gaussian):
        def sample(self, n, x_obs, *, seed):
            samples = super().sample(n, x_obs, seed=seed)
            return Samples(samples.values, samples.names, log_weights=torch.zeros(samples.values.shape[:-1]))

    class Short(gaussian):
        def sample(self, n, x_obs, *, seed):
            return super().sample(n, x_obs, seed=seed).values[:3]

    with pytest.raises(UsageError, match="equally weighted draws"):
        posterior_draws(Weighted(), *pairs(20))
    with pytest.raises(ShapeError, match="posterior draws: expected draws for 20 observations, got 3"):
        posterior_draws(Short(), *pairs(20))
    with pytest.raises(ShapeError, match="posterior draws"):
        posterior_draws(gaussian(dims=2), *pairs(20))
    with pytest.raises(ShapeError, match=r"theta: expected shape \(N, P\), got \(20,\)"):
        posterior_draws(gaussian(), pairs(20)[0][:, 0], pairs(20)[1])
    with pytest.raises(UsageError, match="chunk"):
        posterior_draws(gaussian(), *pairs(20), chunk=0)
