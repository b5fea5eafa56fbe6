r"""A mixture of two Gaussians about one mean, one wide and one narrow, in the plane.

With a uniform prior on $[-10, 10]^2$,

$$ x \sim \tfrac12 N(\theta, I) + \tfrac12 N(\theta, 0.01\,I). $$

The posterior is the same mixture about x, cut by the edges of the prior.  Sisson et al. 2007
(doi:10.1073/pnas.0607208104); recipe of Lueckmann et al. 2021 (arXiv:2101.04653, T.7).
"""

import math

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.errors import ShapeError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import seeded

__all__ = ["GaussianMixture"]

_BOUND = 10.0
_WIDE, _NARROW = 1.0, 0.1


class GaussianMixture:
    """Two parameters, two observables, a sharp peak on a broad foot."""

    name = "gaussian_mixture"

    def __init__(self) -> None:
        bound = torch.full((2,), _BOUND)
        self.parameters = Parameters.from_prior(td.Independent(td.Uniform(-bound, bound), 1))
        self.x_shape = torch.Size([2])

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, 2)`` gives float32 x ``(n, 2)``."""
        self.parameters.check_width(theta)
        with seeded(seed, theta.device):
            wide = torch.rand((len(theta), 1), device=theta.device) < 0.5
            noise = torch.randn(theta.shape, dtype=torch.float64, device=theta.device)
        return (theta.to(torch.float64) + torch.where(wide, _WIDE, _NARROW) * noise).to(torch.float32)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats, float64: theta ``(*, 2)`` broadcast with x ``(*, 2)`` gives ``(*,)``."""
        self.parameters.check_width(theta)
        if x.ndim == 0 or x.shape[-1] != 2:
            raise ShapeError(f"x: expected shape (*, 2), got {tuple(x.shape)}")
        squares = ((x.to(theta.device, torch.float64) - theta.to(torch.float64)) ** 2).sum(-1)
        wide, narrow = (-0.5 * squares / s**2 - math.log(2 * math.pi * s**2) for s in (_WIDE, _NARROW))
        return torch.logaddexp(wide, narrow) - math.log(2)
