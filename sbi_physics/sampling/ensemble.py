r"""Moves of an ensemble of particles that need neither gradients nor a covariance of the whole cloud.

The two halves of the ensemble are moved in turn, with proposals that are built from the other half, which stands still
meanwhile: each move then leaves $p(z)^\otimes$ invariant (Goodman and Weare 2010).  Two proposals take turns:

* differential evolution, $z' = z + \gamma (z_a - z_b) + \epsilon$ with a pair of the other half, where $\gamma$ is one,
  which carries a particle from mode to mode, or about $2.38/\sqrt{2P}$, the best for a Gaussian (ter Braak and Vrugt
  2008; Nelson et al. 2014, arXiv:1311.5229);
* a draw of the density estimate `VariableKernels` of the other half, accepted as an independent proposal is.

The first works anywhere, the second mixes far quicker up to some twenty parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.sampling.kernels import VariableKernels

__all__ = ["SWEEPS", "Cloud", "move"]

_KERNEL_SWEEPS = 3
SWEEPS = 1 + _KERNEL_SWEEPS
"""Evaluations of each particle in one `move`."""

_NOISE = 1e-3
"""Of the differences, in standard deviations of the cloud: makes every point reachable."""


@dataclass
class Cloud:
    """B ensembles of N particles.

    Attributes:
        z: places ``(B, N, P)``, float64.
        log_likelihood: ``(B, N)``.
        log_prior: ``(B, N)``, as a density of z.
    """

    z: Tensor
    log_likelihood: Tensor
    log_prior: Tensor

    def of(self, which: Tensor) -> "Cloud":
        """A copy of some of the ensembles."""
        return Cloud(self.z[which], self.log_likelihood[which], self.log_prior[which])

    def put(self, which: Tensor, other: "Cloud") -> None:
        """Write `other` in the place of some of the ensembles."""
        self.z[which], self.log_prior[which] = other.z, other.log_prior
        self.log_likelihood[which] = other.log_likelihood

    def take(self, index: Tensor) -> "Cloud":
        """The particles of each ensemble at index ``(B, n)``."""
        z = torch.take_along_dim(self.z, index.unsqueeze(-1), 1)
        return Cloud(z, self.log_likelihood.gather(1, index), self.log_prior.gather(1, index))

    def join(self, other: "Cloud") -> "Cloud":
        """The particles of both."""
        return Cloud(
            torch.cat([self.z, other.z], 1),
            torch.cat([self.log_likelihood, other.log_likelihood], 1),
            torch.cat([self.log_prior, other.log_prior], 1),
        )

    def half(self, start: int) -> "Cloud":
        """Every second particle."""
        rows = slice(start, None, 2)
        return Cloud(
            self.z[:, rows].contiguous(),
            self.log_likelihood[:, rows].contiguous(),
            self.log_prior[:, rows].contiguous(),
        )

    def put_half(self, start: int, other: "Cloud") -> None:
        """Write `other` in the place of every second particle."""
        rows = slice(start, None, 2)
        self.z[:, rows], self.log_likelihood[:, rows] = other.z, other.log_likelihood
        self.log_prior[:, rows] = other.log_prior

    def step(
        self, proposed: "Cloud", temperature: Tensor, log_ratio: Tensor | float, random: torch.Generator
    ) -> Tensor:
        """Metropolis and Hastings: accept or refuse, in place; the accepted ``(B, N)``.

        Args:
            proposed: where the particles would go.
            temperature: ``(B,)`` powers of the likelihood.
            log_ratio: of the densities of the proposals, back over forth.
            random: where the acceptances come from.
        """
        gain = temperature.unsqueeze(-1) * (proposed.log_likelihood - self.log_likelihood)
        gain = gain + proposed.log_prior - self.log_prior + log_ratio
        uniform = torch.rand(gain.shape, generator=random, device=gain.device, dtype=gain.dtype)
        accepted = torch.log(uniform) < gain
        self.z = torch.where(accepted.unsqueeze(-1), proposed.z, self.z)
        self.log_likelihood = torch.where(accepted, proposed.log_likelihood, self.log_likelihood)
        self.log_prior = torch.where(accepted, proposed.log_prior, self.log_prior)
        return accepted


def move(
    cloud: Cloud,
    temperature: Tensor,
    scale: Tensor,
    evaluate: Callable[[Tensor], Cloud],
    random: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Move each particle of `cloud` by `SWEEPS` proposals, in place.

    Args:
        cloud: B ensembles of an even number of particles.
        temperature: ``(B,)`` powers of the likelihood, above zero.
        scale: ``(B,)`` factors of the differences.
        evaluate: gives the densities at places ``(B, N / 2, P)``.
        random: where the proposals and acceptances come from.

    Returns:
        The share of all proposals that was accepted, and of the scaled differences alone, ``(B,)`` each.
    """
    shares, scaled_shares = [], []
    for start in (0, 1):
        own, other = cloud.half(start), cloud.half(1 - start).z
        proposed, scaled = _difference(own.z, other, scale, random)
        accepted = own.step(evaluate(proposed), temperature, 0.0, random).double()
        shares.append(accepted.mean(-1))
        scaled_shares.append((accepted * scaled).sum(-1) / scaled.sum(-1).clamp(min=1))
        kernels = VariableKernels(other)
        log_q = kernels.log_prob(own.z)
        for _ in range(_KERNEL_SWEEPS):
            proposed = kernels.sample(own.z.shape[1], random)
            proposed_log_q = kernels.log_prob(proposed)
            taken = own.step(evaluate(proposed), temperature, log_q - proposed_log_q, random)
            log_q = torch.where(taken, proposed_log_q, log_q)
            shares.append(taken.double().mean(-1))
        cloud.put_half(start, own)
    return torch.stack(shares).mean(0), torch.stack(scaled_shares).mean(0)


def _difference(z: Tensor, other: Tensor, scale: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Proposals ``(B, m, P)`` by differential evolution, and which of them ``(B, m)`` are scaled."""
    b, m, p = z.shape
    n = other.shape[1]
    first = torch.randint(n, (b, m), generator=random, device=z.device)
    second = (first + torch.randint(1, n, (b, m), generator=random, device=z.device)) % n
    pair = torch.take_along_dim(other, first.unsqueeze(-1), 1) - torch.take_along_dim(other, second.unsqueeze(-1), 1)
    scaled = torch.rand((b, m), generator=random, device=z.device) < 0.5
    factor = torch.where(scaled, scale.unsqueeze(-1) * 2.38 / math.sqrt(2 * p), 1.0).unsqueeze(-1)
    noise = torch.randn((b, m, p), generator=random, device=z.device, dtype=z.dtype)
    return z + factor * pair + _NOISE * other.std(1, keepdim=True) * noise, scaled
