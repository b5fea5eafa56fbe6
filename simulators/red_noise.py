r"""Red noise as a sum of Fourier modes whose variances follow a power law.

The delay of a pulse at time t is $\sum_k a_k \sin(2\pi f_k t) + b_k \cos(2\pi f_k t)$ at $f_k = k / T$, T the span of
the data, with independent normal $a_k, b_k$ of variance

$$ \varphi_k = \frac{P(f_k)}{T}, \qquad P(f) = \frac{A^2}{12\pi^2} \left(\frac{f}{f_{\rm yr}}\right)^{-\gamma}
   f_{\rm yr}^{-3}, \qquad f_{\rm yr} = 1/{\rm yr}. $$

For a background of gravitational waves A is the characteristic strain at one per year, and gamma = 13/3 for circular
binaries that lose energy to gravitational waves alone.
Sources: Lentati et al. 2013 (arXiv:1210.3578); Arzoumanian et al. 2020 (arXiv:2009.04496), eq. 6.
"""

import math

import torch
from torch import Tensor

__all__ = ["DAYS_PER_YEAR", "MICROSECONDS_PER_YEAR", "fourier_basis", "power_law_variance"]

DAYS_PER_YEAR = 365.25
MICROSECONDS_PER_YEAR = DAYS_PER_YEAR * 86400e6


def fourier_basis(times: Tensor, modes: int, span: float, start: float) -> Tensor:
    """Sines and cosines of the first frequencies.

    Args:
        times: ``(T,)`` in days.
        modes: K.
        span: T_span in days, one over the lowest frequency.
        start: time of phase zero in days, the same for all pulsars that share a signal.

    Returns:
        ``(T, 2 K)``, float64: sin and cos of the first frequency, then of the second, and so on.
    """
    k = torch.arange(1, modes + 1, dtype=torch.float64)
    turns = (times.to(torch.float64) - start).unsqueeze(1) / span * k
    phase = 2 * math.pi * torch.remainder(turns, 1.0)
    return torch.stack([torch.sin(phase), torch.cos(phase)], dim=-1).flatten(1)


def power_law_variance(log10_amplitude: Tensor, gamma: Tensor, modes: int, span: float) -> Tensor:
    """Variance of each Fourier coefficient.

    Args:
        log10_amplitude: ``(*,)``, of the dimensionless amplitude A at one per year.
        gamma: ``(*,)``, spectral index; positive is red.
        modes: K.
        span: T_span in days.

    Returns:
        Microseconds squared ``(*, K)``, in the type of the arguments, differentiable.
    """
    years = span / DAYS_PER_YEAR
    frequency = torch.arange(1, modes + 1, dtype=log10_amplitude.dtype, device=log10_amplitude.device) / years
    constant = 2 * math.log(MICROSECONDS_PER_YEAR) - math.log(12 * math.pi**2 * years)
    log_variance = 2 * math.log(10) * log10_amplitude.unsqueeze(-1) - gamma.unsqueeze(-1) * torch.log(frequency)
    return torch.exp(log_variance + constant)
