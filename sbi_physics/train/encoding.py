"""Observation encoders at the front door: chosen by name, for named observations, with missing entries."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from sbi_physics.core.checks import as_tensor, known_keys
from sbi_physics.core.errors import SimulationError, UsageError
from sbi_physics.models.embedding.build import ENCODERS, build_encoder
from sbi_physics.models.embedding.encoder import Encoder
from sbi_physics.models.embedding.named import NamedEncoders
from sbi_physics.models.embedding.packing import Packing
from sbi_physics.store.simulations import Simulations

__all__ = ["FLAT", "EncoderChoice", "accepts_missing", "check_embedding", "choose_encoder", "first_row", "packing_of"]

EncoderChoice: TypeAlias = nn.Module | None

DEFAULT_ENCODER = "residual"
FLAT = "flat"
"""The name for no encoder at all: the density sees the whitened numbers."""


def check_embedding(embedding: Any) -> Any:
    """Return an embedding: None, a module, the name of an encoder, or a dictionary of those by observation.

    Raises:
        UsageError: it is something else.
    """
    if isinstance(embedding, str) and embedding not in (*ENCODERS, FLAT):
        names = ", ".join((*ENCODERS, FLAT))
        raise UsageError(f"embedding: expected one of {names}, or a torch module, got {embedding!r}")
    if embedding is not None and not isinstance(embedding, nn.Module | str | Mapping):
        raise UsageError(
            f"embedding: expected a torch module, the name of an encoder or a dictionary of such, "
            f"got {type(embedding).__name__}"
        )
    return embedding


def choose_encoder(embedding: Any, theta_or_store: Any, x: Any) -> EncoderChoice:
    """An untrained encoder for these simulations, or None; a module that the user handed in is copied.

    Args:
        embedding: what `check_embedding` let through.
        theta_or_store: what `fit` was given; so x.
        x: None with a store.
    """
    if embedding == FLAT:
        return None
    if isinstance(embedding, nn.Module):
        return copy.deepcopy(embedding)
    if isinstance(theta_or_store, str | Path):
        theta_or_store = Simulations.open(theta_or_store)
    data = first_row(theta_or_store) if isinstance(theta_or_store, Simulations) else x
    if data is None or (embedding is None and isinstance(data, Mapping)):
        return None  # which will be refused, with the reason
    if embedding is None or isinstance(embedding, str):
        if isinstance(data, Mapping):
            raise UsageError(
                f"embedding: expected an encoder for each of {', '.join(map(str, data))}, as they are named; "
                f"got {embedding!r}"
            )
        values = as_tensor(data, "x")
        shape = tuple(values.shape[1:]) if values.ndim > 1 else (1,)
        if 0 in shape:
            raise SimulationError(f"x: expected numbers in each row, got shape {shape}: no simulation succeeded")
        return build_encoder(embedding or DEFAULT_ENCODER, shape)
    if not isinstance(data, Mapping):
        raise UsageError(f"embedding: expected named observations {', '.join(embedding)} in x, got a single array")
    known_keys(list(embedding), [str(name) for name in data], "embedding")
    if missing := [str(name) for name in data if name not in embedding]:
        raise UsageError(f"embedding: expected an encoder for each observation, got none for {', '.join(missing)}")
    shapes = {name: tuple(torch.as_tensor(data[name]).shape[1:]) for name in embedding}
    return NamedEncoders(shapes, copy.deepcopy(dict(embedding)))


def first_row(store: Simulations) -> Any:
    """What x of the first simulation is, with an axis of simulations: an array, or named ones."""
    x = store.read(slice(0, 1)).x
    return x if store.header.named else x["x"]


def accepts_missing(encoder: EncoderChoice) -> bool:
    """Whether NaN marks entries that are missing."""
    return isinstance(encoder, Encoder) and encoder.accepts_missing


def packing_of(encoder: EncoderChoice) -> Packing | None:
    """How named observations are packed, if they are named."""
    return encoder.packing if isinstance(encoder, NamedEncoders) else None
