"""Importance weights: known tails, and everything degenerate."""

import math

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError
from sbi_physics.diagnostics import effective_sample_size, importance_efficiency, pareto_k, pareto_smooth


def pareto_weights(k, n=20_000, seed=0):
    """Log-weights w = u**-k, whose tail has shape k."""
    u = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return -k * torch.log(u)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9, 1.3])
def test_k_of_a_pareto_distribution(k):
    """The estimate has a standard deviation of about (1 + k) / sqrt(tail); the tail is 3 sqrt(n) weights."""
    tail = 3 * math.sqrt(20_000)
    assert abs(float(pareto_k(pareto_weights(k))) - k) < 4 * (1 + k) / math.sqrt(tail)


def test_gaussian_proposals():
    """A proposal of width s for a unit Gaussian: weights bounded for s > 1, and k = 1 - s**2 for s < 1."""
    z = torch.randn(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def log_weights(s):
        return -0.5 * (s * z) ** 2 + 0.5 * z**2

    assert float(pareto_k(log_weights(1.2))) < 0.3
    assert float(pareto_k(log_weights(0.9))) < 0.5
    assert float(pareto_k(log_weights(0.4))) > 0.7


def test_smoothing_makes_estimates_steadier():
    """E[1] by self-normalised weights of w = u**-0.6 with E[u] known: smoothing lowers the scatter."""
    plain, smooth = [], []
    for seed in range(100):
        log_weights = pareto_weights(0.8, 1000, seed)
        u = torch.exp(-log_weights / 0.8)
        smoothed, _ = pareto_smooth(log_weights)
        plain.append(float((torch.softmax(log_weights, 0) * u).sum()))
        smooth.append(float((smoothed.exp() * u).sum()))
    assert torch.tensor(smooth).std() < torch.tensor(plain).std()


def test_smoothed_weights_are_normalised_and_ordered():
    log_weights = pareto_weights(0.6, 2000)
    smoothed, k = pareto_smooth(log_weights + 1000.0)
    assert smoothed.dtype == torch.float64
    assert float(smoothed.exp().sum()) == pytest.approx(1.0)
    assert torch.equal(log_weights.argsort(), smoothed.argsort())
    assert float(k) == pytest.approx(float(pareto_k(log_weights)), abs=1e-9)


def test_batches_are_rows():
    rows = torch.stack([pareto_weights(k, 500, seed=3) for k in (0.2, 0.9)])
    smoothed, k = pareto_smooth(rows)
    assert smoothed.shape == (2, 500)
    assert k.shape == (2,)
    assert float(k[1]) == float(pareto_k(rows[1]))
    assert effective_sample_size(rows).shape == (2,)
    assert float(effective_sample_size(rows)[0]) == pytest.approx(float(effective_sample_size(rows[0])))


def test_effective_sample_size_by_hand():
    assert float(effective_sample_size(torch.log(torch.tensor([1.0, 1.0, 2.0])))) == pytest.approx(16 / 6)
    assert float(importance_efficiency(torch.zeros(10))) == pytest.approx(1.0)
    assert float(effective_sample_size(torch.tensor([-1e6, -1e6 + 1, -torch.inf]))) < 2


def test_zero_weights_stay_zero_and_do_not_move_k():
    log_weights = pareto_weights(0.5, 2000)
    padded = torch.cat([log_weights, torch.full((500,), -torch.inf)])
    smoothed, k = pareto_smooth(padded)
    assert float(k) == float(pareto_k(log_weights))
    assert bool((smoothed[2000:] == -torch.inf).all())
    assert float(importance_efficiency(padded)) == pytest.approx(0.8 * float(importance_efficiency(log_weights)))


class TestDegenerate:
    def test_equal_weights_are_bounded(self):
        smoothed, k = pareto_smooth(torch.full((1000,), -3.0))
        assert float(k) == 0.0
        torch.testing.assert_close(smoothed.exp(), torch.full((1000,), 1e-3, dtype=torch.float64))

    def test_equal_largest_weights_are_bounded(self):
        assert float(pareto_k(pareto_weights(0.9, 1000).clamp(max=0.1))) == 0.0

    def test_a_single_finite_weight_is_not_to_be_trusted(self):
        log_weights = torch.full((1000,), -torch.inf)
        log_weights[3] = 2.0
        smoothed, k = pareto_smooth(log_weights)
        assert float(k) == math.inf
        assert float(smoothed[3]) == 0.0
        assert float(effective_sample_size(log_weights)) == pytest.approx(1.0)

    @pytest.mark.parametrize("n", [1, 2, 5, 24, 25, 26, 60])
    def test_few_weights(self, n):
        smoothed, k = pareto_smooth(pareto_weights(0.3, n))
        assert float(smoothed.exp().sum()) == pytest.approx(1.0)
        assert (float(k) == math.inf) == (n < 25)

    def test_one_weight_far_above_the_rest(self):
        log_weights = torch.zeros(1000)
        log_weights[0] = 50.0
        assert float(pareto_k(log_weights)) > 0.7

    def test_no_weight_at_all(self):
        for function in (effective_sample_size, importance_efficiency, pareto_k, pareto_smooth):
            with pytest.raises(NonFiniteError, match="minus infinity only"):
                function(torch.full((100,), -torch.inf))
            with pytest.raises(NonFiniteError, match="got 1 NaN or plus infinity"):
                function(torch.tensor([0.0, torch.nan]))
            with pytest.raises(NonFiniteError, match="got 1 NaN or plus infinity"):
                function(torch.tensor([0.0, torch.inf]))
            with pytest.raises(ShapeError, match="log_weights"):
                function(torch.zeros(0))
