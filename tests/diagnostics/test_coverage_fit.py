"""Coverage over the parameter space: of sets that cover everywhere, and of those that do so only on the average."""

import math

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.diagnostics.coverage_fit import local_coverage


def truth(n=4000, seed=0):
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)).double()


def credibility(seed=1, n=4000):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("seed", range(5))
def test_sets_that_cover_everywhere_pass(seed):
    result = local_coverage(credibility(10 + seed), truth(seed=seed), ["mass", "rate"], level=1e-3)
    assert result.passed
    assert result.verdict.startswith("covers everywhere: 68% sets cover")
    assert ((result.coverage - result.levels).abs() < 4 * result.error).all()


def test_sets_that_cover_on_the_average_alone_flunk():
    """Too wide at one end of the second parameter and too narrow at the other: 68 % in all, 58 to 78 % along it."""
    theta = truth()
    covered = credibility() < 0.68 + 0.2 * (theta[:, 1] - 0.5)
    result = local_coverage(torch.where(covered, 0.1, 0.95), theta, ["mass", "rate"], levels=[0.68])
    assert result.coverage[0] == pytest.approx(0.68, abs=4 * math.sqrt(0.22 / 4000))
    assert not result.passed
    where, low, error = result.worst()
    assert where[0, 1] < 0.1
    assert low[0] == pytest.approx(0.58, abs=4 * float(error[0]))
    assert result.verdict.startswith("does not cover everywhere: 68% sets cover")
    assert "worst" in result.verdict
    assert "rate = " in result.verdict
    # The map itself, within four of its standard deviations at nearly all places.
    pull = (result.local[0] - (0.68 + 0.2 * (theta[:, 1] - 0.5))) / result.local_error[0]
    assert (pull.abs() < 4).double().mean() > 0.95


def test_sets_that_always_or_never_cover():
    result = local_coverage(torch.cat([torch.zeros(2000), torch.ones(2000)]), truth(), levels=[0.5])
    assert result.coverage[0] == 0.5
    everything = local_coverage(torch.zeros(4000), truth())
    assert not everything.passed
    assert torch.isfinite(everything.local).all()
    assert (everything.local > 0.98).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"credibility": torch.zeros(3, 1)}, ShapeError, r"expected credibility \(n,\)"),
        ({"credibility": torch.zeros(99)}, ShapeError, "equally many rows"),
        ({"theta": torch.zeros(100, 2) * torch.nan}, NonFiniteError, "theta"),
        ({"theta": torch.rand(100, 4)}, ShapeError, "expected at least 150 pairs for 4 parameters, got 100"),
        ({"names": ["a"]}, UsageError, "names: expected 2"),
        ({"levels": [0.0]}, UsageError, "levels"),
        ({"level": 2.0}, UsageError, "levels"),
    ],
)
def test_wrong_arguments(change, error, message):
    call = {"credibility": torch.zeros(100), "theta": torch.rand(100, 2), **change}
    with pytest.raises(error, match=message):
        local_coverage(**call)
