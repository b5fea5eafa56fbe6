r"""Bernoulli GLM: a neuron that spikes or not in each of 100 bins, driven by white noise through an unknown filter.

The stimulus I is fixed. With an offset and a filter of nine lags,

$$ P(y_t = 1) = \sigma(\psi_t), \qquad \psi_t = \theta_0 + \sum_{j=0}^{8} \theta_{1+j} I_{t-j} = (X\theta)_t, $$

and x = X^T y holds the number of spikes and, for each lag, the sum of the stimulus over the spikes.  It is sufficient:

$$ p(y \mid \theta) = \exp\!\big(\theta \cdot x - \textstyle\sum_t \ln(1 + e^{\psi_t})\big). $$

As the stimulus is made of real numbers, no two trains of spikes share their x, so this is also the probability of x.
A Gaussian prior favours smooth filters: precision 1/2 for the offset and F^T F for the filter, with
F = D D + diag(sqrt(j / 9)) and D the first difference.  Recipe of Lueckmann et al. 2021 (arXiv:2101.04653, T.5), who
draw the stimulus as 100 normal numbers of NumPy's legacy generator with seed 42.
"""

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.errors import ShapeError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import seeded

__all__ = ["BernoulliGLM"]

_BINS, _LAGS = 100, 9
_SEED = 42


class BernoulliGLM:
    """Ten parameters (an offset and a filter), ten sufficient statistics of a train of spikes.

    Attributes:
        design: X, float64 ``(100, 10)``: a column of ones, then the stimulus late by 0 to 8 bins.
    """

    name = "bernoulli_glm"

    def __init__(self) -> None:
        prior = td.MultivariateNormal(torch.zeros(1 + _LAGS), _prior_covariance().to(torch.float32))
        names = ["offset", *(f"filter_{j}" for j in range(_LAGS))]
        self.parameters = Parameters.from_prior(prior, names=names)
        self.x_shape = torch.Size([1 + _LAGS])
        self.design = _design()

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, 10)`` gives float32 x ``(n, 10)``."""
        self.parameters.check_width(theta)
        design = self.design.to(theta.device)
        probability = torch.sigmoid(theta.to(torch.float64) @ design.T)
        with seeded(seed, theta.device):
            spikes = torch.rand(probability.shape, dtype=torch.float64, device=theta.device) < probability
        return (spikes.to(torch.float64) @ design).to(torch.float32)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-probability in nats, float64: theta ``(*, 10)`` broadcast with x ``(*, 10)`` gives ``(*,)``.

        For an x that a train of spikes gives; that there is one is not checked.
        """
        self.parameters.check_width(theta)
        if x.ndim == 0 or x.shape[-1] != 1 + _LAGS:
            raise ShapeError(f"x: expected shape (*, {1 + _LAGS}), got {tuple(x.shape)}")
        value, statistics = theta.to(torch.float64), x.to(theta.device, torch.float64)
        psi = value @ self.design.to(theta.device).T
        return (value * statistics).sum(-1) - torch.nn.functional.softplus(psi).sum(-1)


def _design() -> Tensor:
    # The one generator whose numbers NumPy promises never to change: nothing else gives the stimulus of the recipe.
    stimulus = np.random.RandomState(_SEED).randn(_BINS).astype(np.float32)
    design = torch.ones((_BINS, 1 + _LAGS), dtype=torch.float64)
    for lag in range(_LAGS):
        design[:lag, 1 + lag] = 0.0
        design[lag:, 1 + lag] = torch.as_tensor(stimulus[: _BINS - lag])
    return design


def _prior_covariance() -> Tensor:
    """Float64 ``(10, 10)``."""
    one = torch.eye(_LAGS, dtype=torch.float64)
    difference = one - torch.diag(torch.ones(_LAGS - 1, dtype=torch.float64), -1)
    growth = torch.diag((torch.arange(_LAGS, dtype=torch.float64) / _LAGS).sqrt())
    smoothness = difference @ difference + growth
    precision = torch.zeros((1 + _LAGS, 1 + _LAGS), dtype=torch.float64)
    precision[0, 0] = 0.5
    precision[1:, 1:] = smoothness.T @ smoothness
    covariance = torch.linalg.inv(precision)
    return (covariance + covariance.T) / 2
