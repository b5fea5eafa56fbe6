"""`ResidualEncoder`: the default for observations that are a list of numbers.

The transforms of a flow each see the context; what they need of it is much the same.  A network that works it out once,
for all of them, learns it from fewer simulations.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.models.embedding.encoder import Encoder, counts, shape_of
from sbi_physics.models.scaling import Scaling, Standardise, Whiten

__all__ = ["MOST_WHITENED", "ResidualEncoder"]

MOST_WHITENED = 512
"""Numbers of an observation up to which their correlations are removed."""


class ResidualEncoder(Encoder):
    """A residual network on the flat observation, which is whitened first where it is not too long.

    Args:
        shape: of one observation, any; ``()`` for a single number.
        features: width of what comes out.
        hidden: width of the layers.
        blocks: residual blocks of two layers each.
    """

    accepts_missing = False

    def __init__(self, shape: Sequence[int], *, features: int = 32, hidden: int = 64, blocks: int = 2) -> None:
        options = counts(features=features, hidden=hidden, blocks=blocks)
        super().__init__("residual", shape_of(shape, "axes of at least 1 entry"), features, options)
        self.first = nn.Linear(self.shape.numel(), hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            for _ in range(blocks)
        )
        self.last = nn.Linear(hidden, features)

    def scaling(self) -> Scaling:
        """Whitening, or one mean and scale for each entry."""
        return (Whiten if self.shape.numel() <= MOST_WHITENED else Standardise)(self.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        hidden = self.first(torch.flatten(x, 1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(F.silu(hidden))
