"""Observations inside and outside the training simulations."""

import math

import pytest
import torch
from scipy.stats import ks_2samp

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.diagnostics import misspecification

MIX = torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.3, -2.0], [0.0, 0.0, 5.0]])


def simulations(n, seed=0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) @ MIX


def test_places_among_held_out_simulations_are_uniform():
    """The law behind the p-value, for each of the three measures."""
    result = misspecification(simulations(4000), simulations(1000, seed=1), seed=2)
    for found, held_out in (
        (result.distance, result.held_out_distance),
        (result.neighbour_distance, result.held_out_neighbour_distance),
        (result.largest_residual, result.held_out_largest_residual),
    ):
        assert ks_2samp(found.numpy(), held_out[0].numpy()).pvalue > 1e-3
    for level in (0.01, 0.1):
        share = float((result.p_values <= level).double().mean())
        assert share < level + 4 * math.sqrt(level * (1 / 1000 + 3 / 2000))


def test_observation_of_the_simulator_lies_inside():
    result = misspecification(simulations(2000), simulations(1, seed=1)[0])
    assert result.passed
    assert result.verdict.startswith("the observation lies within the training simulations: ")
    assert float(result.p_values) > 0.05


@pytest.mark.parametrize(
    ("x_obs", "measure"),
    [
        ([30.0, 30.0, 30.0], "distance"),
        ([1.0, -1.0, 0.0], "largest residual"),  # each entry is usual, their correlation is not
        ([0.0, 5.0, 0.0], "largest residual"),
    ],
)
def test_far_observations_lie_outside_and_the_verdict_says_how_far(x_obs, measure):
    result = misspecification(simulations(2000), torch.tensor(x_obs))
    assert not result.passed
    assert result.verdict.startswith("the observation lies outside the training simulations: ")
    assert measure in result.verdict
    assert "99 % of simulations are within" in result.verdict
    assert result.verdict.endswith("the posterior extrapolates there")
    assert "most unusual: x[" in result.verdict


def test_a_hole_in_the_simulations_is_outside():
    """On a ring no coordinate of the centre is unusual; only neighbours tell."""
    generator = torch.Generator().manual_seed(0)
    angle, radius = (
        2 * math.pi * torch.rand(2000, generator=generator),
        1 + 0.05 * torch.randn(2000, generator=generator),
    )
    ring = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)
    result = misspecification(ring, torch.zeros(2))
    assert not result.passed
    assert "distance to the nearest simulations" in result.verdict
    assert misspecification(ring, torch.tensor([1.0, 0.0])).passed


