"""Checks of what the user hands in, made once, at the front door.

Each function returns the value in the form that the package works with, or raises an error that says what was
expected and what came.
"""

import math
import os
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError

__all__ = [
    "as_tensor",
    "batch_of",
    "finite",
    "known_keys",
    "not_negative",
    "positive_integer",
    "resolve_device",
    "same_length",
]


def as_tensor(value: Any, name: str, *, dtype: torch.dtype | None = torch.float32) -> Tensor:
    """Return a tensor of floats from a tensor, an array, a sequence or a number (`dtype=None` keeps floats).

    Raises:
        UsageError: `value` cannot be read as an array of numbers.
    """
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: expected an array of numbers, got {type(value).__name__}") from error
    if tensor.is_complex():
        raise UsageError(f"{name}: expected real numbers, got {tensor.dtype}")
    if dtype is None:
        return tensor if tensor.is_floating_point() else tensor.to(torch.float64)
    return tensor.to(dtype)


def finite(tensor: Tensor, name: str, hint: str = "") -> Tensor:
    """Return `tensor` if all of it is finite, else raise `NonFiniteError` naming the first bad row."""
    good = torch.isfinite(tensor)
    if bool(good.all()):
        return tensor
    bad = int((~good).sum())
    where = [int(i) for i in torch.nonzero(~good)[0]]
    place = f"first at index {where[0] if len(where) == 1 else tuple(where)}" if where else "the value itself"
    tail = f"; {hint}" if hint else ""
    raise NonFiniteError(
        f"{name}: expected finite numbers, got {bad} NaN or infinite of {tensor.numel()} ({place}){tail}"
    )


def batch_of(tensor: Tensor, event_shape: Sequence[int], name: str, *, minimum: int = 1) -> Tensor:
    """Return `tensor` if its shape is ``(n, *event_shape)`` with n at least `minimum`, else raise `ShapeError`."""
    event = tuple(int(size) for size in event_shape)
    if tensor.ndim != len(event) + 1 or tuple(tensor.shape[1:]) != event:
        wanted = "(" + ", ".join(["n", *map(str, event)]) + ("," if not event else "") + ")"
        raise ShapeError(f"{name}: expected shape {wanted}, got {tuple(tensor.shape)}")
    if tensor.shape[0] < minimum:
        raise ShapeError(f"{name}: expected at least {minimum} rows, got {len(tensor)}")
    return tensor


def same_length(**tensors: Sized) -> None:
    """Raise `ShapeError` unless all tensors have the same number of rows."""
    sizes = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(sizes.values())) > 1:
        raise ShapeError("expected equally many rows, got " + ", ".join(f"{k}: {v}" for k, v in sizes.items()))


def positive_integer(value: Any, name: str) -> int:
    """Return `value` as an integer of at least 1, else raise `UsageError`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UsageError(f"{name}: expected an integer of at least 1, got {value!r}")
    return int(value)


def not_negative(value: Any, name: str) -> float:
    """Return `value` as a finite number of at least 0, else raise `UsageError`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < math.inf:
        raise UsageError(f"{name}: expected a finite number of at least 0, got {value!r}")
    return float(value)


def known_keys(given: Sequence[str], known: Sequence[str], what: str) -> None:
    """Raise `UsageError` naming the first key that is not known, and those that are."""
    for key in given:
        if key not in known:
            raise UsageError(f"{what}: expected one of {', '.join(sorted(known))}; got {key!r}")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device; ``"auto"`` is CUDA where there is one (each process of torchrun its own), else the CPU.

    Raises:
        UsageError: the device is not known, or is not there.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        local = os.environ.get("LOCAL_RANK")
        return torch.device("cuda") if local is None else torch.device("cuda", int(local))
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device: {device!r} was asked for, but torch finds no CUDA device here")
    if resolved.type not in ("cpu", "cuda"):
        raise UsageError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    return resolved
