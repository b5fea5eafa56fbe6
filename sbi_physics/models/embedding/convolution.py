"""`ConvEncoder1d` and `ConvEncoder2d`: spectra, regular series and images, where neighbours belong together.

A residual network (He et al. 2016, arXiv:1603.05027, with normalisation before each convolution) that halves the
resolution at its start and in each block, then means over a few cells along each axis.  The path around the blocks is
not normalised, so that the overall amplitude comes through; normalisation is over each observation on its own
(GroupNorm with one group, Wu and He 2018, arXiv:1803.08494), so that its features do not depend on what else is in the
batch.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.core.errors import UsageError
from sbi_physics.models.embedding.encoder import Encoder, counts, shape_of
from sbi_physics.models.embedding.layers import AFTER_SILU, linear
from sbi_physics.models.embedding.missing import with_indicators
from sbi_physics.models.scaling import Scaling, Standardise

__all__ = ["ConvEncoder1d", "ConvEncoder2d"]

_Convolution: TypeAlias = type[nn.Conv1d] | type[nn.Conv2d]

# Blocks are added until the longest axis is at most this long, unless their number is given.
_SHORT = 8


class ConvEncoder1d(Encoder):
    """A residual convolutional network along one axis; each channel has an indicator of which entries are missing.

    Args:
        shape: ``(C, L)``, or ``(L,)`` for one channel.
        features: width of what comes out.
        channels: of the first convolution, at least 2; the blocks have twice as many.
        blocks: number of blocks, each of which halves the resolution; None for as many as leave at most 8 entries.
        cells: number of cells along the axis whose means are read out.
    """

    def __init__(
        self, shape: Sequence[int], *, features: int = 32, channels: int = 16, blocks: int | None = None, cells: int = 4
    ) -> None:
        sizes = shape_of(shape, "(channels, length) or (length,)", 1, 2)
        options = _options(sizes[-1:], features, channels, blocks, cells)
        super().__init__("conv1d", sizes, features, options)
        self.net = _ResidualNet(nn.Conv1d, _with_channel(sizes, 1), **options)

    def scaling(self) -> Scaling:
        """One mean and scale for each channel, shared along the axis."""
        return Standardise(self.shape, shared=(len(self.shape) - 1,))

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        return self.net(x.reshape(len(x), *_with_channel(self.shape, 1)))


class ConvEncoder2d(Encoder):
    """A residual convolutional network on images; each channel has an indicator of which pixels are missing.

    Args:
        shape: ``(C, H, W)``, or ``(H, W)`` for one channel.
        features: width of what comes out.
        channels: of the first convolution, at least 2; the blocks have twice as many.
        blocks: number of blocks, each of which halves the resolution; None for as many as leave at most 8 pixels
            along the longer axis.
        cells: number of cells along each axis whose means are read out.
    """

    def __init__(
        self, shape: Sequence[int], *, features: int = 32, channels: int = 16, blocks: int | None = None, cells: int = 2
    ) -> None:
        sizes = shape_of(shape, "(channels, height, width) or (height, width)", 2, 3)
        options = _options(sizes[-2:], features, channels, blocks, cells)
        super().__init__("conv2d", sizes, features, options)
        self.net = _ResidualNet(nn.Conv2d, _with_channel(sizes, 2), **options)

    def scaling(self) -> Scaling:
        """One mean and scale for each channel, shared by the pixels."""
        return Standardise(self.shape, shared=(len(self.shape) - 2, len(self.shape) - 1))

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        return self.net(x.reshape(len(x), *_with_channel(self.shape, 2)))


def _options(lengths: Sequence[int], features: int, channels: int, blocks: int | None, cells: int) -> dict[str, int]:
    if blocks is None:
        # The first convolution halves the resolution, too.
        blocks = max(1, math.ceil(math.log2(max(lengths) / _SHORT)) - 1)
    options = counts(features=features, channels=channels, blocks=blocks, cells=cells)
    if channels < 2:
        raise UsageError(f"channels: expected at least 2, got {channels}")
    return options


def _with_channel(shape: torch.Size, axes: int) -> torch.Size:
    return shape if len(shape) > axes else torch.Size([1, *shape])


class _ResidualNet(nn.Module):
    """Observations ``(n, C, *lengths)`` with NaN where missing to features ``(n, features)``."""

    def __init__(
        self, convolution: _Convolution, shape: torch.Size, *, features: int, channels: int, blocks: int, cells: int
    ) -> None:
        super().__init__()
        lengths = list(shape[1:])
        self.stem = _convolution(convolution, 2 * shape[0], channels, 5, stride=2)
        widths = [channels, *[2 * channels] * blocks]
        self.blocks = nn.Sequential(*(_Block(convolution, *pair) for pair in pairwise(widths)))
        for _ in range(blocks + 1):
            lengths = [math.ceil(length / 2) for length in lengths]
        # Means over cells as products with matrices, whose gradient adds up in the same order each time on any device.
        self._axes = len(lengths)
        for axis, length in enumerate(lengths):
            means = F.adaptive_avg_pool1d(torch.eye(length).unsqueeze(0), min(cells, length))[0]
            self.register_buffer(f"means_{axis}", means, persistent=False)
        pooled = math.prod(min(cells, length) for length in lengths)
        self.head = linear(widths[-1] * pooled, features, gain=AFTER_SILU)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        hidden = F.silu(self.blocks(self.stem(with_indicators(x, 1))))
        for axis in range(self._axes):
            # Each product takes the next axis and puts its cells last: after all of them the order is the first one.
            hidden = hidden.movedim(2, -1) @ getattr(self, f"means_{axis}")
        return self.head(hidden.flatten(1))


class _Block(nn.Module):
    """Two convolutions at half the resolution, and the mean of neighbours around them."""

    def __init__(self, convolution: _Convolution, inputs: int, outputs: int) -> None:
        super().__init__()
        self._pool = F.avg_pool1d if convolution is nn.Conv1d else F.avg_pool2d
        self.norms = nn.ModuleList([nn.GroupNorm(1, inputs), nn.GroupNorm(1, outputs)])
        self.first = _convolution(convolution, inputs, outputs, 3, stride=2, gain=AFTER_SILU)
        self.second = _convolution(convolution, outputs, outputs, 3, gain=AFTER_SILU)
        self.around = _convolution(convolution, inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, *lengths)`` to ``(n, outputs, *half the lengths, rounded up)``."""
        change = self.second(F.silu(self.norms[1](self.first(F.silu(self.norms[0](x))))))
        return self.around(self._pool(x, 2, ceil_mode=True)) + change


def _convolution(
    kind: _Convolution, inputs: int, outputs: int, width: int, *, stride: int = 1, gain: float = 1.0
) -> nn.Conv1d | nn.Conv2d:
    """A convolution that keeps the scale of smooth inputs as `layers.linear` does, and no offset at the start."""
    layer = kind(inputs, outputs, width, stride=stride, padding=width // 2)
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=gain / fan_in**0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
