"""Standardisation: shift and scale each feature to mean zero and standard deviation one, learned once from data."""

import torch
from torch import Tensor, nn

__all__ = ["Standardise"]


class Standardise(nn.Module):
    """``(x - mean) / scale`` for each of the features of an event of any shape.

    A feature that is constant in the data is shifted but not scaled.

    Args:
        shape: the shape of one event.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: torch.Size | tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def fit(self, data: Tensor) -> "Standardise":
        """Learn mean and scale from data ``(n, *shape)``; sums are in double precision."""
        wide = data.double()
        mean, deviation = wide.mean(0), wide.std(0, correction=0)
        constant = deviation <= 1e-12 * mean.abs().clamp(min=1e-30)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, 1.0, deviation))
        return self

    @property
    def ladj(self) -> Tensor:
        """ln|d(output)/d(input)|, a scalar."""
        return -self.scale.log().sum()

    def forward(self, data: Tensor) -> Tensor:
        """Standardise data ``(*, *shape)``."""
        return (data - self.mean) / self.scale

    def inverse(self, data: Tensor) -> Tensor:
        """Undo `forward`."""
        return data * self.scale + self.mean
