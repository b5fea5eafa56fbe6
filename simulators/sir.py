r"""SIR: an epidemic runs through a population, and tests of 1,000 people tell how many are infected.

Of N = 10^6 people one is infected at first.  With contact rate beta and recovery rate gamma,

$$ \dot S = -\beta S I / N, \qquad \dot I = \beta S I / N - \gamma I, \qquad \dot R = \gamma I, $$

and x holds the counts Binomial(1000, I/N) on the days 0, 17, ..., 153.  The prior is log-normal: beta about 0.4 per day
with a width of 0.5 in its logarithm, gamma about 0.125 per day with 0.2.  Recipe of Lueckmann et al. 2021
(arXiv:2101.04653, T.9), who follow 160 days and keep every 17th.
"""

import math

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.errors import ShapeError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.random import seeded
from simulators.predator_prey import log_populations

__all__ = ["SIR"]

_POPULATION, _INFECTED = 1e6, 1.0
_TESTS = 1000
_DAYS = tuple(float(day) for day in range(0, 160, 17))
_ALMOST_ONE = 1 - 2**-53


class SIR:
    """Two rates per day, ten counts."""

    name = "sir"

    def __init__(self) -> None:
        beta, gamma = td.LogNormal(math.log(0.4), 0.5), td.LogNormal(math.log(0.125), 0.2)
        self.parameters = Parameters(
            [
                Parameter("beta", beta, unit="1 / d", label=r"$\beta$"),
                Parameter("gamma", gamma, unit="1 / d", label=r"$\gamma$"),
            ]
        )
        self.x_shape = torch.Size([len(_DAYS)])

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, 2)`` per day gives counts x ``(n, 10)``, float32.

        A row is NaN from where the epidemic cannot be followed: at rates of more than 1e20 per day.
        """
        self.parameters.check_width(theta)
        share = torch.exp(_log_share(theta.detach())).clamp(max=1.0)
        known = torch.isfinite(share)
        with seeded(seed, theta.device):
            counts = _binomial(torch.where(known, share, 0.0))
        return torch.where(known, counts, torch.nan).to(torch.float32)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats, float64: theta ``(*, 2)`` broadcast with x ``(*, 10)`` gives ``(*,)``.

        Minus infinity where x holds anything but whole numbers from 0 to 1,000, or the epidemic cannot be followed.
        """
        self.parameters.check_width(theta)
        if x.ndim == 0 or x.shape[-1] != len(_DAYS):
            raise ShapeError(f"x: expected shape (*, {len(_DAYS)}), got {tuple(x.shape)}")
        counts = x.to(theta.device, torch.float64)
        log_share = _log_share(theta).clamp(max=math.log(_ALMOST_ONE))
        log_ways = math.lgamma(_TESTS + 1) - torch.lgamma(counts + 1) - torch.lgamma(_TESTS - counts + 1)
        terms = log_ways + counts * log_share + (_TESTS - counts) * torch.log1p(-torch.exp(log_share))
        possible = (counts >= 0) & (counts <= _TESTS) & (counts == counts.round()) & torch.isfinite(log_share)
        return torch.where(possible, terms, -torch.inf).sum(-1)


def _log_share(theta: Tensor) -> Tensor:
    """The logarithm of I/N on each day, float64 ``(*, 10)``."""
    beta, gamma = theta.to(torch.float64).unbind(-1)
    rates = torch.stack([torch.zeros_like(beta), beta, gamma, beta], -1)
    infected = _INFECTED / _POPULATION
    start = torch.tensor([math.log1p(-infected), math.log(infected)], dtype=torch.float64, device=theta.device)
    return log_populations(rates, start, _DAYS)[..., 1]


def _binomial(share: Tensor) -> Tensor:
    if share.device.type == "meta":
        return torch.empty_like(share)  # torch.binomial does not know the device that computes shapes alone
    return torch.binomial(torch.full_like(share, _TESTS), share)
