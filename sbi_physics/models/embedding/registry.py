"""The encoders of one observation, by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sbi_physics.core.checks import known_keys
from sbi_physics.core.errors import UsageError
from sbi_physics.models.embedding.convolution import ConvEncoder1d, ConvEncoder2d
from sbi_physics.models.embedding.deep_set import DeepSetEncoder
from sbi_physics.models.embedding.encoder import Encoder
from sbi_physics.models.embedding.mlp import MLPEncoder
from sbi_physics.models.embedding.recurrent import RecurrentEncoder
from sbi_physics.models.embedding.residual import ResidualEncoder
from sbi_physics.models.embedding.transformer import TransformerEncoder

__all__ = ["SINGLE", "build_single", "kind_and_options"]

SINGLE: dict[str, tuple[Callable[..., Encoder], dict[str, Any]]] = {
    "residual": (ResidualEncoder, {}),
    "discriminant": (ResidualEncoder, {"discriminant": True}),
    "mlp": (MLPEncoder, {}),
    "rnn": (RecurrentEncoder, {"cell": "rnn"}),
    "gru": (RecurrentEncoder, {"cell": "gru"}),
    "lstm": (RecurrentEncoder, {"cell": "lstm"}),
    "deep-set": (DeepSetEncoder, {}),
    "conv1d": (ConvEncoder1d, {}),
    "conv2d": (ConvEncoder2d, {}),
    "transformer": (TransformerEncoder, {}),
}
"""Class and fixed options of each encoder of one observation."""


def build_single(kind: str | Mapping[str, Any], shape: Sequence[int], **options: Any) -> Encoder:
    """Build an encoder of one observation, as `build_encoder` does, without those of several.

    Raises:
        UsageError, ShapeError: see there.
    """
    name, chosen = kind_and_options(kind, list(SINGLE), options)
    make, fixed = SINGLE[name]
    known = [option for option in inspect.signature(make).parameters if option not in ("shape", *fixed)]
    known_keys(list(chosen), known, f"option of the encoder {name!r}")
    return make(shape, **fixed, **chosen)


def kind_and_options(
    kind: str | Mapping[str, Any], known: Sequence[str], options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Name and options of an encoder, from its name or from what `Encoder.describe` gave.

    Raises:
        UsageError: the name is not known, or not given.
    """
    described = dict(kind) if isinstance(kind, Mapping) else {"kind": kind}
    name = described.pop("kind", None)
    if not isinstance(name, str):
        raise UsageError(f"embedding: expected the name of an encoder or its description, got {kind!r}")
    known_keys([name], known, "embedding")
    return name, {**described, **options}
