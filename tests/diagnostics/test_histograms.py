"""Distances of histograms: by hand, by chance, and where events differ."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.diagnostics import jensen_shannon, separation_power

BOTH = pytest.mark.parametrize("measure", [separation_power, jensen_shannon])


def normal(n, seed, dims=1):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    """Shares 1/2, 1/2, 0 and 1/4, 1/2, 1/4."""
    real, generated = [0.5] * 4 + [1.5] * 4, [0.5] * 2 + [1.5] * 4 + [7.0] * 2
    found = separation_power(real, generated, bins=[0.0, 1.0, 2.0])
    assert float(found.value) == pytest.approx(0.5 * ((1 / 16) / (3 / 4) + (1 / 16) / (1 / 4)))
    found = jensen_shannon(real, generated, bins=torch.tensor([0.0, 1.0, 2.0]))
    p, q = (0.5, 0.5, 0.0), (0.25, 0.5, 0.25)
    pairs = [*zip(p, q, strict=True), *zip(q, p, strict=True)]
    by_hand = sum(0.5 * a * math.log2(2 * a / (a + b)) for a, b in pairs if a > 0)
    assert float(found.value) == pytest.approx(by_hand)
    assert found.bins.tolist() == [3]


@BOTH
def test_from_zero_to_one(measure):
    real = normal(500, 0)
    assert float(measure(real, real).value) == 0.0
    assert float(measure(real, real + 100, bins=[-50.0, 50.0]).value) == pytest.approx(1.0)
    # Of 50 bins with equal shares of real events the last one holds all generated events too.
    last = {
        separation_power: 0.49 * 0.98 / 1.02,
        jensen_shannon: 0.01 * math.log2(0.04 / 1.02) + 0.5 * math.log2(2 / 1.02),
    }
    assert float(measure(real, real + 100).value) == pytest.approx(0.49 + last[measure])


@BOTH
def test_equal_distributions_give_what_is_expected(measure):
    """Mean, spread and p-values over 60 samples of three observables, one of them half zeros."""
    found = []
    for seed in range(60):
        real, generated = normal(500, 2 * seed, 3), normal(800, 2 * seed + 1, 3)
        real[:, 2], generated[:, 2] = real[:, 2].clamp(min=0), generated[:, 2].clamp(min=0)
        found.append(measure(real, generated, bins=10, seed=seed))
    value, expected = torch.stack([f.value for f in found]), found[0].expected
    spread = found[0].expected_error
    assert bool(((value.mean(0) - expected).abs() < 4 * spread / 60**0.5).all())
    # Of a standard deviation from 60 values about 9 % are chance.
    assert bool(((value.std(0) / spread - 1).abs() < 0.4).all())
    assert bool(((torch.stack([f.error for f in found]).mean(0) / value.std(0) - 1).abs() < 0.5).all())
    assert kstest(torch.cat([f.p_values for f in found]).numpy(), "uniform").pvalue > 1e-3
    assert sum(f.passed for f in found) >= 56
    # For half zeros half the bins go to the other values, and one to the point mass.
    assert found[0].bins.tolist()[:2] == [10, 10]
    assert found[0].bins.tolist()[2] in (5, 6, 7)


@BOTH
def test_the_error_is_the_spread_between_samples(measure):
    found = [measure(normal(1000, 2 * s), 1.2 * normal(1000, 2 * s + 1), bins=20) for s in range(60)]
    spread, error = (
        torch.cat([f.value for f in found]).std(),
        torch.cat([f.error for f in found]).mean(),
    )
    assert float(error / spread) == pytest.approx(1.0, abs=0.4)


@BOTH
def test_a_difference_is_found_and_named(measure):
    real, generated = normal(2000, 0, 4), normal(2000, 1, 4)
    assert measure(real, generated).passed
    generated[:, 2] += 0.3
    found = measure(real, generated, names=("a", "b", "width", "d"))
    assert not found.passed
    assert "1 of 4 observables differ, most width" in found.verdict
    assert float(found.excess[2]) > 3 * float(found.error[2])


def test_exact_zeros_are_a_bin_of_their_own():
    """Real events hold 30 % zeros; generated ones as many numbers next to zero, or 30 % zeros too."""
    random = np.random.default_rng(0)

    def energies(n, zeros):
        return np.where(random.uniform(size=n) < 0.3, zeros, random.exponential(size=n))

    real = energies(4000, 0.0)
    assert separation_power(real, energies(4000, 0.0)).passed
    found = separation_power(real, energies(4000, 1e-9))
    assert not found.passed
    assert float(found.value) > 0.2
    # Also where only generated events have zeros.
    assert not separation_power(random.exponential(size=4000), energies(4000, 0.0)).passed


def test_what_never_varies_agrees_or_does_not():
    real = torch.full((100, 1), 3.0)
    assert separation_power(real, real).passed
    assert not separation_power(real, real + 1).passed


def test_same_seed_same_numbers():
    real, generated = normal(300, 0, 2), normal(300, 1, 2)
    first, second = (jensen_shannon(real, generated, seed=4) for _ in range(2))
    assert torch.equal(first.error, second.error)
    assert not torch.equal(first.error, jensen_shannon(real, generated, seed=5).error)


def test_bad_input_is_refused():
    real = normal(100, 0)
    with pytest.raises(ShapeError):
        separation_power(real, normal(100, 0, 2))
    with pytest.raises(ShapeError, match="rising"):
        separation_power(real, real, bins=[1.0, 0.0])
    with pytest.raises(UsageError, match="bins"):
        separation_power(real, real, bins=0)
    with pytest.raises(UsageError, match="level"):
        separation_power(real, real, level=2.0)
    with pytest.raises(NonFiniteError):
        jensen_shannon(real, real / 0)
