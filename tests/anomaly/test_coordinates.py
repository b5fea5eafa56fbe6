"""Scores in two coordinate systems: exact densities say how much they must differ."""

import pytest
import torch
from scipy.stats import spearmanr

from sbi_physics.anomaly.coordinates import coordinate_caveat
from sbi_physics.anomaly.outlier import OutlierDetector
from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError


class Exact:
    """Minus the logarithm of a known density."""

    def __init__(self, minus_log_density):
        self._minus_log_density = minus_log_density

    def fit(self, features, *, weights=None, seed=0, progress=True):
        return self

    def score(self, features):
        return self._minus_log_density(features)


def exponential(n=4_000, seed=0):
    uniform = torch.rand((n, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -torch.log1p(-uniform)


def kernel():
    return OutlierDetector("kernel")


def test_a_known_density_and_its_transform():
    """x of density exp(-x) and ln x: minus the logarithms are x and x - ln x, summed over both numbers."""
    scorers = iter([Exact(lambda x: x.sum(-1)), Exact(lambda y: (y.exp() - y).sum(-1))])
    found = coordinate_caveat(lambda: next(scorers), exponential(), torch.log, share=0.05)
    x = exponential(200_000, seed=1)
    first, second = x.sum(-1), (x - x.log()).sum(-1)
    most = 10_000
    overlap = len(set(first.topk(most).indices.tolist()) & set(second.topk(most).indices.tolist())) / most
    assert found.events == 2_000
    assert found.rank_correlation == pytest.approx(float(spearmanr(first, second).statistic), abs=0.1)
    assert found.overlap == pytest.approx(overlap, abs=0.2)
    assert found.overlap < 0.8
    assert "are so in both coordinate systems (by chance 5.0%)" in str(found)


def test_scaling_and_rotation_do_not_matter_to_a_kernel_density():
    """The twin: with a constant Jacobian nothing changes."""
    turn = torch.tensor([[3.0, 1.0], [-2.0, 5.0]], dtype=torch.float64)
    found = coordinate_caveat(kernel, exponential(), lambda x: x @ turn + 7, share=0.05)
    assert found.rank_correlation > 0.999
    assert found.overlap > 0.95


@pytest.mark.parametrize("detector", [kernel, lambda: OutlierDetector("nsf", config={"epochs": 8, "batch_size": 128})])
def test_a_logarithm_changes_what_learned_densities_find(detector):
    found = coordinate_caveat(detector, exponential(), torch.log, share=0.05, progress=False)
    # Of the exact densities they are -0.21 and 0.16.
    assert found.rank_correlation < 0.4
    assert found.overlap < 0.4


def test_coordinates_that_have_nothing_to_do_with_each_other():
    scorers = iter([Exact(lambda x: x[:, 0]), Exact(lambda x: x[:, 1])])
    found = coordinate_caveat(lambda: next(scorers), exponential(), lambda x: x, share=0.1)
    assert abs(found.rank_correlation) < 5 / 2_000**0.5
    assert abs(found.overlap - 0.1) < 5 * (0.09 / 200) ** 0.5


def test_wrong_use_is_named():
    x = exponential(100)
    with pytest.raises(UsageError, match=r"share: expected a number in \(0, 1\), got 1\.0"):
        coordinate_caveat(kernel, x, torch.log, share=1.0)
    with pytest.raises(UsageError, match=r"share: 0\.001 of the 50 events scored is less than one"):
        coordinate_caveat(kernel, x, torch.log, share=0.001)
    with pytest.raises(NonFiniteError, match="transform: expected finite numbers"):
        coordinate_caveat(kernel, x, lambda x: torch.log(x - 1))
    with pytest.raises(ShapeError, match=r"transform: expected shape \(100, D\), got \(50, 2\)"):
        coordinate_caveat(kernel, x, lambda x: x[:50])
    with pytest.raises(ShapeError, match="expected equally many rows, got features: 100, weights: 99"):
        coordinate_caveat(kernel, x, torch.log, share=0.1, weights=torch.ones(99))
    with pytest.raises(ShapeError, match=r"features: expected shape \(N, D\), got \(100,\)"):
        coordinate_caveat(kernel, x[:, 0], torch.log)
