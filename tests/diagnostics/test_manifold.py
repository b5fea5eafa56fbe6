"""Precision, recall, density and coverage: by hand, by chance, and for generators that lose or invent events."""

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.diagnostics import precision_recall_density_coverage
from sbi_physics.diagnostics.fidelity import neighbour_coverage
from sbi_physics.diagnostics.manifold import _shares


def normal(n, seed, dims=2):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_modes(n, seed, share):
    """Normal events, of which a share is at 20 and the others at zero."""
    far = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64) < share
    return normal(n, seed) + 20 * far


def test_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]]).double()
    generated = torch.tensor([[0.5], [0.8], [8.0]]).double()
    # Reach of real events: 1, 1, 2, 7; of generated ones: 0.3, 0.3, 7.2.
    precision, recall, density, coverage = _shares(real, generated, 1).tolist()
    # [-1, 1] and [0, 2] hold 0.5 and 0.8; [1, 5] none; [3, 17] holds 8.
    assert precision == pytest.approx(1.0)
    assert density == pytest.approx((2 + 2 + 1) / 3)
    assert coverage == pytest.approx(3 / 4)
    # [0.2, 0.8] and [0.5, 1.1] hold 1, [0.8, 15.2] holds 1, 3 and 10, none holds 0.
    assert recall == pytest.approx(3 / 4)


def test_coverage_is_that_of_fidelity():
    real, generated = normal(400, 0), 1.3 * normal(300, 1)
    assert float(_shares(real, generated, 3)[3]) == pytest.approx(neighbour_coverage(real, generated, neighbours=3))


def test_equal_distributions():
    """Twenty samples pass but for chance, and the errors are those of the spread."""
    found = [precision_recall_density_coverage(normal(600, 2 * s), normal(600, 2 * s + 1)) for s in range(20)]
    value, expected = torch.stack([f.value for f in found]), torch.stack([f.expected for f in found])
    pull = (value - expected) / torch.stack([f.difference_error for f in found])
    assert sum(f.passed for f in found) >= 18
    assert bool((pull.mean(0).abs() < 4 / 20**0.5).all())
    # Of a spread of 20 values 16 % are chance, and each error is known to a quarter.
    assert bool((pull.std(0) < 1.8).all())
    assert bool((pull.std(0) > 0.35).all())
    # Coverage of equal distributions is 1 - 2^-k, density one.
    assert float(value[:, 3].mean()) == pytest.approx(1 - 2**-5, abs=0.01)
    assert float(value[:, 2].mean()) == pytest.approx(1.0, abs=0.03)


def test_a_lost_mode_costs_coverage_and_recall_and_no_precision():
    """A generator that knows one of two modes, which holds 60 % of real events."""
    found = precision_recall_density_coverage(two_modes(2000, 0, 0.4), normal(2000, 1))
    # Most of the balls in the mode that is kept are covered.
    assert found.coverage == pytest.approx(0.6, abs=0.03 + 4 * float(found.error[3]))
    assert found.recall == pytest.approx(0.6, abs=0.03 + 4 * float(found.error[1]))
    assert found.precision > 0.97
    assert not found.passed
    assert "coverage" in found.verdict
    assert "precision" not in found.verdict
    assert precision_recall_density_coverage(two_modes(2000, 0, 0.4), two_modes(2000, 1, 0.4)).passed


def test_invented_events_cost_precision_and_density():
    found = precision_recall_density_coverage(normal(2000, 0), two_modes(2000, 1, 0.3))
    assert found.precision == pytest.approx(0.7, abs=0.03 + 4 * float(found.error[0]))
    assert found.density == pytest.approx(0.7, abs=0.03 + 4 * float(found.error[2]))
    assert found.recall > 0.95
    assert "precision" in found.verdict


def test_scale():
    """A feature in other units counts as much as before, unless scaling is off."""
    units = torch.tensor([1.0, 1e4]).double()
    real, generated = normal(400, 0), normal(400, 1)
    first = precision_recall_density_coverage(real, generated)
    second = precision_recall_density_coverage(real * units, generated * units)
    torch.testing.assert_close(first.value, second.value)
    plain = precision_recall_density_coverage(real * units, generated * units, scale=False)
    assert not torch.allclose(first.value, plain.value)


def test_same_seed_same_numbers():
    real, generated = normal(300, 0), normal(200, 1)
    first, second, other = (precision_recall_density_coverage(real, generated, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.value, second.value)
    assert not torch.equal(first.value, other.value)
    assert first.events == 100


def test_bad_input_is_refused():
    with pytest.raises(ShapeError, match="at least 84"):
        precision_recall_density_coverage(normal(80, 0), normal(200, 1))
    with pytest.raises(UsageError, match="neighbours"):
        precision_recall_density_coverage(normal(200, 0), normal(200, 1), neighbours=0)
    with pytest.raises(UsageError, match="level"):
        precision_recall_density_coverage(normal(200, 0), normal(200, 1), level=0.0)
