"""Fréchet and kernel physics distance: known answers, chance, and what each sees."""

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.diagnostics import frechet_physics_distance, kernel_physics_distance


def normal(n, seed, dims=3):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(n, seed, mean, factor):
    return normal(n, seed, len(mean)) @ factor.T + mean


def test_frechet_distance_of_two_gaussians():
    """|m|^2 + tr(S + T - 2 (S T)^(1/2)); with unit deviations, so that the scale of real events changes nothing."""
    correlated = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    wide = torch.tensor([[1.5, 0.0], [-0.5, 0.7]], dtype=torch.float64)
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
    product = (correlated @ correlated.T) @ (wide @ wide.T)
    overlap = torch.linalg.eigvals(product).real.sqrt().sum()
    expected = float(mean.square().sum() + 2 + (wide @ wide.T).trace() - 2 * overlap)
    found = frechet_physics_distance(gaussian(20_000, 0, 0 * mean, correlated), gaussian(30_000, 1, mean, wide))
    assert found.error < 0.05 * expected
    assert abs(found.value - expected) < 4 * found.error
    assert not found.passed


def test_frechet_distance_has_no_bias_and_the_error_that_it_says():
    """In five dimensions and of 1000 events, where the distance without extrapolation is far from zero."""
    found = [frechet_physics_distance(normal(1000, 2 * s, 5), normal(1000, 2 * s + 1, 5)) for s in range(40)]
    values, errors = (torch.tensor([getattr(f, name) for f in found]) for name in ("value", "error"))
    plain = torch.stack([f.at_sizes for f in found]).mean(0)
    assert float(values.mean().abs()) < 4 * float(values.std()) / 40**0.5
    assert float(plain[0]) > 10 * float(values.mean().abs())
    # The bias goes with 1/N.
    torch.testing.assert_close(plain / plain[0], torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), rtol=0.15, atol=0)
    assert all(f.passed for f in found)
    # A jackknife of a quadratic statistic errs on the safe side.
    assert 0.9 < float(errors.mean() / values.std()) < 2.2


def test_frechet_error_where_distributions_differ():
    found = [frechet_physics_distance(normal(1000, 2 * s), 1.3 * normal(1500, 2 * s + 1) + 0.2) for s in range(40)]
    pull = torch.tensor([(f.value - 3 * (0.3**2 + 0.2**2)) / f.error for f in found])
    assert float(pull.mean().abs()) < 4 / 40**0.5
    assert float(pull.std()) == pytest.approx(1.0, abs=0.45)
    assert not any(f.passed for f in found)


def test_scaling():
    """Units do not matter, and JetNet's scale is the largest absolute value."""
    real, generated, units = normal(1000, 0), 1.2 * normal(1000, 1), torch.tensor([1e-6, 1.0, 1e6]).double()
    for scaling in ("deviation", "maximum"):
        first = frechet_physics_distance(real, generated, scaling=scaling)
        second = frechet_physics_distance(real * units, generated * units, scaling=scaling)
        assert first.value == pytest.approx(second.value, rel=1e-6)
    largest = real.abs().amax(0)
    by_hand = ((generated - real).mean(0) / largest).square().sum()
    assert first.value > float(by_hand) - 3 * first.error
    assert first.value < 0.5 * frechet_physics_distance(real, generated).value


def test_kernel_distance_is_the_unbiased_discrepancy_of_its_batches():
    """Four batches by hand: events of each are equal, so that their order does not matter."""
    real = torch.tensor([[1.0, 2.0]]).double().expand(16, 2)
    generated = torch.tensor([[0.0, 1.0]]).double().expand(16, 2)
    found = kernel_physics_distance(real, generated, batches=4, scaling="maximum", exchanges=99)
    x, y = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.5])
    kernel = [float(a @ b / 2 + 1) ** 4 for a, b in ((x, x), (y, y), (x, y))]
    assert found.value == pytest.approx(kernel[0] + kernel[1] - 2 * kernel[2])
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert found.batches.shape == (4,)


def test_kernel_distance_by_chance():
    found = [
        kernel_physics_distance(normal(600, 2 * s), normal(600, 2 * s + 1), batches=6, exchanges=99, seed=s)
        for s in range(20)
    ]
    values = torch.tensor([f.value for f in found])
    null = torch.stack([f.null for f in found])
    assert abs(float(values.mean() - null.mean())) < 4 * float(values.std()) / 20**0.5
    assert sum(f.passed for f in found) >= 18
    assert 0.2 < sum(f.p_value for f in found) / 20 < 0.8


def test_kernel_distance_sees_what_frechet_does_not():
    """Uniform and normal numbers of the same mean and variance."""
    real = normal(3000, 0, 2)
    generated = (torch.rand(3000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5) * 12**0.5
    assert frechet_physics_distance(real, generated).passed
    kernel = kernel_physics_distance(real, generated)
    assert not kernel.passed
    assert "differ" in kernel.verdict
    shifted = kernel_physics_distance(real, normal(3000, 2, 2) + 0.3)
    assert not shifted.passed
    assert shifted.value > 2 * shifted.error


def test_same_seed_same_numbers_and_the_global_generator_as_it_was():
    real, generated = normal(200, 0), normal(200, 1)
    before = torch.get_rng_state()
    first, second = (kernel_physics_distance(real, generated, exchanges=99, seed=7) for _ in range(2))
    assert torch.equal(first.null, second.null)
    assert (
        frechet_physics_distance(real, generated, seed=7).value
        == frechet_physics_distance(real, generated, seed=7).value
    )
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input_is_refused():
    real = normal(100, 0)
    with pytest.raises(ShapeError, match="for 20 features"):
        frechet_physics_distance(normal(100, 0, 20), normal(100, 1, 20))
    with pytest.raises(ShapeError, match="three batches"):
        kernel_physics_distance(real, real, batches=2)
    with pytest.raises(ShapeError, match="three batches"):
        kernel_physics_distance(real, real, batches=10, batch_size=11)
    with pytest.raises(UsageError, match="scaling"):
        frechet_physics_distance(real, real, scaling="none")
    with pytest.raises(UsageError, match="exchanges"):
        kernel_physics_distance(real, real, exchanges=50, level=0.01)
