r"""`ResidualNetwork`: a multilayer perceptron of residual blocks, each of which may be told a condition.

With inputs x and a condition c,

$$ h_0 = W x, \qquad h_{i+1} = h_i + B_i\,\sigma\big((1 + G_i c) \odot A_i\,\sigma(h_i) + S_i c\big), \qquad
   y = O\,\sigma(h_n), $$

where sigma is the SiLU: pre-activation blocks (He et al. 2016, arXiv:1603.05027) whose hidden units are scaled and
shifted by the condition (Perez et al. 2018, arXiv:1709.07871).  Each block starts as the identity.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.core.checks import positive_integer

__all__ = ["ResidualNetwork"]


class ResidualNetwork(nn.Module):
    """A residual network that is zero at the start.

    Args:
        inputs: width of the inputs.
        outputs: width of the outputs.
        hidden_features: width of the hidden layers.
        blocks: number of residual blocks.
        condition_features: width of the condition; None for a network without one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden_features: int,
        blocks: int,
        condition_features: int | None = None,
    ) -> None:
        super().__init__()
        width = positive_integer(hidden_features, "hidden_features")
        count = positive_integer(blocks, "blocks")
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(_Block(width, condition_features) for _ in range(count))
        self.last = nn.Linear(width, outputs)
        _set_to_zero(self.last)

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        """Outputs ``(n, outputs)`` of inputs ``(n, inputs)``; the condition has n rows, or one row for all."""
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.last(F.silu(hidden))


class _Block(nn.Module):
    def __init__(self, width: int, condition_features: int | None) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        _set_to_zero(self.outer)
        self.modulation = None
        if condition_features is not None:
            self.modulation = nn.Linear(condition_features, 2 * width)
            _set_to_zero(self.modulation)

    def forward(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        change = self.inner(F.silu(hidden))
        if self.modulation is not None:
            gain, shift = self.modulation(condition).chunk(2, -1)
            change = torch.addcmul(change + shift, change, gain)
        return hidden + self.outer(F.silu(change))


def _set_to_zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
