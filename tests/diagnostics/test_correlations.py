"""Correlations of generated against real observables: known errors, chance, and a lost dependence."""

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.diagnostics import correlation_difference


def correlated(n, seed, r=0.6, heavy=False):
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z[:, 1] = r * z[:, 0] + (1 - r**2) ** 0.5 * z[:, 1]
    return z.exp() if heavy else z


def test_gaussian_error():
    """The error of a correlation of Gaussian numbers is (1 - r^2) / sqrt(n)."""
    found = correlation_difference(correlated(20_000, 0), correlated(20_000, 1))
    expected = torch.tensor([1 - 0.6**2, 1.0, 1.0]).double() * (2 / 20_000) ** 0.5
    torch.testing.assert_close(found.error[[0, 0, 1], [1, 2, 2]], expected, rtol=0.05, atol=0)
    assert float(found.real[0, 1]) == pytest.approx(0.6, abs=0.02)
    torch.testing.assert_close(found.real, torch.corrcoef(correlated(20_000, 0).T))
    assert found.difference.diagonal().tolist() == [0.0] * 3


@pytest.mark.parametrize("heavy", [False, True])
def test_equal_samples_agree(heavy):
    found = [correlation_difference(*(correlated(2000, 2 * s + i, heavy=heavy) for i in (0, 1))) for s in range(20)]
    assert sum(f.passed for f in found) >= 19
    pull = torch.stack([(f.difference / f.error)[[0, 0, 1], [1, 2, 2]] for f in found])
    assert float(pull.mean().abs()) < 4 / 60**0.5
    assert 0.6 < float(pull.std()) < 1.4


def sparse(n, seed):
    """Two observables that are nearly always zero, as energies far behind a shower: their errors are no guide."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    some = torch.rand(n, 1, generator=generator) < 0.004
    z[:, :2] = torch.where(some, (2 * z[:, :2]).exp(), 0.0)
    return z


def test_exchanges_need_no_moments():
    found = [
        correlation_difference(sparse(1000, 2 * s), sparse(1000, 2 * s + 1), exchanges=99, level=0.05, seed=s)
        for s in range(40)
    ]
    assert sum(f.passed for f in found) >= 34  # of 38 expected
    assert 0.3 < sum(f.p_value for f in found) / 40 < 0.75
    # The twin: errors alone cry wolf.
    assert (
        sum(correlation_difference(sparse(1000, 2 * s), sparse(1000, 2 * s + 1), level=0.05).passed for s in range(40))
        < 34
    )
    lost = correlation_difference(correlated(2000, 0), correlated(2000, 1, r=0.4), exchanges=99)
    assert not lost.passed
    assert lost.p_value == 0.01
    assert lost.worst[:2] == ("observable 0", "observable 1")


def test_a_lost_dependence_is_found_and_named():
    found = correlation_difference(correlated(2000, 0), correlated(2000, 1, r=0.4), names=("energy", "depth", "width"))
    assert not found.passed
    assert "1 of 3 correlations differ, most energy and depth" in found.verdict
    assert found.largest == pytest.approx(0.2, abs=4 * found.largest_error)


def test_what_never_varies_has_no_correlation():
    real = correlated(500, 0)
    real[:, 2] = 3.0
    generated = correlated(500, 1)
    generated[:, 2] = 3.0
    assert correlation_difference(real, generated).passed
    assert float(correlation_difference(real, generated).real[0, 2]) == 0.0
    # Two that are one and the same, against two that are not.
    real[:, 2], generated[:, 2] = real[:, 0], generated[:, 0]
    assert correlation_difference(real, generated).passed
    generated[:, 2] += 0.1 * correlated(500, 2)[:, 1]
    assert not correlation_difference(real, generated).passed


def test_bad_input_is_refused():
    with pytest.raises(ShapeError, match="two observables"):
        correlation_difference(torch.ones(30, 1), torch.ones(30, 1))
    with pytest.raises(UsageError, match="exchanges: expected 0 or at least 99"):
        correlation_difference(torch.ones(30, 2), torch.ones(30, 2), exchanges=50)
    with pytest.raises(ShapeError, match="at least 20"):
        correlation_difference(torch.ones(10, 2), torch.ones(30, 2))
    with pytest.raises(UsageError, match="names"):
        correlation_difference(torch.ones(30, 2), torch.ones(30, 2), names=["a"])
