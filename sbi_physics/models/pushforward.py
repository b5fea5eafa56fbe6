r"""`PushforwardGenerator`: a generator whose draws are a function of standard normal numbers.

$$ x = T(e, c), \qquad e \sim N(0, I_K) . $$

All randomness is in the base noise e: what draws so can be written down as a function (`surrogate.export`), and
whoever hands in the same noise gets the same events.  Where a model needs a number that is uniform on (0, 1) it takes
$\Phi(e)$.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError
from sbi_physics.models.generator import ConditionalGenerator

__all__ = ["PushforwardGenerator", "uniform"]


class PushforwardGenerator(ConditionalGenerator, ABC):
    """A conditional generator of D numbers from K standard normal ones.

    The arguments are those of `ConditionalGenerator`.
    """

    @property
    @abstractmethod
    def noise_features(self) -> int:
        """K."""

    @abstractmethod
    def _from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        """The encoded events ``(n, D)`` that noise ``(n, K)`` stands for; summary ``(n, C)``, one row, or None."""

    @torch.no_grad()
    def from_noise(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """The events ``(n, D)`` that standard normal noise ``(n, K)`` stands for.

        Args:
            noise: ``(n, K)``.
            context: ``(n, *context_shape)``, finite (which is not checked); None for an unconditional model.

        Raises:
            ShapeError: the noise has another width, or the context does not fit it.
        """
        if noise.ndim != 2 or noise.shape[1] != self.noise_features:
            raise ShapeError(f"noise: expected shape (n, {self.noise_features}), got {tuple(noise.shape)}")
        wanted = (noise.shape[0], *self.context_shape) if self.conditional else None
        given = None if context is None else tuple(context.shape)
        if given != wanted:
            raise ShapeError(f"context: expected {_words(wanted)}, got {_words(given)}")
        summary = self._embedded(None if context is None else self.context_scaling(context))
        return self.decoded(self._from_noise(noise, summary))[0]


def uniform(noise: Tensor) -> Tensor:
    """The numbers ``(*)`` uniform on [0, 1] that standard normal ones ``(*)`` stand for."""
    return 0.5 * (1 + torch.erf(noise * math.sqrt(0.5)))


def _words(shape: tuple[int, ...] | None) -> str:
    return "None" if shape is None else f"shape {shape}"
