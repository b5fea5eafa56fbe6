r"""Langevin dynamics: draws from $p(z) \propto e^{-E(z)}$ by steps along the gradient, with noise.

One step of size s from z proposes

$$ z' = z - \tfrac{s^2}2 \nabla E(z) + s\,\xi, \qquad \xi \sim N(0, I), $$

which is taken with the probability of Metropolis and Hastings, so that p stays exactly what it is (the
Metropolis-adjusted Langevin algorithm: Roberts and Tweedie 1996, doi:10.2307/3318418), or always.  Where proposals may
be refused, a drift longer than the noise of a step is shortened to that (their truncated algorithm, which leaves p as
it is, too): where E is steep the chain would otherwise propose points far beyond what it goes towards, refuse them all,
and stand still.  Annealed draws go through a sequence of energies from one that is easy; a step size that is tuned
moves towards an acceptance of 0.574 (Roberts and Rosenthal 1998, doi:10.1111/1467-9868.00123), all chains together.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["langevin"]

_ACCEPTANCE = 0.574
_RATE = 0.1
# Of a drift, in units of the length of the noise.
_LONGEST_DRIFT = 1.0


def langevin(
    energy: Callable[[Tensor, float], Tensor],
    start: Tensor,
    *,
    inverse_temperatures: list[float],
    step_size: float,
    adjusted: bool = True,
    tuned: int = 0,
) -> tuple[Tensor, float]:
    """Move chains by as many steps as there are inverse temperatures, on the current random stream.

    Args:
        energy: ``energy(z, beta)`` of rows ``(n, D)`` at inverse temperature beta: ``(n,)``.
        start: where the n chains begin, ``(n, D)``.
        inverse_temperatures: what beta is at each step.
        step_size: s.
        adjusted: whether proposals may be refused.
        tuned: how many of the first steps move the step size; the others leave the density exactly as it is.

    Returns:
        Where the chains are now ``(n, D)``, without gradient, and the share of proposals taken.
    """
    z, taken = start.detach(), 0.0
    size = torch.as_tensor(step_size, dtype=z.dtype, device=z.device)
    before = None
    shares = []
    for i, beta in enumerate(inverse_temperatures):
        if before is None or beta != inverse_temperatures[i - 1]:
            before = _with_slope(energy, z, beta)
        value, slope = before
        slope = _limited(slope, size) if adjusted else slope
        noise = torch.randn_like(z)
        proposal = z - 0.5 * size**2 * slope + size * noise
        after = _with_slope(energy, proposal, beta)
        back = _limited(after[1], size) if adjusted else after[1]
        log_ratio = value - after[0] + _log_kernel_ratio(noise, size, slope, back)
        threshold = torch.rand_like(log_ratio).log()
        # A proposal without a finite energy is refused either way.
        keep = torch.isfinite(after[0]) & ((log_ratio > threshold) if adjusted else torch.ones_like(value).bool())
        z = torch.where(keep.unsqueeze(-1), proposal, z)
        before = torch.where(keep, after[0], value), torch.where(keep.unsqueeze(-1), after[1], before[1])
        probability = torch.nan_to_num(log_ratio.clamp(max=0.0).exp()).mean()
        shares.append(probability)
        if i < tuned:
            size = size * torch.exp(_RATE * (probability - _ACCEPTANCE) / (1 - _ACCEPTANCE))
    if shares:
        taken = float(torch.stack(shares[tuned:] or shares).mean())
    return z, taken


def _with_slope(energy: Callable[[Tensor, float], Tensor], z: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The energy ``(n,)`` and its gradient ``(n, D)``, also where gradients are switched off."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = energy(z, beta)
        (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope


def _limited(slope: Tensor, size: Tensor) -> Tensor:
    """The slope ``(n, D)``, shortened where the drift would be longer than most noise is."""
    length = torch.linalg.vector_norm(slope, dim=-1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
    return slope * (_LONGEST_DRIFT * slope.shape[-1] ** 0.5 / (0.5 * size * length)).clamp(max=1.0)


def _log_kernel_ratio(noise: Tensor, size: Tensor, slope: Tensor, new_slope: Tensor) -> Tensor:
    """Ln q(z | z') - ln q(z' | z): the noise that would lead back, against the noise that led here."""
    back = -noise + 0.5 * size * (slope + new_slope)
    return 0.5 * (noise.square().sum(-1) - back.square().sum(-1))
