"""Stars as a table of tensors, and the smoothing lengths of star particles."""

import math

import numpy as np
import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from simulators.galaxy_stars import StarParticles, Stars, smoothing_lengths


def blob(n, seed=1, widths=(2.0, 30.0)):
    noise = torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return noise * torch.tensor(widths, dtype=torch.float64).repeat_interleave(3)


def stars_at(w):
    n = len(w)
    return Stars(w[:, :3], w[:, 3:], torch.arange(n), torch.zeros(n), torch.arange(n) % 2, ("disc", "halo"))


def test_rows_and_components_are_selected():
    stars = stars_at(blob(7))
    assert len(stars) == 7
    assert stars[2:4].ages.tolist() == [2.0, 3.0]
    assert stars.of("halo").ages.tolist() == [1.0, 3.0, 5.0]
    assert stars[stars.ages > 4].components.tolist() == [1, 0]
    torch.testing.assert_close(stars.phase_space, blob(7))
    with pytest.raises(UsageError, match="component: expected one of disc, halo; got 'bulge'"):
        stars.of("bulge")


def test_arrays_become_float64_tensors():
    stars = Stars(np.zeros((2, 3), np.float32), np.zeros((2, 3)), [1, 2], [0, 0], np.zeros(2, int), ("disc",))
    assert stars.positions.dtype == stars.ages.dtype == torch.float64
    assert stars.components.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"positions": torch.zeros(2, 2)}, ShapeError, r"positions: expected shape \(n, 3\), got \(2, 2\)"),
        ({"ages": torch.zeros(3)}, ShapeError, "equally many rows, got positions: 2, velocities: 2, ages: 3"),
        ({"metallicities": torch.tensor([0.0, math.nan])}, NonFiniteError, "metallicities: expected finite"),
        ({"components": torch.tensor([0, 1])}, UsageError, "components: expected integers from 0 to 0"),
        ({"components": torch.zeros(2)}, UsageError, "components: expected integers"),
    ],
)
def test_bad_stars_are_named(change, error, message):
    good = {
        "positions": torch.zeros(2, 3),
        "velocities": torch.zeros(2, 3),
        "ages": torch.zeros(2),
        "metallicities": torch.zeros(2),
        "components": torch.zeros(2, dtype=torch.int64),
        "names": ("disc",),
    }
    assert len(Stars(**good)) == 2
    with pytest.raises(error, match=message):
        Stars(**{**good, **change})


def test_smoothing_lengths_follow_the_units():
    w = blob(2000)
    position, velocity = smoothing_lengths(w)
    same, faster = smoothing_lengths(w * torch.tensor([1.0] * 3 + [7.0] * 3))
    torch.testing.assert_close(same, position)
    torch.testing.assert_close(faster, 7 * velocity)
    assert float((velocity / position).median()) == pytest.approx(15.0, rel=0.02)


def test_smoothing_lengths_shrink_as_the_sixth_root_of_the_density():
    """32 times as many particles have 0.56 of the smoothing lengths; in the middle of the blob, where edges are far."""

    def middle(n):
        w = blob(n)
        return float(smoothing_lengths(w, neighbours=8)[0][(w / w.std(0)).norm(dim=-1) < 2].median())

    assert middle(500) / middle(16_000) == pytest.approx(32 ** (1 / 6), rel=0.06)


@pytest.mark.parametrize(("size", "lowest", "highest"), [(60, 5.0, 7.0), (1000, 8.0, 13.0)])
def test_a_cold_structure_has_lengths_of_its_own(size, lowest, highest):
    """The ratio of its widths is 5, that of the hot blob around it 15; a small structure is nearer its own."""
    hot, cold = blob(4000), blob(size, seed=2, widths=(0.1, 0.5))
    position, velocity = smoothing_lengths(torch.cat([hot, cold]))
    assert float(position[4000:].median()) < 0.1
    assert float(velocity[4000:].median()) < 0.5
    assert lowest < float((velocity / position)[4000:].median()) < highest
    assert float((velocity / position)[:4000].median()) == pytest.approx(15.0, rel=0.1)


def test_smoothing_of_known_neighbours():
    """One particle amid six, one step along each axis, in a metric where all steps are alike."""
    w = torch.cat([torch.zeros(1, 6), torch.diag(torch.tensor([1.0] * 3 + [10.0] * 3))]).double()
    position, velocity = smoothing_lengths(w, neighbours=6)
    local = math.sqrt((3 / 7) / 3)
    assert float(position[0]) == pytest.approx(local * (1 / local) / math.sqrt(10))
    assert float(velocity[0]) == pytest.approx(10 / math.sqrt(10))


def test_particles_that_cannot_be_smoothed_are_refused():
    w = blob(40)
    with pytest.raises(UsageError, match="neighbours: expected fewer than the 40 particles, got 40"):
        smoothing_lengths(w, neighbours=40)
    with pytest.raises(UsageError, match="expected particles that differ in position and in velocity"):
        smoothing_lengths(w * torch.tensor([0.0] * 3 + [1.0] * 3))
    together = torch.cat([blob(100), w[:1].expand(80, 6)])
    with pytest.raises(UsageError, match="expected fewer than 17 particles at one position or velocity"):
        smoothing_lengths(together)
    with pytest.raises(ShapeError, match=r"phase_space: expected shape \(n, 6\)"):
        smoothing_lengths(w[:, :5])


def test_bad_particles_are_named():
    stars = stars_at(blob(30))
    particles = StarParticles.from_stars(stars, torch.full((30,), 1e4))
    assert len(particles) == 30
    with pytest.raises(UsageError, match="masses: expected positive numbers, got 0"):
        StarParticles.from_stars(stars, torch.zeros(30))
    with pytest.raises(ShapeError, match="stars: 30, masses: 29"):
        StarParticles.from_stars(stars, torch.ones(29))