def test_one_bad_channel_of_many_is_named():
    """500 pixels, as many as there are simulations for the cloud: one pixel is off by 10 sigma."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1001, 1, 1, generator=generator)
    images = common + torch.randn(1001, 20, 25, generator=generator)
    x_obs = images[-1].clone()
    assert misspecification(images[:1000], x_obs).passed
    x_obs[3, 4] += 10.0
    result = misspecification(images[:1000], x_obs)
    assert not result.passed
    assert "largest residual" in result.verdict
    assert "most unusual: x[3, 4] (+" in result.verdict


def test_several_observations_are_told_apart():
    x_obs = simulations(5, seed=1)
    x_obs[3] += 20.0
    result = misspecification(simulations(3000), x_obs)
    assert result.outside.tolist() == [False, False, False, True, False]
    assert result.verdict.startswith("1 of 5 observations lie outside")
    assert ": 3 (" in result.verdict
    assert misspecification(simulations(3000), x_obs[:3]).verdict.startswith("all 3 observations lie within")


def test_constant_features_count_only_if_they_differ():
    x = torch.cat([simulations(1000), torch.full((1000, 1), 4.0)], 1)
    x_obs = torch.tensor([0.1, 0.2, 0.3, 4.0])
    assert misspecification(x, x_obs).passed
    x_obs[3] = 4.5
    result = misspecification(x, x_obs)
    assert not result.passed
    assert "x[3] (never varies)" in result.verdict
    assert misspecification(torch.full((1000, 2), 1.0), torch.ones(2)).passed


def test_missing_entries_are_left_out():
    x, x_obs = simulations(2000), simulations(1, seed=1)[0]
    x_obs[1] = torch.nan
    result = misspecification(x, x_obs)
    assert result.passed
    assert torch.isnan(result.residuals[0, 1])
    alone = misspecification(x[:, [0, 2]], x_obs[[0, 2]])
    torch.testing.assert_close(result.distance, alone.distance)
    several = torch.stack([x_obs, torch.tensor([50.0, torch.nan, 0.0]), simulations(1, seed=2)[0]])
    assert misspecification(x, several).outside.tolist() == [False, True, False]
    x[torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) < 0.05] = torch.nan
    assert misspecification(x, several, failed="drop").outside.tolist() == [False, True, False]


def test_entries_that_no_simulation_has_are_outside():
    x = simulations(1000)
    x[:, 2] = torch.nan
    assert misspecification(x, torch.tensor([0.0, 0.0, torch.nan])).passed
    assert not misspecification(x, torch.tensor([0.0, 0.0, 1.0])).passed
    assert not misspecification(x, torch.tensor([torch.nan, torch.nan, 1.0])).passed


def test_units_do_not_matter():
    """Gravitational-wave strains beside Julian dates."""
    units, zero = torch.tensor([1e-21, 1.0, 1.0], dtype=torch.float64), torch.tensor([0.0, 0.0, 2_454_833.0])
    x, x_obs = simulations(1000).double(), torch.tensor([0.5, 0.1, 0.2], dtype=torch.float64)
    plain, scaled = misspecification(x, x_obs), misspecification(x * units + zero, x_obs * units + zero)
    torch.testing.assert_close(scaled.distance, plain.distance, rtol=1e-3, atol=0.0)
    assert scaled.passed
    assert not misspecification(x * units + zero, (x_obs + torch.tensor([20.0, 0.0, 0.0])) * units + zero).passed


def test_dictionaries_and_features():
    x = {"spectrum": simulations(1000), "energy": torch.randn(1000, generator=torch.Generator().manual_seed(3))}
    x_obs = {"spectrum": torch.zeros(3), "energy": torch.tensor(9.0)}
    result = misspecification(x, x_obs)
    assert result.names == ("spectrum[0]", "spectrum[1]", "spectrum[2]", "energy")
    assert "energy (+9" in result.verdict or "energy (+8" in result.verdict
    result = misspecification(x, x_obs, features=lambda x: x["spectrum"].square())
    assert result.passed
    assert result.names == ("feature 0", "feature 1", "feature 2")


def test_failed_simulations():
    x = simulations(1000)
    x[4] = torch.nan
    x[6, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"x_train: .*2 of 1000 rows failed"):
        misspecification(x, torch.zeros(3))
    result = misspecification(x, torch.zeros(3), failed="drop")
    assert result.failed == 2
    assert "(2 failed simulations left out)" in result.verdict


def test_wrong_input_is_named():
    x = simulations(1000)
    with pytest.raises(ShapeError, match=r"x_obs: expected shape \(3\) or \(B, 3\), got \(4,\)"):
        misspecification(x, torch.zeros(4))
    with pytest.raises(ShapeError, match="x_obs: expected a dictionary of a, got an array"):
        misspecification({"a": x}, torch.zeros(3))
    with pytest.raises(NonFiniteError, match="x_obs: expected numbers, or NaN for missing entries"):
        misspecification(x, torch.full((3,), torch.nan))
    with pytest.raises(
        UsageError, match=r"expected at least 300 simulations to hold out for level 0\.01, got 50; raise the level"
    ):
        misspecification(x[:100], torch.zeros(3))
    with pytest.raises(UsageError, match="held_out: expected at most 995 of 1000"):
        misspecification(x, torch.zeros(3), held_out=999)
    with pytest.raises(ShapeError, match="features: expected shape"):
        misspecification(x, torch.zeros(3), features=lambda x: x[:2])
