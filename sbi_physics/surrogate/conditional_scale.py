r"""`ConditionalScale`: a number in units of its scatter where it is, for scatter that changes by orders of magnitude.

Mean and standard deviation of y are learned at equally spaced knots of a variable u, each from the events nearby, and
interpolated linearly in between, the deviation by its logarithm; y becomes $(y - m(u)) / s(u)$.
"""

import torch
from torch import Tensor, nn

__all__ = ["ConditionalScale"]

_KNOTS = 24
_FEWEST = 50
_MOST = 1 << 18
_SMALLEST = 1e-12


class ConditionalScale(nn.Module):
    """A map of y given u, learned once; before it is, and where y has zeros, nothing is changed."""

    ends: Tensor
    mean: Tensor
    log_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ends", torch.tensor([0.0, 1.0]))
        self.register_buffer("mean", torch.zeros(_KNOTS))
        self.register_buffer("log_scale", torch.zeros(_KNOTS))

    def fit(self, u: Tensor, y: Tensor) -> "ConditionalScale":
        """Learn from u ``(n,)`` and y ``(n,)``; returns itself."""
        low, high = float(u.min()), float(u.max())
        self.ends.copy_(torch.tensor([low, high if high > low else low + 1]))
        self.mean.zero_()
        self.log_scale.zero_()
        if bool((y == 0).any()):
            return self
        # Every so many: what is learned at two dozen knots has no need of more.
        every = max(1, len(y) // _MOST)
        u, y = u[::every], y[::every].double()
        near = self._nearness(u).double()
        # Where there are few events, those further away count, too.
        for _ in range(2 * _KNOTS):
            if bool((near.sum(0) >= min(_FEWEST, len(y) / 2)).all()):
                break
            padded = nn.functional.pad(near, (1, 1))
            near = near + 0.5 * (padded[:, :-2] + padded[:, 2:])
        total = near.sum(0)
        mean = near.T @ y / total
        # Around the interpolated mean: how it changes between two knots is no scatter.
        square = near.T @ (y - self._nearness(u).double() @ mean).square() / total
        self.mean.copy_(mean)
        self.log_scale.copy_(0.5 * square.clamp(min=max(_SMALLEST, _SMALLEST * float(y.square().mean()))).log())
        return self

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        """The scaled y ``(n,)`` at u ``(n,)``."""
        near = self._nearness(u)
        return (y - near @ self.mean) * torch.exp(-near @ self.log_scale)

    def inverse(self, u: Tensor, scaled: Tensor) -> Tensor:
        """The y ``(n,)`` that `forward` scaled at u ``(n,)``."""
        near = self._nearness(u)
        return scaled * torch.exp(near @ self.log_scale) + near @ self.mean

    def _nearness(self, u: Tensor) -> Tensor:
        """The weights ``(n, knots)`` of linear interpolation; beyond the ends those of the ends."""
        place = ((u - self.ends[0]) / (self.ends[1] - self.ends[0])).clamp(0, 1) * (_KNOTS - 1)
        near = (1 - (place.unsqueeze(-1) - torch.arange(_KNOTS, device=u.device)).abs()).clamp(min=0)
        return near.to(self.mean.dtype)
