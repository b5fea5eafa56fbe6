"""Random points: the exact posterior passes, and twins are called by name."""

import math

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.diagnostics import tarp, tarp_from_samples

N, L = 400, 100


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_posterior_passes(gaussian, pairs, dims, seed):
    theta, x = pairs(N, seed=seed, dims=dims)
    result = tarp(gaussian(dims=dims), theta, x, draws=L, seed=seed, level=0.002)
    assert result.passed
    assert result.verdict.startswith("calibrated about random points")
    assert bool(((result.coverage - result.levels).abs() < 5 * result.error).all())
    assert result.statistic < result.band


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize(
    ("width", "shift", "kind"),
    [(0.6, 0.0, "over-confident"), (1.6, 0.0, "under-confident"), (1.0, 0.5, "biased"), (1.0, -0.5, "biased")],
)
def test_wrong_posteriors_flunk_and_are_called_by_name(gaussian, pairs, dims, width, shift, kind):
    result = tarp(gaussian(width, shift, dims=dims), *pairs(N, seed=1, dims=dims), draws=L, seed=1)
    assert not result.passed
    assert result.kind == kind
    assert result.p_value < 0.01
    if kind == "biased":
        assert bool((result.bias * shift < 0).all())
        assert ("above" if shift > 0 else "below") + " the truth in K_b" in result.verdict
    else:
        assert result.statistic > result.band
        assert result.verdict.startswith(f"{kind}: 68 % regions about random points cover")


def test_a_bias_is_found_in_its_parameter(pairs):
    theta, x = pairs(N, seed=2)
    draws = x.unsqueeze(1) / 2 + math.sqrt(0.5) * torch.randn(N, L, 3, generator=torch.Generator().manual_seed(0))
    draws[..., 1] += 0.4
    result = tarp_from_samples(draws, theta, ("a", "b", "c"), seed=1)
    assert result.verdict.startswith("biased: the posterior lies above the truth in b (")
    assert float(result.bias[1]) < -5
    assert bool((result.bias[[0, 2]].abs() < 4).all())


def test_narrow_directions_count_as_much_as_wide_ones(pairs):
    """A width that is wrong only across a tight correlation: hidden in the marginals, seen in whitened coordinates."""
    generator = torch.Generator().manual_seed(0)
    along, across = torch.randn(2, N, L + 1, generator=generator)
    across[:, 1:] *= 0.5  # the draws; the truth is the first
    members = torch.stack([along + 0.05 * across, along - 0.05 * across], -1)
    result = tarp_from_samples(members[:, 1:], members[:, 0], seed=1)
    assert result.kind == "over-confident"


def test_points_may_be_given(gaussian, pairs):
    theta, x = pairs(N, seed=3)
    for references in (torch.tensor([[3.0, 0.0, 0.0], [0.0, -3.0, 1.0]]), x.unsqueeze(1)):
        assert tarp(gaussian(), theta, x, draws=L, references=references).passed
        result = tarp(gaussian(0.5), theta, x, draws=L, references=references)
        assert result.kind == "over-confident"
        assert result.credibility.shape == (N, references.shape[-2])


def test_points_that_follow_x_see_a_posterior_that_ignores_x(gaussian, pairs):
    """The prior is calibrated; only reference points that depend on x tell (Lemos et al. 2023, section 3)."""
    theta, x = pairs(N, seed=3)
    assert tarp(gaussian(blind=True), theta, x, draws=L).passed
    assert not tarp(gaussian(blind=True), theta, x, draws=L, references=x.unsqueeze(1) / 2).passed


def test_few_draws_copies_and_constants(pairs):
    theta, x = pairs(N, seed=4)
    noise = torch.randn(N, 1, 3, generator=torch.Generator().manual_seed(0))
    assert tarp_from_samples(x.unsqueeze(1) / 2 + math.sqrt(0.5) * noise, theta).passed
    assert tarp_from_samples(torch.zeros(N, 5, 3), torch.zeros(N, 3)).passed


def test_same_seed_same_result(gaussian, pairs):
    first, second, third = (tarp(gaussian(), *pairs(50), draws=20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.credibility, second.credibility)
    assert first.p_value == second.p_value
    assert not torch.equal(first.credibility, third.credibility)


@pytest.mark.slow
@pytest.mark.parametrize("draws", [5, 40])
def test_false_alarms_are_as_rare_as_promised(gaussian, pairs, draws):
    runs, level = 300, 0.1
    flunked = sum(
        not tarp(gaussian(dims=2), *pairs(40, seed=seed, dims=2), draws=draws, seed=seed, level=level).passed
        for seed in range(runs)
    )
    assert 0 < flunked < runs * level + 4 * math.sqrt(runs * level)


def test_wrong_input_is_named(pairs):
    theta = pairs(20)[0]
    samples = torch.zeros(20, 5, 3)
    with pytest.raises(ShapeError, match=r"expected samples \(N, L, P\)"):
        tarp_from_samples(samples[:19], theta)
    with pytest.raises(ShapeError, match=r"references: expected a number, \(R, 3\) or \(20, R, 3\), got \(4, 2\)"):
        tarp_from_samples(samples, theta, references=torch.zeros(4, 2))
    with pytest.raises(NonFiniteError, match="references"):
        tarp_from_samples(samples, theta, references=torch.full((4, 3), torch.nan))
    with pytest.raises(UsageError, match="references: expected an integer"):
        tarp_from_samples(samples, theta, references=0)
    with pytest.raises(UsageError, match=r"level: expected at least 0\.0001"):
        tarp_from_samples(samples, theta, level=1e-6)
