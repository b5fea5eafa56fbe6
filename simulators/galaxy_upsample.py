r"""The baseline of upsampling: each star particle is a Gaussian cloud of stars.

$$ q(w) = \sum_i \frac{n_i}{n} \, \mathcal{N}(x; x_i, h_{x,i}^2) \, \mathcal{N}(v; v_i, h_{v,i}^2), $$

with the smoothing lengths of `StarParticles`, as the mock catalogues of Sanderson et al. 2020 (arXiv:1806.10564)
spread the stars of their particles; a star has the age and metallicity of its particle.  It is what Lim et al. 2022
(GalaxyFlow, arXiv:2211.11765) compare a normalizing flow with.
"""

import math

import torch
from torch import Tensor

from sbi_physics.core.checks import batch_of, positive_integer, same_length
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive, seeded
from simulators.galaxy_stars import StarParticles, Stars

__all__ = ["fixed_kernel_log_density", "fixed_kernel_upsample"]

_PAIRS_AT_ONCE = 1 << 22


def fixed_kernel_upsample(
    particles: StarParticles, stars_per_particle: int | Tensor, *, scale: float = 1.0, seed: int = 0
) -> Stars:
    """Draw stars from the Gaussian kernels of star particles.

    Args:
        particles: n star particles.
        stars_per_particle: how many stars each becomes: one integer, or integers ``(n,)``.
        scale: factor on all smoothing lengths.
        seed: of the draws.

    Returns:
        The stars, those of the first particle first.

    Raises:
        UsageError: the numbers of stars are no integers of at least 0 (1 for a single one), or the scale is not
            positive.
        ShapeError: there is not one number of stars for each particle.
    """
    counts = _counts(particles, stars_per_particle)
    rows = torch.repeat_interleave(torch.arange(len(particles)), counts)
    with seeded(derive(seed, "fixed kernel")):
        noise = _scale(scale) * torch.randn(2, len(rows), 3, dtype=torch.float64)
    parents = particles.stars[rows]
    return Stars(
        parents.positions + particles.position_smoothing[rows].unsqueeze(-1) * noise[0],
        parents.velocities + particles.velocity_smoothing[rows].unsqueeze(-1) * noise[1],
        parents.ages,
        parents.metallicities,
        parents.components,
        parents.names,
    )


def fixed_kernel_log_density(
    particles: StarParticles, phase_space: Tensor, *, stars_per_particle: int | Tensor = 1, scale: float = 1.0
) -> Tensor:
    """Log-density of the stars that `fixed_kernel_upsample` draws, at `phase_space` ``(m, 6)``: ``(m,)``.

    The cost is one Gaussian for each pair of a star and a particle.

    Raises:
        UsageError, ShapeError: as `fixed_kernel_upsample`; or there is no star at all.
    """
    w = batch_of(phase_space, (6,), "phase_space").to(torch.float64)
    counts = _counts(particles, stars_per_particle)
    if not bool(counts.any()):
        raise UsageError("stars_per_particle: expected one star or more in all, got none")
    log_weights = torch.log(counts.double() / counts.sum())
    widths = _scale(scale) * torch.stack([particles.position_smoothing, particles.velocity_smoothing])
    log_norms = log_weights - 3 * torch.log(widths).sum(0) - 3 * math.log(2 * math.pi)
    rows = max(1, _PAIRS_AT_ONCE // len(particles))
    blocks = []
    for block in w.split(rows):
        # Differences, not the expanded square: near a small kernel far from the origin that would cancel.
        near = torch.cdist(block[:, :3], particles.stars.positions, compute_mode="donot_use_mm_for_euclid_dist")
        slow = torch.cdist(block[:, 3:], particles.stars.velocities, compute_mode="donot_use_mm_for_euclid_dist")
        blocks.append(torch.logsumexp(log_norms - 0.5 * ((near / widths[0]) ** 2 + (slow / widths[1]) ** 2), -1))
    return torch.cat(blocks)


def _scale(scale: float) -> float:
    if not (isinstance(scale, int | float) and 0 < scale < math.inf):
        raise UsageError(f"scale: expected a positive number, got {scale!r}")
    return float(scale)


def _counts(particles: StarParticles, stars_per_particle: int | Tensor) -> Tensor:
    if not isinstance(stars_per_particle, Tensor):
        return torch.full((len(particles),), positive_integer(stars_per_particle, "stars_per_particle"))
    counts = batch_of(stars_per_particle, (), "stars_per_particle", minimum=0)
    same_length(particles=particles.masses, stars_per_particle=counts)
    if counts.is_floating_point() or counts.dtype == torch.bool or bool((counts < 0).any()):
        raise UsageError("stars_per_particle: expected integers of at least 0")
    return counts.long()
