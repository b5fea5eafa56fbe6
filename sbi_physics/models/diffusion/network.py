"""The network of a diffusion model: the velocity of noisy events at an angle, given a context."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.models.residual import ResidualNetwork

__all__ = ["SMALLEST_LEVEL", "VelocityNetwork"]

# What the network can tell apart; in standardised coordinates nothing finer than this is learned.
SMALLEST_LEVEL = 1e-3
_FREQUENCIES = 8
_KNOTS = (-2.0, -1.0, 0.0, 1.0, 2.0)


class VelocityNetwork(nn.Module):
    """A residual network of noisy events, whose blocks are told the angle and the context; zero at the start.

    Beside a network that is narrower than twice its D numbers there is a function of each number alone, bent at five
    places, whose slopes follow from angle and context: what passes through the network has at most the rank of its
    width, and noise that the numbers do not share has that of D.

    The angle enters as the logarithm of its sine, the level of noise, and as Fourier features of that.
    What a context says is computed apart from the angle: for many draws at one context, once.

    Args:
        features: D.
        context_features: C; None for a network without a context.
        hidden_features: width of all hidden layers.
        blocks: residual blocks.
    """

    frequencies: Tensor

    def __init__(self, features: int, context_features: int | None, *, hidden_features: int, blocks: int) -> None:
        super().__init__()
        self.events = ResidualNetwork(
            features, features, hidden_features=hidden_features, blocks=blocks, condition_features=hidden_features
        )
        self.angle = _two_layers(2 * _FREQUENCIES + 1, hidden_features)
        self.context = None if context_features is None else _two_layers(context_features, hidden_features)
        self.both = nn.Linear(hidden_features, hidden_features)
        self.single: nn.Linear | None = None
        if 2 * features > hidden_features:
            self.single = nn.Linear(hidden_features, (1 + len(_KNOTS)) * features)
            nn.init.zeros_(self.single.weight)
            nn.init.zeros_(self.single.bias)
        self.register_buffer("frequencies", 0.5 * math.pi * torch.arange(1, _FREQUENCIES + 1), persistent=False)

    def describe(self, summary: Tensor | None) -> Tensor | None:
        """What the network makes of summaries ``(n, C)``: ``(n, H)``."""
        return None if self.context is None else self.context(summary)

    def forward(self, events: Tensor, angles: Tensor, description: Tensor | None) -> Tensor:
        """The velocity ``(n, D)`` of noisy events ``(n, D)``; angles and descriptions have n rows, or one for all."""
        return self.velocity(events, self.condition(angles, description))

    def velocity(self, events: Tensor, condition: Tensor) -> Tensor:
        """The velocity ``(n, D)`` of noisy events, given what `condition` says: n rows, or one for all."""
        velocity = self.events(events, condition)
        return velocity if self.single is None else velocity + self._one_by_one(events, condition, self.single)

    @staticmethod
    def _one_by_one(events: Tensor, condition: Tensor, layer: nn.Linear) -> Tensor:
        """A function of each number alone, of which there are more than the network is wide."""
        slope, *slopes = layer(condition).chunk(1 + len(_KNOTS), -1)
        velocity = slope * events
        for knot, more in zip(_KNOTS, slopes, strict=True):
            velocity = torch.addcmul(velocity, more, F.silu(events - knot))
        return velocity

    def condition(self, angles: Tensor, description: Tensor | None) -> Tensor:
        """What the blocks are told at angles ``(n,)``, given the descriptions ``(n, H)``: ``(n, H)``."""
        level = angles.sin().clamp(min=SMALLEST_LEVEL).log().unsqueeze(-1) / math.log(SMALLEST_LEVEL)
        phases = level * self.frequencies
        hidden = self.angle(torch.cat([level, phases.cos(), phases.sin()], -1))
        return F.silu(self.both(F.silu(hidden if description is None else hidden + description)))


def _two_layers(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
