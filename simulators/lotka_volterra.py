r"""Lotka-Volterra: two species, one the food of the other, counted ten times with a tenth of error.

From X = 30 prey and Y = 1 predators,

$$ \dot X = \alpha X - \beta X Y, \qquad \dot Y = -\gamma Y + \delta X Y, $$

and x holds ten values of X, then ten of Y, at the times 0, 2.1, ..., 18.9 days, with log-normal noise of width 0.1.
The priors of the rates are log-normal of width 0.5, alpha and gamma about exp(-0.125), beta and delta about exp(-3).
Recipe of Lueckmann et al. 2021 (arXiv:2101.04653, T.10), who follow 20 days in steps of 0.1, keep every 21st and cut
the populations to [1e-10, 1e4] before the noise.
"""

import math

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.errors import ShapeError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.random import seeded
from simulators.predator_prey import log_populations

__all__ = ["LotkaVolterra"]

_PREY, _PREDATORS = 30.0, 1.0
_TIMES = tuple(2.1 * k for k in range(10))
_NOISE = 0.1
_LOWEST, _HIGHEST = math.log(1e-10), math.log(1e4)


class LotkaVolterra:
    """Four rates per day, twenty counts."""

    name = "lotka_volterra"

    def __init__(self) -> None:
        locations = {"alpha": -0.125, "beta": -3.0, "gamma": -0.125, "delta": -3.0}
        self.parameters = Parameters(
            [
                Parameter(name, td.LogNormal(location, 0.5), unit="1 / d", label=rf"$\{name}$")
                for name, location in locations.items()
            ]
        )
        self.x_shape = torch.Size([2 * len(_TIMES)])

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, 4)`` per day gives x ``(n, 20)``, float32, prey before predators.

        Values are NaN from where a swing is too fast to be followed, which no draw of the prior comes near.
        """
        self.parameters.check_width(theta)
        location = _location(theta.detach())
        with seeded(seed, theta.device):
            noise = torch.randn(location.shape, dtype=torch.float64, device=theta.device)
        return torch.exp(location + _NOISE * noise).to(torch.float32)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats, float64: theta ``(*, 4)`` broadcast with x ``(*, 20)`` gives ``(*,)``.

        Minus infinity where x holds anything but positive numbers, or a swing cannot be followed.
        """
        self.parameters.check_width(theta)
        if x.ndim == 0 or x.shape[-1] != 2 * len(_TIMES):
            raise ShapeError(f"x: expected shape (*, {2 * len(_TIMES)}), got {tuple(x.shape)}")
        location = _location(theta)
        logs = torch.log(x.to(theta.device, torch.float64))
        standard = (logs - location) / _NOISE
        terms = -0.5 * standard**2 - math.log(_NOISE * math.sqrt(2 * math.pi)) - logs
        return torch.where(torch.isfinite(terms), terms, -torch.inf).sum(-1)


def _location(theta: Tensor) -> Tensor:
    """The logarithms of both populations at each time, float64 ``(*, 20)``."""
    start = torch.tensor([math.log(_PREY), math.log(_PREDATORS)], dtype=torch.float64, device=theta.device)
    followed = log_populations(theta, start, _TIMES)
    return followed.transpose(-1, -2).flatten(-2).clamp(_LOWEST, _HIGHEST)
