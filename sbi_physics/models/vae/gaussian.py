r"""Gaussians without correlations, whose means and standard deviations a network gives.

The mean is linear in the inputs and the condition plus what a residual network adds, which is nothing at the start:

$$ m(z, c) = A z + B c + b + f(z, c). $$

A model of such Gaussians begins as a probabilistic principal component analysis (Tipping and Bishop 1999,
doi:10.1111/1467-9868.00196), so that what is linear in the data need not be learned by a network.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sbi_physics.models.embedding.layers import linear
from sbi_physics.models.residual import ResidualNetwork

__all__ = ["DiagonalGaussian", "GaussianNetwork", "bounded"]

# A standard deviation stays within exp(-7) ... exp(7), in units in which the events have one.
_LARGEST_LOG = 7.0
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class DiagonalGaussian(NamedTuple):
    """Independent normal distributions of K numbers.

    Attributes:
        mean: ``(n, K)``.
        log_sd: logarithms of the standard deviations, ``(n, K)`` or what broadcasts to it.
    """

    mean: Tensor
    log_sd: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """The point ``(n, K)`` that standard normal noise ``(n, K)`` stands for."""
        return self.mean + self.log_sd.exp() * noise

    def log_prob(self, points: Tensor) -> Tensor:
        """Log-density ``(n,)`` of points ``(n, K)``."""
        white = (points - self.mean) * (-self.log_sd).exp()
        return (-0.5 * white.square() - self.log_sd - _HALF_LOG_2PI).sum(-1)

    def divergence(self, other: "DiagonalGaussian") -> Tensor:
        """Kullback-Leibler divergence ``(n,)`` of this one from the other, in nats."""
        shift = (self.mean - other.mean) * (-other.log_sd).exp()
        change = self.log_sd - other.log_sd
        return 0.5 * (shift.square() + torch.expm1(2 * change) - 2 * change).sum(-1)

    def times(self, other: "DiagonalGaussian") -> "DiagonalGaussian":
        """The normalised product of the two densities: precisions add up."""
        precision, others = (-2 * self.log_sd).exp(), (-2 * other.log_sd).exp()
        total = precision + others
        return DiagonalGaussian((precision * self.mean + others * other.mean) / total, -0.5 * total.log())


class GaussianNetwork(nn.Module):
    """A network from inputs and a condition to a `DiagonalGaussian`.

    Args:
        inputs: width of the inputs.
        outputs: K.
        condition_features: width of the condition; None for a network without one.
        hidden_features: width of the hidden layers.
        blocks: number of residual blocks.
        spread: whether the network gives the standard deviations, too; they are one otherwise.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition_features: int | None,
        *,
        hidden_features: int,
        blocks: int,
        spread: bool = True,
    ) -> None:
        super().__init__()
        self.direct = linear(inputs, outputs)
        self.shift = None if condition_features is None else linear(condition_features, outputs, gain=0.0)
        self.network = ResidualNetwork(
            inputs,
            2 * outputs if spread else outputs,
            hidden_features=hidden_features,
            blocks=blocks,
            condition_features=condition_features,
        )
        self._outputs = outputs

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> DiagonalGaussian:
        """The Gaussians for inputs ``(n, inputs)``; the condition has n rows, or one row for all."""
        change = self.network(inputs, condition)
        mean = self.direct(inputs) + change[:, : self._outputs]
        if self.shift is not None:
            mean = mean + self.shift(condition)
        raw = change[:, self._outputs :]
        return DiagonalGaussian(mean, bounded(raw) if raw.shape[1] else torch.zeros_like(mean))


def bounded(raw: Tensor) -> Tensor:
    """A smooth map of any number to a logarithm of a standard deviation that is neither huge nor tiny."""
    return _LARGEST_LOG * torch.tanh(raw / _LARGEST_LOG)
