"""`NamedEncoders`: observations with several named parts, each with the encoder that its structure asks for."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.embedding.encoder import Encoder
from sbi_physics.models.embedding.packing import Packing
from sbi_physics.models.embedding.registry import build_single
from sbi_physics.models.scaling import Scaling
from sbi_physics.store.row_parts import Rows, row_parts

__all__ = ["NamedEncoders", "PackedScaling"]

_Choice: TypeAlias = "str | Mapping[str, Any] | Encoder"


class NamedEncoders(Encoder):
    """An encoder for each part of packed observations ``(n, total)``; their features are joined.

    Args:
        shapes: shape of each part, by name, or pairs of name and shape; see `Packing`.
        encoders: for each name an encoder, its kind or its description (`build_encoder`), in any order; parts that are
            given one and the same encoder share its weights in training.

    Attributes:
        packing: how the parts lie in an observation.

    Raises:
        UsageError: a name has no encoder, or an encoder no shape.
        ShapeError: an encoder is for another shape.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]] | Iterable[tuple[str, Sequence[int]]],
        encoders: Mapping[str, _Choice] | Iterable[tuple[str, _Choice]],
    ) -> None:
        packing, chosen = Packing(_by_name(shapes, "shapes")), _by_name(encoders, "encoders")
        if set(chosen) != set(packing.names):
            raise UsageError(
                f"encoders: expected one for each of {', '.join(packing.names)}, got those of {', '.join(chosen)}"
            )
        parts = [_part(name, chosen[name], tuple(packing.shapes[name])) for name in packing.names]
        features = sum(part.features for part in parts)
        descriptions = [part.describe() for part in parts]
        # Pairs, because not every writer of JSON keeps the order of a dictionary.
        options = {
            "shapes": [[name, list(shape)] for name, shape in packing.shapes.items()],
            "encoders": [list(pair) for pair in zip(packing.names, descriptions, strict=True)],
        }
        super().__init__("named", (packing.total,), features, options)
        self.packing, self.encoders = packing, nn.ModuleList(parts)
        self.accepts_missing = all(part.accepts_missing for part in parts)

    def scaling(self) -> Scaling:
        """The scaling of each part, on its part."""
        return PackedScaling(self.packing, [part.scaling() for part in self._parts])

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``, those of the first name first."""
        values = self.packing.unpack(x).values()
        return torch.cat([part(value) for part, value in zip(self._parts, values, strict=True)], -1)

    @property
    def _parts(self) -> list[Encoder]:
        return list(self.encoders)  # type: ignore[arg-type]


class PackedScaling(Scaling):
    """A scaling for each part of packed data ``(*, total)``.

    Args:
        packing: how the parts lie in the data.
        parts: their scalings, in the order of the names.
    """

    def __init__(self, packing: Packing, parts: Sequence[Scaling]) -> None:
        super().__init__()
        self.packing, self.parts = packing, nn.ModuleList(parts)

    def fit(self, data: Rows) -> "PackedScaling":
        """Learn from data ``(n, total)``."""
        packed = row_parts(data)
        for part, (name, shape) in zip(self._parts, self.packing.shapes.items(), strict=True):
            part.fit(packed.map(lambda rows, name=name: self.packing.unpack(rows)[name], shape))
        return self

    def forward(self, data: Tensor) -> Tensor:
        """Scale data ``(*, total)``."""
        values = self.packing.unpack(data).values()
        scaled = [part(value) for part, value in zip(self._parts, values, strict=True)]
        sizes = map(math.prod, self.packing.shapes.values())
        return torch.cat([s.reshape(*data.shape[:-1], size) for s, size in zip(scaled, sizes, strict=True)], -1)

    @property
    def _parts(self) -> list[Scaling]:
        return list(self.parts)  # type: ignore[arg-type]


def _by_name(pairs: Any, what: str) -> dict[str, Any]:
    try:
        return dict(pairs)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what}: expected a dictionary by name, got {pairs!r}") from error


def _part(name: str, choice: _Choice, shape: tuple[int, ...]) -> Encoder:
    if isinstance(choice, NamedEncoders):
        raise UsageError(f"encoders: that of {name}: expected one for a single part; name its parts beside the others")
    encoder = choice if isinstance(choice, Encoder) else build_single(choice, shape)
    if tuple(encoder.shape) != shape:
        raise ShapeError(f"encoders: that of {name}: expected the shape {shape}, got {tuple(encoder.shape)}")
    return encoder
