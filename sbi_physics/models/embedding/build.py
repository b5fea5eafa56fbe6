"""Build an encoder by name or from its description, the same way when it is trained and when it is read from a file.

build_encoder("gru", (40, 2), times=0)
build_encoder("named", None, shapes={"curve": (40, 2), "spectrum": (100,)},
              encoders={"curve": "lstm", "spectrum": "conv1d"})
build_encoder("members", (10, 300, 4), member={"kind": "lstm", "times": 0})
build_encoder(encoder.describe(), encoder.shape)
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sbi_physics.core.checks import known_keys
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.embedding.encoder import Encoder
from sbi_physics.models.embedding.members import MembersEncoder
from sbi_physics.models.embedding.named import NamedEncoders
from sbi_physics.models.embedding.registry import SINGLE, build_single, kind_and_options

__all__ = ["ENCODERS", "build_encoder"]

ENCODERS: dict[str, Callable[..., Encoder]] = {
    **{kind: make for kind, (make, _) in SINGLE.items()},
    "members": MembersEncoder,
    "named": NamedEncoders,
}
"""The class of each kind of encoder."""


def build_encoder(kind: str | Mapping[str, Any], shape: Sequence[int] | None, **options: Any) -> Encoder:
    """Build an untrained encoder.

    Args:
        kind: a key of `ENCODERS`, or what `Encoder.describe` gave.
        shape: of one observation; for ``"named"`` it may be None, as the parts say it.
        **options: of the encoder, see its class; they come before those of a description.

    Raises:
        UsageError: the kind or an option is not known, or the option has a wrong value.
        ShapeError: the encoder is not for observations of this shape.
    """
    name, chosen = kind_and_options(kind, list(ENCODERS), options)
    if name != "named":
        if shape is None:
            raise ShapeError(f"shape: the encoder {name!r} needs that of one observation, got None")
        if name == "members":
            known = [each for each in inspect.signature(MembersEncoder).parameters if each != "shape"]
            known_keys(list(chosen), known, "option of the encoder 'members'")
            return MembersEncoder(shape, **chosen)
        return build_single({"kind": name, **chosen}, shape)
    wanted = ["shapes", "encoders"]
    known_keys(list(chosen), wanted, "option of the encoder 'named'")
    if len(chosen) < len(wanted):
        raise UsageError(f"encoder 'named': expected shapes and encoders, got {', '.join(chosen) or 'neither'}")
    encoder = NamedEncoders(**chosen)
    if shape is not None and tuple(shape) != tuple(encoder.shape):
        raise ShapeError(f"shape: expected that of the packed parts, {tuple(encoder.shape)}, got {tuple(shape)}")
    return encoder
