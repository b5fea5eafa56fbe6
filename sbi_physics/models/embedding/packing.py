"""`Packing`: observations with several named parts as one flat vector, and back.

A model sees one tensor.  Where an observation is a dictionary (a spectrum, a light curve, a count), its parts travel
side by side in one vector, in a fixed order, NaN included.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, known_keys
from sbi_physics.core.errors import ShapeError, UsageError

__all__ = ["Packing"]


@dataclass(frozen=True)
class Packing:
    """How named parts lie in a vector, one after the other.

    Attributes:
        shapes: the shape of each part of one observation, by name; the order counts.
        names: the names in their order.
        total: length of the vector.

    Raises:
        UsageError: there is no part.
        ShapeError: a shape is none.
    """

    shapes: Mapping[str, Sequence[int]] = field(hash=False)
    names: tuple[str, ...] = field(init=False)
    total: int = field(init=False)

    def __post_init__(self) -> None:
        shapes = {str(name): _shape(shape, str(name)) for name, shape in dict(self.shapes).items()}
        if not shapes:
            raise UsageError("shapes: expected at least one named part, got none")
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "names", tuple(shapes))
        object.__setattr__(self, "total", sum(map(math.prod, shapes.values())))

    def pack(self, parts: Mapping[str, Any]) -> Tensor:
        """Join the parts of observations.

        Args:
            parts: ``(*batch, *shape)`` for each name, tensors or arrays of floats; `batch` is the same for all.

        Returns:
            ``(*batch, total)``.

        Raises:
            UsageError: a name is missing or not known, or a part holds no numbers.
            ShapeError: a part has the wrong shape, or not as many observations as the first.
        """
        known_keys(list(parts), self.names, "observation")
        missing = [name for name in self.names if name not in parts]
        if missing:
            raise UsageError(f"observation: expected {', '.join(self.names)}; {', '.join(missing)} missing")
        flat: list[Tensor] = []
        for name, shape in self.shapes.items():
            part = as_tensor(parts[name], name, dtype=None)
            axes = part.ndim - len(shape)
            if axes < 0 or part.shape[axes:] != tuple(shape):
                raise ShapeError(f"{name}: expected shape {_words(shape)}, got {tuple(part.shape)}")
            flat.append(part.reshape(*part.shape[:axes], math.prod(shape)))
            if flat[-1].shape[:-1] != flat[0].shape[:-1]:
                first, here = tuple(flat[0].shape[:-1]), tuple(part.shape[:axes])
                raise ShapeError(f"{name}: expected as many observations as {self.names[0]} has, {first}, got {here}")
        return torch.cat(flat, -1)

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts ``(*batch, *shape)`` of vectors ``(*batch, total)``, by name.

        Raises:
            ShapeError: the vectors have another length.
        """
        if vector.ndim == 0 or vector.shape[-1] != self.total:
            raise ShapeError(f"packed observation: expected shape (*, {self.total}), got {tuple(vector.shape)}")
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), vector.split(sizes, -1), strict=True)
        return {name: part.reshape((*vector.shape[:-1], *shape)) for (name, shape), part in parts}


def _shape(shape: Sequence[int], name: str) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise ShapeError(f"{name}: expected a shape of axes of at least 1 entry, got {shape!r}")
    return sizes


def _words(shape: Sequence[int]) -> str:
    return f"(*, {', '.join(map(str, shape))})" if shape else "(*)"
