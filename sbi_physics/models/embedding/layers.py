r"""Layers that keep the scale of what goes through them.

Weights are drawn with variance $g^2 / n_{in}$.  After a SiLU, whose output for a standard normal input has a mean
square of 0.356, the gain is $g = 0.356^{-1/2}$ (the argument of He et al. 2015, arXiv:1502.01852, for the rectifier).
"""

import torch
from torch import Tensor, nn

__all__ = ["AFTER_SILU", "linear", "orthogonal", "perceptron"]

AFTER_SILU = 1.677
"""Gain of a layer whose inputs come out of a SiLU."""


def linear(inputs: int, outputs: int, *, gain: float = 1.0) -> nn.Linear:
    """A linear layer with weights of standard deviation ``gain / sqrt(inputs)`` and no offset at the start."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=gain / inputs**0.5)
    nn.init.zeros_(layer.bias)
    return layer


def perceptron(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """A multilayer perceptron with `layers` hidden layers and SiLU: ``(*, inputs)`` to ``(*, outputs)``."""
    parts: list[nn.Module] = []
    width, gain = inputs, 1.0
    for _ in range(layers):
        parts += [linear(width, hidden, gain=gain), nn.SiLU()]
        width, gain = hidden, AFTER_SILU
    return nn.Sequential(*parts, linear(width, outputs, gain=gain))


def orthogonal(rows: int, columns: int, blocks: int) -> Tensor:
    """Orthogonal matrices on top of each other: ``(blocks * rows, columns)``."""
    return torch.cat([nn.init.orthogonal_(torch.empty(rows, columns)) for _ in range(blocks)])
