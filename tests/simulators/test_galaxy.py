"""The galaxy as a whole: shares, densities, particles and what does not fit together."""

import dataclasses
import math

import pytest
import torch
from astropy import units

from sbi_physics.core.errors import ShapeError, UsageError
from simulators.galaxy import Galaxy, default_components
from simulators.galaxy_potential import NFW
from simulators.galaxy_upsample import fixed_kernel_log_density

N = 20_000


@pytest.fixture(scope="module")
def galaxy():
    return Galaxy()


@pytest.fixture(scope="module")
def stars(galaxy):
    return galaxy.sample_stars(N, seed=1)


def responsibilities(galaxy, stars):
    """Probability of each component given the phase space of each star, ``(components, n)``."""
    terms = torch.stack([galaxy.component_log_density(name, stars.phase_space) for name in galaxy.names])
    return torch.softmax(terms + torch.log(galaxy.fractions).unsqueeze(-1), 0)


def test_shares_of_the_components(galaxy, stars):
    assert float(galaxy.fractions.sum()) == pytest.approx(1.0, abs=1e-12)
    counts = torch.bincount(stars.components, minlength=len(galaxy.names)) / N
    error = torch.sqrt(galaxy.fractions * (1 - galaxy.fractions) / N)
    assert float(((counts - galaxy.fractions) / error).abs().max()) < 5


def test_components_are_as_probable_as_the_densities_say(galaxy, stars):
    """Bayes: anywhere, near the plane and far out, labels agree with their posterior; shuffled ones do not."""
    posterior = responsibilities(galaxy, stars)
    r, z = stars.positions[:, :2].norm(dim=-1), stars.positions[:, 2].abs()

    def largest_pull(labels):
        pulls = []
        for where in (r > 0, z < 0.5, (z > 1) & (r < 8), r > 15):
            for k in range(len(galaxy.names)):
                residual = ((labels == k).double() - posterior[k])[where]
                error = torch.sqrt((posterior[k] * (1 - posterior[k]))[where].sum())
                pulls.append(float(residual.sum().abs() / error))
        return max(pulls)

    assert largest_pull(stars.components) < 5
    assert largest_pull(stars.components.roll(1)) > 20


def test_log_density_is_the_mixture(galaxy, stars):
    w = stars.phase_space[:100]
    terms = torch.stack([galaxy.component_log_density(name, w) for name in galaxy.names])
    expected = torch.log((galaxy.fractions.unsqueeze(-1) * terms.exp()).sum(0))
    torch.testing.assert_close(galaxy.log_density(w), expected)
    assert galaxy.log_density(w.float()).dtype == torch.float64
    assert bool(torch.isfinite(galaxy.log_density(stars.phase_space)).all())


def test_joint_density_integrates_to_that_of_phase_space(galaxy, stars):
    ages = torch.arange(0.05, 13.0, 0.1, dtype=torch.float64)
    metallicities = torch.arange(-4.0, 2.5, 0.05, dtype=torch.float64)
    grid = torch.cartesian_prod(ages, metallicities)
    row = stars.phase_space[:1]
    joint = galaxy.log_joint_density(row.expand(len(grid), 6), grid[:, 0], grid[:, 1])
    integral = torch.logsumexp(joint, 0) + math.log(0.1 * 0.05)
    assert float(integral) == pytest.approx(float(galaxy.log_density(row)), abs=1e-3)


def test_the_disc_turns_with_the_sun(galaxy):
    """Stars of the thin disc near the Sun move as it does, but for its own motion and the drift."""
    w = galaxy.phase_space_density("thin disc").sample(200_000, seed=2)
    near = (w[:, :3] - torch.tensor([-8.122, 0.0, 0.02])).norm(dim=-1) < 1.0
    mean = w[near, 3:].mean(0)
    error = 5 * w[near, 3:].std(0) / math.sqrt(int(near.sum()))
    assert bool((mean[[0, 2]].abs() < error[[0, 2]]).all())
    assert 200 < float(mean[1]) < 245.6


def test_populations_of_the_components(stars):
    assert float(stars.of("halo").metallicities.median()) < float(stars.of("thick disc").metallicities.median())
    assert float(stars.of("thick disc").metallicities.median()) < float(stars.of("thin disc").metallicities.median())
    assert float(stars.of("thin disc").ages.max()) <= 10
    assert float(stars.of("stream").ages.min()) >= 10


def test_same_seed_same_bytes_and_another_seed_differs(galaxy, stars):
    state = torch.random.get_rng_state()
    again, other = galaxy.sample_stars(N, seed=1), galaxy.sample_stars(N, seed=2)
    for field in ("positions", "velocities", "ages", "metallicities", "components"):
        assert getattr(again, field).numpy().tobytes() == getattr(stars, field).numpy().tobytes()
        assert not torch.equal(getattr(other, field), getattr(stars, field))
    assert torch.equal(state, torch.random.get_rng_state())


def test_particles_share_the_mass_or_have_the_one_given(galaxy):
    particles = galaxy.sample_particles(500, seed=1)
    assert float(particles.masses.sum()) == pytest.approx(galaxy.stellar_mass, rel=1e-9)
    assert not torch.equal(particles.stars.positions, galaxy.sample_stars(500, seed=1).positions)
    lighter = galaxy.sample_particles(500, mass=7e3 * units.M_sun, seed=1)
    assert torch.equal(lighter.stars.positions, particles.stars.positions)
    assert lighter.masses.unique().tolist() == [7e3]


def test_truth_is_more_probable_than_the_kernels(galaxy, stars):
    """The gain of the true density over an estimate is their divergence, which is positive."""
    particles = galaxy.sample_particles(5000, seed=3)
    w = stars.phase_space[:1000]
    gain = galaxy.log_density(w) - fixed_kernel_log_density(particles, w)
    assert float(gain.mean()) > 5 * float(gain.std()) / math.sqrt(len(w))


def test_what_does_not_fit_together_is_refused(galaxy):
    thin, thick, halo, *_ = default_components()
    with pytest.raises(UsageError, match="components: expected one Disc, StellarHalo, Stream or Satellite or more"):
        Galaxy([])
    with pytest.raises(UsageError, match="components: expected one Disc"):
        Galaxy([halo, "bulge"])
    with pytest.raises(UsageError, match="components: expected different names, got thin disc, thin disc"):
        Galaxy([thin, dataclasses.replace(thick, name="thin disc")])
    with pytest.raises(UsageError, match=r"component: expected one of thin disc, .*; got 'bulge'"):
        galaxy.component_log_density("bulge", torch.zeros(1, 6))
    with pytest.raises(ShapeError, match=r"phase_space: expected shape \(n, 6\), got \(2, 3\)"):
        galaxy.log_density(torch.zeros(2, 3))
    with pytest.raises(UsageError, match="n: expected an integer of at least 1, got 0"):
        galaxy.sample_stars(0)
    with pytest.raises(UsageError, match="masses: expected positive numbers, got -1"):
        galaxy.sample_particles(100, mass=-1.0)
    with pytest.raises(UsageError, match="mass: expected a quantity in M_sun, got one in kpc"):
        galaxy.sample_particles(100, mass=1 * units.kpc)


def test_a_galaxy_of_ones_own():
    halo = default_components()[2]
    galaxy = Galaxy([halo], dark_halo=NFW(1e7 * units.M_sun / units.kpc**3, 16))
    assert galaxy.names == ("halo",)
    assert galaxy.fractions.tolist() == [1.0]
    w = galaxy.sample_stars(20, seed=0).phase_space
    torch.testing.assert_close(galaxy.log_density(w), galaxy.component_log_density("halo", w))
