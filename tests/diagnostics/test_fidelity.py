"""What is watched while generators train, against cases whose answer is known."""

import pytest
import torch

from sbi_physics.core.errors import ShapeError
from sbi_physics.diagnostics.fidelity import kernel_distance, neighbour_coverage, spread_ratio


def normal(n, seed, dims=2):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed))


def test_the_distance_is_zero_for_equal_sets_and_small_for_equal_distributions():
    n = 1000
    real, other = normal(n, 0), normal(n, 1)
    assert kernel_distance(real, real) == pytest.approx(0.0, abs=1e-12)
    same, shifted = kernel_distance(real, other), kernel_distance(real, other + 0.3)
    # E MMD^2 = (1/n + 1/m)(4 - E k) for four kernels of height one.
    assert 0 < same < 2 * 4 * 2 / n
    assert shifted > 3 * same
    assert kernel_distance(real, 0.7 * other) > 3 * same


def test_weights_undo_a_shift():
    """Events of N(0, 1) weighted by the ratio to N(0.5, 1) are nearer to it than unweighted ones."""
    real, generated = normal(1000, 0, 1), normal(1000, 1, 1) + 0.5
    weights = torch.exp(0.5 * real[:, 0] - 0.125)
    assert kernel_distance(real, generated, weights) < 0.2 * kernel_distance(real, generated)
    # A pair of events of opposite weight at one place counts as nothing.
    doubled = torch.cat([real, real[:1], real[:1]])
    signed = torch.cat([weights, torch.tensor([5.0, -5.0])])
    expected = kernel_distance(real, generated, weights)
    assert kernel_distance(doubled, generated, signed) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_coverage_of_equal_distributions(neighbours):
    """1 - prod (n - i) / (2n - i), i = 1 ... k, within five binomial errors (Naeem et al. 2020, Lemma 2)."""
    n = 2000
    expected = 1.0
    for i in range(1, neighbours + 1):
        expected *= (n - i) / (2 * n - i)
    expected = 1 - expected
    found = neighbour_coverage(normal(n, 2), normal(n, 3), neighbours=neighbours)
    # Neighbours share what covers them: the error is that of fewer events.
    assert abs(found - expected) < 5 * (neighbours * expected * (1 - expected) / n) ** 0.5


def test_coverage_sees_a_lost_mode():
    modes = torch.tensor([[-4.0, 0.0], [4.0, 0.0]])
    real = normal(1000, 0) + modes[torch.arange(1000) % 2]
    assert neighbour_coverage(real, normal(1000, 1) + modes[0]) < 0.55
    weights = (torch.arange(1000) % 2 == 0).double() - 0.2
    assert neighbour_coverage(real, normal(1000, 1) + modes[0], weights=weights) > 0.9
    assert neighbour_coverage(real, torch.zeros(1000, 2)) < 0.05


def test_the_spread_ratio_is_that_of_the_widths():
    n = 4000
    context = 5 * normal(n, 0)
    real = context + normal(n, 1) * torch.tensor([1.0, 0.5])
    draws = torch.stack([context + 0.5 * normal(n, 10 + i) for i in range(4)])
    expected = torch.tensor([(0.25 / (1 + 0.25 / 4) * 1.25) ** 0.5, 1.0]).double()
    torch.testing.assert_close(spread_ratio(real, draws), expected, rtol=5 * (1 / n) ** 0.5, atol=0)
    assert torch.equal(spread_ratio(real, context.expand(4, n, 2)), torch.zeros(2).double())
    assert torch.equal(spread_ratio(real, draws, torch.full((n,), 3.0)), spread_ratio(real, draws, torch.ones(n)))


def test_wrong_shapes_are_named():
    with pytest.raises(ShapeError, match="generated: expected shape"):
        kernel_distance(normal(5, 0), normal(5, 0, 3))
    with pytest.raises(ShapeError, match="real: expected at least 6 rows"):
        neighbour_coverage(normal(5, 0), normal(5, 0))
    with pytest.raises(ShapeError, match="draws: expected shape"):
        spread_ratio(normal(5, 0), normal(5, 0).unsqueeze(0))
