"""A residual network, for what needs nothing more special: ratios, probabilities of success."""

import torch
from torch import Tensor, nn

__all__ = ["ResidualNetwork"]


class ResidualNetwork(nn.Module):
    """From inputs ``(*, features)`` to ``(*, outputs)``; zero at the start.

    Args:
        features: width of the inputs.
        outputs: width of the result.
        hidden_features: width of the layers between.
        blocks: residual blocks of two layers each.
    """

    def __init__(self, features: int, outputs: int, hidden_features: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden_features)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden_features),
                nn.Linear(hidden_features, hidden_features),
                nn.SiLU(),
                nn.Linear(hidden_features, hidden_features),
            )
            for _ in range(blocks)
        )
        self.last = nn.Linear(hidden_features, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs."""
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(torch.nn.functional.silu(hidden))
