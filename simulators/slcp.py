r"""SLCP, "simple likelihood, complex posterior": four points from a Gaussian whose shape depends on squares.

With $m = (\theta_0, \theta_1)$, $s_1 = \theta_2^2$, $s_2 = \theta_3^2$, $\rho = \tanh\theta_4$ and a uniform prior on
$[-3, 3]^5$, x holds four independent points of

$$ N(m, S), \qquad S = \begin{pmatrix} s_1^2 + \epsilon & \rho s_1 s_2 \\ \rho s_1 s_2 & s_2^2 + \epsilon \end{pmatrix},
   \qquad \epsilon = 10^{-6}, $$

one after the other.  The signs of theta_2 and theta_3 do not matter: the posterior has four symmetric modes with sharp
edges.  Papamakarios et al. 2019 (arXiv:1805.07226); recipe of Lueckmann et al. 2021 (arXiv:2101.04653, T.3).
"""

import math

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.errors import ShapeError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import seeded

__all__ = ["SLCP"]

_POINTS = 4
_EPSILON = 1e-6


class SLCP:
    """Five parameters, four points in the plane: x has 8 numbers, point by point."""

    name = "slcp"

    def __init__(self) -> None:
        bound = torch.full((5,), 3.0)
        self.parameters = Parameters.from_prior(td.Independent(td.Uniform(-bound, bound), 1))
        self.x_shape = torch.Size([2 * _POINTS])

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, 5)`` gives float32 x ``(n, 8)``."""
        self.parameters.check_width(theta)
        mean, tril = _mean_and_cholesky(theta)
        with seeded(seed, theta.device):
            noise = torch.randn((len(theta), _POINTS, 2), dtype=torch.float64, device=theta.device)
        points = mean.unsqueeze(-2) + noise @ tril.transpose(-1, -2)
        return points.reshape(len(theta), 2 * _POINTS).to(torch.float32)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats, float64: theta ``(*, 5)`` broadcast with x ``(*, 8)`` gives ``(*,)``."""
        self.parameters.check_width(theta)
        if x.ndim == 0 or x.shape[-1] != 2 * _POINTS:
            raise ShapeError(f"x: expected shape (*, {2 * _POINTS}), got {tuple(x.shape)}")
        mean, tril = _mean_and_cholesky(theta)
        points = x.to(theta.device, torch.float64).reshape(*x.shape[:-1], _POINTS, 2)
        first, second = (points - mean.unsqueeze(-2)).unbind(-1)
        a, b, c = tril[..., 0, 0, None], tril[..., 1, 0, None], tril[..., 1, 1, None]
        white_1 = first / a
        white_2 = (second - b * white_1) / c
        terms: Tensor = white_1**2 + white_2**2 + 2 * torch.log(a * c) + 2 * math.log(2 * math.pi)
        return -0.5 * terms.sum(-1)


def _mean_and_cholesky(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(*, 2)`` and lower Cholesky factor ``(*, 2, 2)`` of one point, float64."""
    value = theta.to(torch.float64)
    s_1, s_2, rho = value[..., 2] ** 2, value[..., 3] ** 2, torch.tanh(value[..., 4])
    variance_1, variance_2, covariance = s_1**2 + _EPSILON, s_2**2 + _EPSILON, rho * s_1 * s_2
    a = torch.sqrt(variance_1)
    b = covariance / a
    c = torch.sqrt(variance_2 - b**2)
    rows = [torch.stack([a, torch.zeros_like(a)], -1), torch.stack([b, c], -1)]
    return value[..., :2], torch.stack(rows, -2)
