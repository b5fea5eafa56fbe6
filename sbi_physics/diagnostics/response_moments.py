r"""Mean and relative spread of a ratio with their errors, from sums of powers, and after random exchanges of events.

With events of weight w and the ratio $r = c + h u$, all follows from $\sum w u^k$ and $\sum w^2 u^k$ up to k = 4.  So
thousands of exchanges of real and generated events cost two matrix products.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Ratios", "Sample", "exchanged", "overall", "ratios"]

_EXCHANGES_AT_ONCE = 64


class Sample(NamedTuple):
    """Ratios r of seen and true energy, and weights, float64 ``(n,)``, of the events of one kind in one bin."""

    ratio: Tensor
    weights: Tensor


class Ratios(NamedTuple):
    """Generated over real response and resolution, and their errors, ``(*,)`` each."""

    response: Tensor
    response_error: Tensor
    resolution: Tensor
    resolution_error: Tensor


class Moments(NamedTuple):
    """Response and relative resolution with their errors, ``(*,)`` each."""

    response: Tensor
    response_error: Tensor
    resolution: Tensor
    resolution_error: Tensor


def moments(sample: Sample) -> Moments:
    """Those of the events of one kind: ``()`` each."""
    centre, width = _scale(sample.ratio)
    powers = _powers((sample.ratio - centre) / width)
    weights = sample.weights.unsqueeze(1)
    return Moments(*(part[0] for part in _moments(weights.T @ powers, weights.T.square() @ powers, centre, width)))


def exchanged(real: Sample, generated: Sample, exchanges: int, seed: int) -> Ratios:
    """Ratios ``(exchanges,)`` after real and generated events of one bin were exchanged at random."""
    ratio, weights = torch.cat([real.ratio, generated.ratio]), torch.cat([real.weights, generated.weights])
    centre, width = _scale(ratio)
    powers = _powers((ratio - centre) / width)
    first, second = weights.unsqueeze(1) * powers, weights.square().unsqueeze(1) * powers
    totals = first.sum(0), second.sum(0)
    generator, found = torch.Generator().manual_seed(seed), []
    for start in range(0, exchanges, _EXCHANGES_AT_ONCE):
        some = min(_EXCHANGES_AT_ONCE, exchanges - start)
        place = torch.rand(some, len(ratio), generator=generator).argsort(1)
        chosen = (place < len(real.ratio)).double()
        sums = chosen @ first, chosen @ second
        sides = [_moments(*sums, centre, width), _moments(totals[0] - sums[0], totals[1] - sums[1], centre, width)]
        found.append(ratios(*sides))
    return Ratios(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def ratios(real: Moments, generated: Moments) -> Ratios:
    """Generated over real moments."""
    response, resolution = generated.response / real.response, generated.resolution / real.resolution
    return Ratios(
        response,
        torch.hypot(generated.response_error / real.response, response * real.response_error / real.response),
        resolution,
        torch.hypot(generated.resolution_error / real.resolution, resolution * real.resolution_error / real.resolution),
    )


def overall(ratio: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the bins ``(*, K)`` by their errors, and its error: ``(*,)`` each; NaN where an error is zero."""
    weights = torch.where(error > 0, error.square().reciprocal(), torch.nan)
    return (weights * ratio).sum(-1) / weights.sum(-1), weights.sum(-1).rsqrt()


def _scale(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """About where the ratios are, and about how wide; exact numbers are not needed."""
    width = ratio.std()
    return ratio.mean(), torch.where(width > 0, width, 1.0)


def _powers(u: Tensor) -> Tensor:
    return torch.stack([u**k for k in range(5)], 1)


def _moments(first: Tensor, second: Tensor, centre: Tensor, width: Tensor) -> Moments:
    """From sums ``(*, 5)`` of w u^k and of w^2 u^k."""
    total, square = first[..., 0], second[..., 0]
    free = 1 - square / total.square()
    mean = first[..., 1] / total
    # Rounding leaves 1e-16 where all are equal.
    spread = first[..., 2] / total - mean.square()
    variance = torch.where(spread > 1e-14, spread / free, 0.0)
    response, deviation = centre + width * mean, width * variance.sqrt()
    a, b, c, d, e = second.unbind(-1)
    central = (
        c - 2 * mean * b + mean**2 * a,
        d - 3 * mean * c + 3 * mean**2 * b - mean**3 * a,
        e - 4 * mean * d + 6 * mean**2 * c - 4 * mean**3 * b + mean**4 * a,
    )
    resolution, sigma = deviation / response, torch.where(variance > 0, variance, 1.0).sqrt()
    two, three, four = (part / sigma**k for k, part in enumerate(central, start=2))
    one = (b - mean * a) / sigma
    # The mean square of (z^2 - 1) / 2 - z sigma / mu.
    influence = 0.25 * four - resolution * three + (resolution.square() - 0.5) * two + resolution * one + 0.25 * a
    known = (variance > 0).to(variance)
    return Moments(
        response,
        known * width * (central[0].clamp(min=0.0) / free).sqrt() / total,
        resolution,
        known * resolution.abs() * influence.clamp(min=0.0).sqrt() / total,
    )
