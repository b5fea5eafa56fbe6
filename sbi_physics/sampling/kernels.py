r"""A density estimate that follows clouds of several modes and sizes, for many clouds at once.

The variable-kernel estimate of Breiman, Meisel and Purcell 1977 (Technometrics 19, 135) puts a Gaussian on each of M
points c of a cloud,

$$ q(z) = \frac1M \sum_c N(z;\, c,\, s_c^2 K), $$

where the size s_c is the distance from c to its nearest neighbours and the shape K the mean covariance of those
differences; neither knows how far the modes of the cloud lie apart.  As a proposal for the other half of an ensemble
(the idea of kombine, Farr and Farr 2015, and of the KDE move of emcee) it jumps between modes as often as their weights
say.
"""

import torch
from torch import Tensor

__all__ = ["VariableKernels"]

_BLOCKS = 5
"""Nearest neighbours are looked for in this many parts of the cloud, which is faster than sorting distances."""

_ENTRIES_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Entries of a matrix of distances that fit the cache, or the memory."""

_SMALLEST_EXPONENT = -80.0
"""Below this e**x is a denormal number in single precision, which takes a CPU ten times as long."""


class VariableKernels:
    """One density for each of B clouds.

    Args:
        clouds: ``(B, n, P)`` points, float64, in an order that does not matter; n at least 10.
        centres: the most points of each cloud that carry a kernel.
    """

    def __init__(self, clouds: Tensor, centres: int = 256) -> None:
        b, n, p = clouds.shape
        m = min(centres, n)
        # Twice whitened: by the cloud, so that distances mean something, then by the shape of the kernels.
        self._mean = clouds.mean(1, keepdim=True)
        first = _cholesky(clouds - self._mean)
        white = _solve(first, clouds - self._mean)
        distance, difference = _neighbours(white, m)
        size = distance.clamp(min=_tiny_part(distance))
        shape = _cholesky((difference / size.sqrt()[..., None, None]).reshape(b, -1, p)) * p**0.5
        self._factor = first @ shape
        self._centres = _solve(shape, white[:, :m])
        self._sizes = (size / p).sqrt()
        precision = self._sizes**-2
        constant = -0.5 * self._centres.square().sum(-1) * precision - p * torch.log(self._sizes)
        # ln of each kernel is linear in (y, |y|**2, 1): one matrix product for all.
        columns = [self._centres * precision.unsqueeze(-1), -0.5 * precision.unsqueeze(-1), constant.unsqueeze(-1)]
        self._linear = torch.cat(columns, -1).transpose(1, 2)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of z ``(B, m, P)``, up to a constant of each cloud: ``(B, m)``."""
        y = _solve(self._factor, z - self._mean)
        features = torch.cat([y, y.square().sum(-1, keepdim=True), torch.ones_like(y[..., :1])], -1)
        step = _clouds_at_once(y.shape[1] * self._sizes.shape[1], y.device)
        blocks = zip(features.split(step), self._linear.split(step), strict=True)
        return torch.cat([_log_sum_exp(rows @ columns) for rows, columns in blocks])

    def sample(self, m: int, random: torch.Generator) -> Tensor:
        """Draw ``(B, m, P)``."""
        b, kernels, p = self._centres.shape
        device, dtype = self._centres.device, self._centres.dtype
        chosen = torch.randint(kernels, (b, m), generator=random, device=device)
        noise = torch.randn((b, m, p), generator=random, device=device, dtype=dtype)
        centre = torch.take_along_dim(self._centres, chosen.unsqueeze(-1), 1)
        y = centre + self._sizes.gather(1, chosen).unsqueeze(-1) * noise
        return self._mean + y @ self._factor.transpose(1, 2)


def _clouds_at_once(entries: int, device: torch.device) -> int:
    return max(1, _ENTRIES_AT_ONCE[device.type] // entries)


def _cholesky(centred: Tensor) -> Tensor:
    """The factor of the covariance of ``(B, n, P)``, with a touch of noise, so that it exists for any cloud."""
    covariance = centred.transpose(1, 2) @ centred / centred.shape[1]
    deviation = torch.diagonal(covariance, dim1=1, dim2=2).sqrt().clamp(min=1e-100)
    correlation = covariance / deviation.unsqueeze(1) / deviation.unsqueeze(2)
    noise = 1e-9 * torch.eye(centred.shape[-1], dtype=centred.dtype, device=centred.device)
    return deviation.unsqueeze(2) * torch.linalg.cholesky(correlation + noise)


def _solve(factor: Tensor, rows: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, rows.transpose(1, 2), upper=False).transpose(1, 2)


def _neighbours(white: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Of the first m points: mean squared distance ``(B, m)`` to the nearest of each block, and those differences."""
    step = _clouds_at_once(m * white.shape[1], white.device)
    distances, differences = zip(*(_nearest(block, m) for block in white.split(step)), strict=True)
    return torch.cat(distances), torch.cat(differences)


def _nearest(white: Tensor, m: int) -> tuple[Tensor, Tensor]:
    b, n, p = white.shape
    centres, width = white[:, :m], n // _BLOCKS
    squares = white.square().sum(-1)
    distance = (centres @ white.transpose(1, 2)).mul_(-2).add_(squares.unsqueeze(1)).add_(squares[:, :m].unsqueeze(2))
    own = torch.arange(m, device=white.device)
    distance[:, own, own] = torch.inf
    nearest, index = distance[..., : width * _BLOCKS].reshape(b, m, _BLOCKS, width).min(-1)
    index = index + width * torch.arange(_BLOCKS, device=white.device)
    neighbours = torch.take_along_dim(white, index.reshape(b, -1, 1), 1).reshape(b, m, _BLOCKS, p)
    return nearest.mean(-1), neighbours - centres.unsqueeze(2)


def _tiny_part(distance: Tensor) -> Tensor:
    """A thousandth of the median: the least size of a kernel, for points that come several times."""
    return (1e-3 * distance.median(-1, keepdim=True).values).clamp(min=1e-12)


def _log_sum_exp(exponents: Tensor) -> Tensor:
    """`torch.logsumexp` over the last axis, to single precision and in place, which is three times as fast."""
    peak = exponents.amax(-1, keepdim=True)
    terms = exponents.sub_(peak).float().clamp_(min=_SMALLEST_EXPONENT).exp_()
    return peak.squeeze(-1) + torch.log(terms.sum(-1)).double()
