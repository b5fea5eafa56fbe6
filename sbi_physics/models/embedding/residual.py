"""`ResidualEncoder`: the default for observations that are a list of numbers, whole or in their discriminants.

The transforms of a flow each see the context; what they need of it is much the same.  A network that works it out once,
for all of them, learns it from fewer simulations.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.core.errors import ShapeError
from sbi_physics.models.discriminants import MOST_COORDINATES, MOST_ENTRIES, Discriminants
from sbi_physics.models.embedding.encoder import Encoder, counts, flag, shape_of
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
        discriminant: whether it sees the coordinates of signal over noise alone (`models.discriminants`).

    Raises:
        ShapeError: there are too many entries for discriminants.
    """

    accepts_missing = False

    def __init__(
        self,
        shape: Sequence[int],
        *,
        features: int = 32,
        hidden: int = 64,
        blocks: int = 2,
        discriminant: bool = False,
    ) -> None:
        options: dict[str, Any] = counts(features=features, hidden=hidden, blocks=blocks)
        if flag(discriminant, "discriminant"):
            options["discriminant"] = True
        super().__init__("residual", shape_of(shape, "axes of at least 1 entry"), features, options)
        entries = self.shape.numel()
        if discriminant and entries > MOST_ENTRIES:
            raise ShapeError(f"shape: expected at most {MOST_ENTRIES} entries for discriminants, got {entries}")
        self.discriminant = discriminant
        self.entries = min(entries, MOST_COORDINATES) if discriminant else entries
        self.first = nn.Linear(self.entries, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            for _ in range(blocks)
        )
        self.last = nn.Linear(hidden, features)

    def scaling(self) -> Scaling:
        """Discriminants; else whitening, or one mean and scale for each entry."""
        if self.discriminant:
            return Discriminants(self.shape)
        return (Whiten if self.shape.numel() <= MOST_WHITENED else Standardise)(self.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        hidden = self.first(torch.flatten(x, 1)[:, : self.entries])
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(F.silu(hidden))
