"""`Encoder`: what every encoder of observations is.

An encoder turns one observation of a fixed shape into a vector of features, trained jointly with the density that
sees the features alone.  What it is made for is the structure of the observation: a series in time, a set, an image.
Missing entries come in as NaN; an encoder sees zero in their place and is told that they are missing, or leaves
them out altogether.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import batch_of, positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.scaling import Scaling

__all__ = ["Encoder", "channel_index", "counts", "flag", "shape_of"]


class Encoder(nn.Module, ABC):
    """A network from observations ``(n, *shape)`` to features ``(n, features)``.

    Args:
        kind: the name by which `build_encoder` knows it.
        shape: of one observation.
        features: width of what comes out.
        options: with which `build_encoder` builds it again, apart from the shape, in types that JSON knows.

    Attributes:
        accepts_missing: whether NaN marks missing entries.
    """

    accepts_missing: bool = True

    def __init__(self, kind: str, shape: Sequence[int], features: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.kind, self.shape = kind, torch.Size(shape)
        self.features, self._options = features, options

    @abstractmethod
    def scaling(self) -> Scaling:
        """An untrained scaling for observations of this shape, its statistics shared over axes that are alike."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)`` of scaled observations ``(n, *shape)``, whose shape has been checked."""

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(n, features)`` of scaled observations ``(n, *shape)``, NaN where an entry is missing.

        Raises:
            ShapeError: the observations have another shape.
        """
        return self.encode(batch_of(x, self.shape, "x", minimum=0))

    def describe(self) -> dict[str, Any]:
        """What `build_encoder` needs, next to the shape, to build the same structure; in types that JSON knows."""
        return {"kind": self.kind, **copy.deepcopy(self._options)}

    def extra_repr(self) -> str:
        """Shapes, for `print`."""
        return f"shape={tuple(self.shape)}, features={self.features}"


def shape_of(shape: Sequence[int], axes: str, *lengths: int) -> torch.Size:
    """Return the shape if it has one of the numbers of axes and no axis is empty.

    Args:
        shape: of one observation.
        axes: what is expected, for the message.
        *lengths: the numbers of axes that will do; any where none is given.

    Raises:
        ShapeError: it does not.
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not whole or (lengths and len(sizes) not in lengths):
        raise ShapeError(f"shape: expected {axes}, got {shape!r}")
    return torch.Size(sizes)


def channel_index(index: int | None, channels: int, name: str) -> int | None:
    """Return the index of a channel, or None, if there is such a channel, else raise `UsageError`."""
    if index is None:
        return None
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < channels:
        raise UsageError(f"{name}: expected None or the index of a channel, 0 to {channels - 1}, got {index!r}")
    return index


def counts(**options: int) -> dict[str, int]:
    """Return the options if each is an integer of at least 1, else raise `UsageError` naming the first that is not."""
    return {name: positive_integer(value, name) for name, value in options.items()}


def flag(value: bool, name: str) -> bool:
    """Return `value` if it is True or False, else raise `UsageError`."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}: expected True or False, got {value!r}")
    return value
