r"""The linear timing model of a pulsar, and the space that it takes out of the residuals.

Residuals are differences to a fitted model; small errors of its parameters shift them by $M \varepsilon$, M the
derivatives of the residuals (design matrix).  Where no matrix is given, it has the columns that every pulsar needs:
an offset, spin frequency and spin-down (1, t, t^2), position (sine and cosine of a year), parallax (of half a year)
and proper motion (t times sine and cosine of a year).  With a flat prior of infinite width on epsilon, only the span
of M matters, and only the components of the residuals orthogonal to it carry information.
Source: van Haasteren & Levin 2013 (arXiv:1202.5932).
"""

import math

import torch
from torch import Tensor

from simulators.red_noise import DAYS_PER_YEAR

__all__ = ["design_matrix", "orthonormal_span"]

_RANK_TOLERANCE = 1e-12


def design_matrix(toas: Tensor) -> Tensor:
    """Nine columns ``(T, 9)`` at times ``(T,)`` in days; the scale of each column is of no meaning."""
    toas = toas.to(torch.float64)
    middle = (toas.max() + toas.min()) / 2
    t = (toas - middle) / ((toas.max() - toas.min()) / 2).clamp(min=1.0)
    year = 2 * math.pi * (toas - middle) / DAYS_PER_YEAR
    sine, cosine = torch.sin(year), torch.cos(year)
    columns = [
        torch.ones_like(t),
        t,
        t**2,
        sine,
        cosine,
        torch.sin(2 * year),
        torch.cos(2 * year),
        t * sine,
        t * cosine,
    ]
    return torch.stack(columns, dim=1)


def orthonormal_span(matrix: Tensor) -> Tensor:
    """An orthonormal basis ``(T, r)`` of the span of the columns of a matrix ``(T, M)``, r its rank."""
    norm = matrix.norm(dim=0)
    columns = matrix[:, norm > 0] / norm[norm > 0]
    if not columns.numel():
        return matrix.new_zeros(len(matrix), 0)
    vectors, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return vectors[:, values > _RANK_TOLERANCE * values[0]]
