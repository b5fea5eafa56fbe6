"""Stars from star particles: narrower than fixed kernels, of the right density, the same for the same seed."""

import math

import numpy as np
import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.surrogate.upsampling import Upsampler
from simulators.galaxy_stars import StarParticles, Stars
from simulators.galaxy_upsample import fixed_kernel_log_density, fixed_kernel_upsample

N, STREAM = 3000, 240
WIDTHS = (0.15, 4.0)
FAST = {"transforms": 3, "hidden_features": 32, "config": {"epochs": 15}}


def toy_galaxy(n, seed):
    """A disc that turns, and a thin arc above it: phase space ``(n, 6)`` and a condition that tells them apart."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    many = round(n * STREAM / N)
    radius, azimuth = 8 * torch.exp(0.35 * normal(n - many)), 2 * math.pi * torch.rand(n - many, generator=generator)
    v_radial, v_along = 35 * normal(n - many), -220 + 25 * normal(n - many)
    cos, sin = torch.cos(azimuth).double(), torch.sin(azimuth).double()
    disc = [radius * cos, radius * sin, 0.3 * normal(n - many)]
    disc += [v_radial * cos - v_along * sin, v_radial * sin + v_along * cos, 20 * normal(n - many)]
    angle = 2.0 * torch.rand(many, generator=generator).double()
    arc = [18 * torch.cos(angle), torch.full_like(angle, 5.0), 18 * torch.sin(angle)]
    arc += [-160 * torch.sin(angle), torch.zeros_like(angle), 160 * torch.cos(angle)]
    widths = torch.tensor(WIDTHS, dtype=torch.float64).repeat_interleave(3)
    w = torch.cat([torch.stack(disc, 1), torch.stack(arc, 1) + widths * normal(many, 6)])
    metallicity = torch.cat([0.2 * normal(n - many), -1.5 + 0.2 * normal(many)])
    return w, metallicity


def true_log_density(w):
    x, y, z, vx, vy, vz = w.unbind(-1)
    radius = torch.hypot(x, y)
    v_radial, v_along = (x * vx + y * vy) / radius, (x * vy - y * vx) / radius

    def log_normal(value, width):
        return -0.5 * (value / width) ** 2 - math.log(width * math.sqrt(2 * math.pi))

    disc = log_normal(torch.log(radius / 8), 0.35) - 2 * torch.log(radius) - math.log(2 * math.pi)
    disc = disc + log_normal(z, 0.3) + log_normal(v_radial, 35) + log_normal(v_along + 220, 25) + log_normal(vz, 20)
    angles = torch.linspace(0, 2, 801, dtype=torch.float64)
    cos, sin = torch.cos(angles), torch.sin(angles)
    path = torch.stack([18 * cos, 0 * cos + 5, 18 * sin, -160 * sin, 0 * cos, 160 * cos], 1)
    widths = torch.tensor(WIDTHS, dtype=torch.float64).repeat_interleave(3)
    square = (((w[:, None] - path) / widths) ** 2).sum(-1)
    arc = torch.logsumexp(-0.5 * square, 1) - math.log(len(angles)) - float(widths.log().sum())
    arc = arc - 3 * math.log(2 * math.pi)
    share = STREAM / N
    return torch.logaddexp(disc + math.log(1 - share), arc + math.log(share))


def as_particles(w, metallicity):
    n = len(w)
    stars = Stars(w[:, :3], w[:, 3:], torch.ones(n), metallicity, torch.zeros(n, dtype=torch.int64), ("all",))
    return StarParticles.from_stars(stars, torch.ones(n))


def smoothing(particles):
    return torch.stack([particles.position_smoothing, particles.velocity_smoothing], 1)


@pytest.fixture(scope="module")
def particles():
    return as_particles(*toy_galaxy(N, 1))


@pytest.fixture(scope="module")
def upsampler(particles):
    conditions = particles.stars.metallicities[:, None]
    return Upsampler(**FAST).fit(particles.stars.phase_space, smoothing(particles), conditions, progress=False)


@pytest.fixture(scope="module")
def fresh():
    w, _ = toy_galaxy(1500, 2)
    return w, true_log_density(w)


def lost(truth, log_density):
    """Mean loss of log-density against the truth, and its error."""
    difference = truth - log_density
    return float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))


def test_its_density_is_nearer_the_truth_than_that_of_fixed_kernels(particles, upsampler, fresh):
    w, truth = fresh
    mine, error = lost(truth, upsampler.log_density(w, contexts=40))
    kernels = min(lost(truth, fixed_kernel_log_density(particles, w, scale=scale))[0] for scale in (0.6, 0.8, 1.0, 1.3))
    assert mine > -4 * error
    assert mine + 5 * error < 0.5 * kernels
    assert mine < 0.25


def test_without_substructure_the_stream_is_lost(particles, upsampler, fresh):
    """The twin that must fail."""
    w, truth = fresh
    plain = Upsampler(substructure=False, **FAST).fit(
        particles.stars.phase_space,
        smoothing(particles),
        particles.stars.metallicities[:, None],
        progress=False,
    )
    of_stream = slice(len(w) - len(w) * STREAM // N, None)
    assert plain.memberships.shape == (N, 1)
    here, error = lost(truth[of_stream], upsampler.log_density(w[of_stream], contexts=40))
    there, _ = lost(truth[of_stream], plain.log_density(w[of_stream], contexts=40))
    assert here + 5 * error < there
    assert here < 2.0
    assert there > 2.0


def test_stars_of_the_stream_stay_in_it(particles, upsampler):
    each = 10
    stars = upsampler.sample(each, seed=3)
    kernels = fixed_kernel_upsample(particles, each, seed=3)
    assert stars.parents.tolist() == [i for i in range(N) for _ in range(each)]
    of_stream = stars.parents >= N - STREAM
    assert float((stars.structures[of_stream] > 0).double().mean()) > 0.9
    assert float((stars.structures[~of_stream] > 0).double().mean()) < 0.02

    def spread(w):
        return float((w[of_stream, 1] - 5).abs().median()) / 0.6745

    assert spread(stars.phase_space) < 1.3 * WIDTHS[0]
    assert spread(kernels.phase_space) > 1.3 * WIDTHS[0]


def test_stars_have_the_moments_of_the_galaxy(upsampler):
    stars, (truth, _) = upsampler.sample(4, seed=4).phase_space, toy_galaxy(4 * N, 5)
    assert stars.dtype == torch.float64
    for i in range(6):
        # The particles are a sample too, four times smaller than the stars.
        error = float(truth[:, i].std()) / math.sqrt(N)
        assert abs(float(stars[:, i].mean() - truth[:, i].mean())) < 6 * error
        assert float(stars[:, i].std()) == pytest.approx(float(truth[:, i].std()), rel=0.1)


def test_the_disc_is_found_symmetric_and_a_bar_is_not(particles, upsampler):
    assert upsampler.provenance["training"]["azimuth"]["kept"] is False
    w = particles.stars.phase_space.clone()
    # Squeezed along y: the azimuths crowd about the x axis.
    w[:, 1], w[:, 4] = 0.4 * w[:, 1], 0.4 * w[:, 4]
    bar = Upsampler(substructure=False, **FAST).fit(w, smoothing(particles), progress=False)
    assert bar.provenance["training"]["azimuth"]["kept"] is True
    stars = bar.sample(2, seed=6).phase_space
    flattening = [float(each[:, 1].abs().median() / each[:, 0].abs().median()) for each in (stars, w)]
    assert flattening[0] == pytest.approx(flattening[1], rel=0.15)


def test_same_seed_same_bytes(particles, upsampler):
    first, second, other = (upsampler.sample(2, seed=seed).phase_space for seed in (7, 7, 8))
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert not torch.equal(first, other)
    few = Upsampler(transforms=1, hidden_features=8, config={"epochs": 1})
    arguments = (particles.stars.phase_space[-1000:], smoothing(particles)[-1000:])
    draws = []
    for _ in range(2):
        state = torch.get_rng_state()
        draws.append(few.fit(*arguments, seed=9, progress=False).sample(1, seed=1).phase_space)
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(*draws)


def test_numbers_of_stars_for_each_particle(upsampler):
    counts = torch.zeros(N, dtype=torch.int64)
    counts[5], counts[-1] = 3, 2
    stars = upsampler.sample(counts)
    assert stars.parents.tolist() == [5, 5, 5, N - 1, N - 1]
    assert len(upsampler.sample(torch.zeros(N, dtype=torch.int64))) == 0
    with pytest.raises(UsageError, match="stars_per_particle: expected an integer of at least 1, got 0"):
        upsampler.sample(0)
    with pytest.raises(ShapeError, match="stars_per_particle: expected one for each of 3000"):
        upsampler.sample([1, 2])
    for bad in (counts.double(), -counts):
        with pytest.raises(UsageError, match="stars_per_particle: expected integers of at least 0"):
            upsampler.sample(bad)


def test_density_and_draws_agree(upsampler):
    """The mean log-density of its own draws is that of the integral: draws from elsewhere have less."""
    stars = upsampler.sample(1, seed=10).phase_space
    own = upsampler.log_density(stars[::3], contexts=40)
    w, _ = toy_galaxy(N // 3, 11)
    there = upsampler.log_density(w, contexts=40)
    assert float(own.mean() - there.mean()) > -0.1
    assert float(own.mean() - there.mean()) < 0.4


def test_bad_input_is_refused(particles):
    w, lengths = particles.stars.phase_space, smoothing(particles)
    fit = Upsampler(**FAST).fit
    with pytest.raises(ShapeError, match=r"phase_space: expected shape \(n, 6\)"):
        fit(w[:, :3], lengths)
    with pytest.raises(ShapeError, match="expected at least 200 particles, got 100"):
        fit(w[:100], lengths[:100])
    with pytest.raises(NonFiniteError, match="phase_space"):
        fit(torch.where(w == w[3, 3], torch.nan, w), lengths)
    with pytest.raises(UsageError, match="phase_space: expected particles that differ"):
        fit(torch.cat([w[:, :5], 0 * w[:, 5:]], 1), lengths)
    with pytest.raises(ShapeError, match=r"smoothing: expected shape \(n, 2\)"):
        fit(w, lengths[:, 0])
    with pytest.raises(UsageError, match="smoothing: expected positive lengths"):
        fit(w, 0 * lengths)
    with pytest.raises(ShapeError, match="conditions: expected shape"):
        fit(w, lengths, np.ones(N))
    with pytest.raises(UsageError, match="weights: expected numbers of at least 0"):
        fit(w, lengths, weights=-np.ones(N))
    with pytest.raises(UsageError, match="it is not trained"):
        Upsampler().sample(2)
    with pytest.raises(UsageError, match="model: expected one of"):
        Upsampler("vae")
    with pytest.raises(UsageError, match="setting of the training"):
        Upsampler(config={"epoch": 3})
