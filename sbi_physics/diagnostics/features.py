"""Simulations and observations as rows of named numbers, whatever their shape."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.validity import Rows, as_rows, count_rows

__all__ = ["Features", "entry_names", "feature_names", "feature_rows", "observations"]

Features = Callable[[Any], Any]


def observations(x_obs: Any, like: Rows, name: str = "x_obs") -> Rows:
    """Observations as rows ``(B, *x_shape)`` of the shape of the simulations; one alone may come without its axis.

    Raises:
        ShapeError: the shape, or the keys of a dictionary, are not those of the simulations.
    """
    if isinstance(like, dict):
        if not isinstance(x_obs, dict) or set(x_obs) != set(like):
            raise ShapeError(f"{name}: expected a dictionary of {', '.join(like)}, got {_described(x_obs)}")
        return as_rows({key: observations(x_obs[key], like[key], f"{name}[{key!r}]") for key in like}, name)
    if isinstance(x_obs, dict):
        raise ShapeError(f"{name}: expected an array, got {_described(x_obs)}")
    value, shape = as_tensor(x_obs, name, dtype=None), tuple(like.shape[1:])
    if tuple(value.shape) == shape:
        return value.unsqueeze(0)
    if value.ndim != len(shape) + 1 or tuple(value.shape[1:]) != shape or not len(value):
        wanted = ", ".join(map(str, shape))
        raise ShapeError(f"{name}: expected shape ({wanted}) or ({', '.join(['B', *map(str, shape)])}), got "
                         f"{tuple(value.shape)}")  # fmt: skip
    return value


def feature_rows(x: Rows, features: Features | None = None) -> Tensor:
    """Rows of numbers ``(N, F)``, float64 on the CPU: all entries of x, or what `features` makes of x.

    Raises:
        ShapeError: `features` does not give one row for each row of x.
    """
    if features is not None:
        with torch.no_grad():
            result = as_tensor(features(x), "features", dtype=torch.float64).cpu()
        if not result.ndim or len(result) != count_rows(x) or not result.numel():
            raise ShapeError(f"features: expected shape ({count_rows(x)}, F), got {tuple(result.shape)}")
        return result.reshape(len(result), -1)
    parts = list(x.values()) if isinstance(x, dict) else [x]
    flat = [part.detach().to("cpu", torch.float64).reshape(len(part), math.prod(part.shape[1:])) for part in parts]
    return torch.cat(flat, 1)


def feature_names(x: Rows, count: int, features: Features | None = None) -> tuple[str, ...]:
    """Names of the columns of `feature_rows`."""
    return tuple(f"feature {i}" for i in range(count)) if features is not None else entry_names(x)


def entry_names(x: Rows, name: str = "x") -> tuple[str, ...]:
    """A name for each entry of a row: ``x[3]``, ``image[2, 5]``, ``energy``."""
    if isinstance(x, dict):
        return tuple(entry for key, value in x.items() for entry in entry_names(value, key))
    shape: Sequence[int] = x.shape[1:]
    if math.prod(shape) == 1:
        return (name,)
    return tuple(f"{name}[{', '.join(map(str, index))}]" for index in product(*map(range, shape)))


def _described(x: Any) -> str:
    return (
        f"one of {', '.join(map(str, x))}"
        if isinstance(x, dict)
        else f"an array of shape {tuple(as_tensor(x, 'x').shape)}"
    )
