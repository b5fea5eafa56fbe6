"""The baseline of upsampling: what its draws are spread like, and the density that they have."""

import math

import pytest
import torch
from scipy import stats

from sbi_physics.core.errors import ShapeError, UsageError
from simulators.galaxy_stars import StarParticles, Stars
from simulators.galaxy_upsample import fixed_kernel_log_density, fixed_kernel_upsample


@pytest.fixture
def particles():
    stars = Stars(
        positions=[[0.0, 0.0, 0.0], [8.0, 1.0, 0.0], [0.0, 100.0, 3.0]],
        velocities=[[0.0, 0.0, 0.0], [0.0, -200.0, 0.0], [50.0, 0.0, 9.0]],
        ages=[1.0, 5.0, 12.0],
        metallicities=[0.1, -0.2, -1.5],
        components=torch.tensor([0, 0, 1]),
        names=("disc", "halo"),
    )
    return StarParticles(stars, [1e4, 1e4, 2e4], [0.5, 0.1, 2.0], [20.0, 5.0, 60.0])


def test_stars_scatter_about_their_particle_by_its_smoothing_lengths(particles):
    n = 20_000
    stars = fixed_kernel_upsample(particles, n, seed=1)
    for i in range(3):
        mine = stars[i * n : (i + 1) * n]
        for values, centre, width in (
            (mine.positions, particles.stars.positions[i], particles.position_smoothing[i]),
            (mine.velocities, particles.stars.velocities[i], particles.velocity_smoothing[i]),
        ):
            scores = ((values - centre) / width).flatten().numpy()
            assert stats.kstest(scores, "norm").pvalue > 1e-3
            assert stats.kstest(1.06 * scores, "norm").pvalue < 1e-3


def test_stars_inherit_age_metallicity_and_component(particles):
    stars = fixed_kernel_upsample(particles, torch.tensor([2, 0, 3]))
    assert stars.ages.tolist() == [1.0] * 2 + [12.0] * 3
    assert stars.metallicities.tolist() == [0.1] * 2 + [-1.5] * 3
    assert stars.components.tolist() == [0] * 2 + [1] * 3
    assert stars.names == ("disc", "halo")


def test_scale_widens_the_kernels_alone(particles):
    narrow, wide = (fixed_kernel_upsample(particles, 50, scale=scale, seed=2) for scale in (1.0, 3.0))
    parents = particles.stars.phase_space.repeat_interleave(50, 0)
    torch.testing.assert_close(wide.phase_space - parents, 3 * (narrow.phase_space - parents), rtol=1e-9, atol=1e-9)


def test_same_seed_same_bytes(particles):
    first, second, other = (fixed_kernel_upsample(particles, 5, seed=seed).phase_space for seed in (3, 3, 4))
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert not torch.equal(first, other)


def test_density_is_that_of_the_mixture(particles):
    counts = torch.tensor([1, 3, 4])
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(counts.double() / 8),
        torch.distributions.Independent(
            torch.distributions.Normal(
                particles.stars.phase_space,
                torch.stack(
                    [1.5 * particles.position_smoothing, 1.5 * particles.velocity_smoothing], -1
                ).repeat_interleave(3, -1),
            ),
            1,
        ),
    )
    w = fixed_kernel_upsample(particles, counts, scale=1.5).phase_space
    density = fixed_kernel_log_density(particles, w, stars_per_particle=counts, scale=1.5)
    torch.testing.assert_close(density, mixture.log_prob(w), rtol=1e-10, atol=1e-9)


def test_mean_log_density_of_one_kernel_is_minus_its_entropy(particles):
    one = StarParticles(particles.stars[:1], particles.masses[:1], [0.5], [20.0])
    n = 20_000
    density = fixed_kernel_log_density(one, fixed_kernel_upsample(one, n).phase_space)
    entropy = 3 * math.log(2 * math.pi * math.e) + 3 * math.log(0.5 * 20.0)
    assert abs(float(density.mean()) + entropy) < 5 * math.sqrt(3 / n)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan, "wide"])
def test_bad_scales_are_refused(particles, scale):
    with pytest.raises(UsageError, match="scale: expected a positive number"):
        fixed_kernel_upsample(particles, 2, scale=scale)


def test_bad_numbers_of_stars_are_refused(particles):
    with pytest.raises(UsageError, match="stars_per_particle: expected an integer of at least 1, got 0"):
        fixed_kernel_upsample(particles, 0)
    with pytest.raises(ShapeError, match="particles: 3, stars_per_particle: 2"):
        fixed_kernel_upsample(particles, torch.tensor([1, 2]))
    for counts in (torch.tensor([1, -1, 2]), torch.tensor([1.0, 2.0, 3.0])):
        with pytest.raises(UsageError, match="stars_per_particle: expected integers of at least 0"):
            fixed_kernel_upsample(particles, counts)
    with pytest.raises(UsageError, match="expected one star or more in all"):
        fixed_kernel_log_density(particles, torch.zeros(1, 6), stars_per_particle=torch.zeros(3, dtype=torch.int64))
