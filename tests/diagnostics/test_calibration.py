"""Calibration of posteriors that are known to be right, and of twins that must flunk."""

import math

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.samples import Samples
from sbi_physics.diagnostics import (
    coverage,
    expected_coverage,
    highest_density_coverage,
    sbc,
    sbc_from_samples,
    sbc_ranks,
)

N, L, P = 400, 200, 3
LEVEL = 1e-4
NAMES = ("K_b", "gamma", "log_jitter")


class GaussianPosterior:
    """theta ~ N(0, 1), x ~ N(theta, 1): the posterior is N(x / 2, 1 / 2), here with a width and shift that err."""

    def __init__(self, width=1.0, shift=0.0, as_samples=True):
        self.width, self.shift, self.as_samples = width, shift, as_samples
        self.calls = []

    def sample(self, n, x_obs, *, seed):
        self.calls.append(len(x_obs))
        noise = torch.randn(len(x_obs), n, P, generator=torch.Generator().manual_seed(seed % 2**31))
        deviation = math.sqrt(0.5)
        values = x_obs[:, None] / 2 + self.shift * deviation + self.width * deviation * noise
        values = values[0] if len(x_obs) == 1 else values
        return Samples(values, NAMES) if self.as_samples else values


def pairs(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(n, P, generator=generator)
    return theta, theta + torch.randn(n, P, generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_exact_posterior_passes(seed):
    theta, x = pairs(seed=seed)
    result = sbc(GaussianPosterior(), theta, x, draws=L, seed=seed, level=LEVEL)
    assert result.passed
    assert result.verdict.startswith("calibrated")
    assert bool(((result.coverage_68 - 0.6827).abs() < 4 * math.sqrt(0.6827 * 0.3173 / N)).all())
    assert coverage(GaussianPosterior(), theta, x, draws=L, seed=seed, level=LEVEL).passed


@pytest.mark.parametrize(
    ("width", "shift", "kind"),
    [
        (0.7, 0.0, "over-confident"),
        (1.4, 0.0, "under-confident"),
        (1.0, -0.5, "biased low"),
        (1.0, 0.5, "biased high"),
    ],
)
def test_wrong_posteriors_flunk_and_are_called_by_name(width, shift, kind):
    theta, x = pairs(seed=1)
    result = sbc(GaussianPosterior(width, shift), theta, x, draws=L, seed=1, level=LEVEL)
    assert not result.passed
    assert result.kinds == (kind,) * P
    assert result.verdicts[0].startswith(f"{kind} in K_b: ")


def test_verdict_states_the_coverage_with_its_error():
    theta, x = pairs(2000, seed=1)
    result = sbc(GaussianPosterior(0.7), theta, x, draws=100, seed=1)
    expected = math.erf(0.7 / math.sqrt(2))
    assert bool(((result.coverage_68 - expected).abs() < 5 * result.coverage_68_error).all())
    assert f"68 % intervals cover {100 * float(result.coverage_68[0]):.0f} ± 1 %" in result.verdict
    assert result.verdict.count("over-confident") == P


@pytest.mark.parametrize("width", [0.7, 1.4])
def test_coverage_of_wrong_widths(width):
    theta, x = pairs(2000, seed=3)
    result = coverage(GaussianPosterior(width), theta, x, draws=100, levels=[0.5, 0.9], seed=1)
    assert not result.passed
    assert ("over" if width < 1 else "under") + "-confident in K_b: 68 % regions cover" in result.verdict
    quantile = torch.special.ndtri(torch.tensor([0.75, 0.95], dtype=torch.float64))
    expected = torch.erf(width * quantile / math.sqrt(2))[:, None]
    assert bool(((result.coverage - expected).abs() < 5 * result.error).all())


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_promised():
    """At level 0.05, a right posterior flunks in 5 % of checks; the union bound makes it somewhat less."""
    flunked = 0
    for seed in range(200):
        theta, x = pairs(100, seed=seed)
        flunked += not sbc(GaussianPosterior(), theta, x, draws=50, seed=seed, level=0.05).passed
    assert flunked < 200 * 0.05 + 4 * math.sqrt(200 * 0.05 * 0.95)
    assert flunked > 0


class TestHighestDensity:
    def log_probs(self, width, n=1000):
        theta, x = pairs(n, seed=4)
        deviation = width * math.sqrt(0.5)
        posterior = torch.distributions.Normal(x / 2, deviation)
        draws = GaussianPosterior(width).sample(L, x, seed=2).values
        return posterior.log_prob(draws.transpose(0, 1)).sum(-1).T, posterior.log_prob(theta).sum(-1)

    def test_exact_density_passes(self):
        result = highest_density_coverage(*self.log_probs(1.0), seed=1)
        assert result.passed
        assert bool(((result.coverage[:, 0] - result.levels).abs() < 5 * result.error[:, 0]).all())

    @pytest.mark.parametrize(("width", "kind"), [(0.7, "over"), (1.4, "under")])
    def test_wrong_widths_flunk(self, width, kind):
        result = highest_density_coverage(*self.log_probs(width), seed=1)
        assert not result.passed
        assert result.verdict.startswith(f"{kind}-confident in joint: 68 % regions cover")

    def test_truth_outside_the_support_counts_as_never_covered(self):
        drawn, truth = self.log_probs(1.0)
        result = highest_density_coverage(drawn, torch.full_like(truth, -torch.inf))
        assert float(result.coverage.max()) == 0.0
        assert not result.passed


class TestRanks:
    def test_by_hand(self):
        samples = torch.arange(4.0).reshape(1, 4, 1).expand(10, 4, 1)
        theta = torch.tensor([-1.0, 0.5, 1.5, 2.5, 3.5, 9.0, -2.0, 0.1, 1.1, 2.2]).reshape(10, 1)
        assert sbc_ranks(samples, theta)[:, 0].tolist() == [0, 1, 2, 3, 4, 4, 0, 1, 2, 3]

    def test_ties_are_spread_evenly(self):
        ranks = sbc_ranks(torch.zeros(5000, 4, 1), torch.zeros(5000, 1), seed=1)
        counts = torch.bincount(ranks[:, 0], minlength=5)
        assert len(counts) == 5
        assert bool(((counts - 1000).abs() < 5 * math.sqrt(1000)).all())

    def test_few_draws_stay_uniform(self):
        """With a single draw the ranks are 0 and 1; the random part keeps the test exact."""
        theta, x = pairs(2000, seed=5)
        assert sbc(GaussianPosterior(), theta, x, draws=1, seed=1).passed


class TestSampling:
    def test_chunks_cover_all_observations(self):
        theta, x = pairs(65)
        posterior = GaussianPosterior()
        result = sbc(posterior, theta, x, draws=20, chunk=64)
        assert posterior.calls == [64, 1]
        assert result.ranks.shape == (65, P)
        assert result.names == NAMES

    def test_plain_tensors_will_do(self):
        theta, x = pairs(50)
        result = sbc(GaussianPosterior(as_samples=False), theta, x, draws=20)
        assert result.names == ("theta_0", "theta_1", "theta_2")

    def test_same_seed_same_result(self):
        theta, x = pairs(50)
        first, second = (sbc(GaussianPosterior(), theta, x, draws=20, seed=3) for _ in range(2))
        assert torch.equal(first.p_values, second.p_values)


def test_wrong_input_is_named():
    theta, x = pairs(20)
    samples = torch.zeros(20, 5, P)
    with pytest.raises(ShapeError, match=r"expected samples \(N, L, P\) and theta \(N, P\), got"):
        sbc_from_samples(samples[:19], theta)
    with pytest.raises(ShapeError, match="at least 10 pairs"):
        sbc_from_samples(samples[:5], theta[:5])
    with pytest.raises(UsageError, match="names: expected 3"):
        sbc_from_samples(samples, theta, ["a"])
    with pytest.raises(UsageError, match="level"):
        sbc_from_samples(samples, theta, level=2.0)
    with pytest.raises(UsageError, match="levels"):
        expected_coverage(samples, theta, levels=[0.5, 1.0])
    x[2, 1] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"x: expected finite numbers, but 1 of 20 rows failed.*failed=\"drop\" leaves"
    ):
        sbc(GaussianPosterior(), theta, x)
    with pytest.raises(NonFiniteError, match="samples: expected finite"):
        sbc_from_samples(samples * torch.nan, theta)
    with pytest.raises(ShapeError, match="equally many rows"):
        sbc(GaussianPosterior(), theta, pairs(19)[1])
