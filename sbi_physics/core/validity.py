"""Which simulations can be used: one mask for everything that takes pairs of theta and x.

Simulators fail on some parameters, and mark the rows with NaN or infinity.  Whether x failed depends on x alone, so
that leaving such rows out changes the distribution of theta, but not p(theta | x) at any x that is left: a check of an
amortised posterior stays exact.  Where NaN stands for an entry that was not measured (``missing=True``), a row is
useless only if nothing of it was measured.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, known_keys, same_length
from sbi_physics.core.errors import NonFiniteError, ShapeError

__all__ = [
    "Failed",
    "Rows",
    "ValidPairs",
    "as_rows",
    "count_rows",
    "kept_rows",
    "select_rows",
    "select_valid",
    "valid_rows",
]

Rows = Tensor | dict[str, Tensor]
Failed = Literal["refuse", "drop"]


class ValidPairs(NamedTuple):
    """The usable pairs: theta ``(m, P)``, x ``(m, *x_shape)`` or a dictionary of such, and how many rows failed."""

    theta: Tensor
    x: Rows
    failed: int


def as_rows(x: Any, name: str = "x") -> Rows:
    """Return a tensor of floats ``(N, ...)``, or a dictionary of such with equally many rows.

    Raises:
        ShapeError: an array has no axis of rows, the numbers of rows differ, or the dictionary is empty.
        UsageError: a value cannot be read as an array of numbers.
    """
    if not isinstance(x, Mapping):
        tensor = as_tensor(x, name, dtype=None)
        if not tensor.ndim:
            raise ShapeError(f"{name}: expected shape (N, ...), got a single number")
        return tensor
    if not x:
        raise ShapeError(f"{name}: expected an array, or a dictionary of such, got an empty dictionary")
    rows = {str(key): as_tensor(value, f"{name}[{key!r}]", dtype=None) for key, value in x.items()}
    for key, tensor in rows.items():
        if not tensor.ndim:
            raise ShapeError(f"{name}[{key!r}]: expected shape (N, ...), got a single number")
    same_length(**{f"{name}[{key!r}]": tensor for key, tensor in rows.items()})
    return rows


def count_rows(x: Rows) -> int:
    """The number of rows of a tensor, or of each tensor of a dictionary."""
    return len(next(iter(x.values()))) if isinstance(x, dict) else len(x)


def select_rows(x: Rows, index: Any) -> Rows:
    """The rows that `index` (a slice, a mask or positions) picks, of a tensor or of each tensor of a dictionary."""
    if isinstance(x, dict):
        return {key: select_rows(value, index) for key, value in x.items()}  # type: ignore[misc]
    return x[index.to(x.device) if isinstance(index, Tensor) else index]


def valid_rows(x: Any, *, missing: bool = False) -> Tensor:
    """Which rows hold a usable simulation: boolean ``(N,)``, on the CPU.

    Args:
        x: ``(N, *x_shape)``, or a dictionary of such.
        missing: whether NaN marks an entry that is missing.  A row is then valid as long as it has no infinity and at
            least one entry that is there; otherwise all of it must be finite.

    Raises:
        ShapeError: an array has no axis of rows, or the numbers of rows differ.
    """
    rows = as_rows(x)
    parts = list(rows.values()) if isinstance(rows, dict) else [rows]
    flat = [part.reshape(len(part), -1 if part.numel() else 0) for part in parts]
    if not missing:
        return torch.stack([torch.isfinite(part).all(1).cpu() for part in flat]).all(0)
    measured = torch.stack([(~torch.isnan(part)).any(1).cpu() for part in flat]).any(0)
    return measured & ~torch.stack([torch.isinf(part).any(1).cpu() for part in flat]).any(0)


def kept_rows(x: Rows, *, failed: Failed = "refuse", missing: bool = False, name: str = "x") -> Tensor:
    """Positions of the rows that did not fail: int64 ``(m,)``, on the CPU.

    Args:
        x: ``(N, *x_shape)``, or a dictionary of such.
        failed: ``"refuse"`` raises if a row failed, ``"drop"`` leaves such rows out.
        missing: whether NaN marks an entry that is missing, see `valid_rows`.
        name: what messages call x.

    Raises:
        NonFiniteError: a row failed and is to be refused, or none is left.
        UsageError: `failed` is another word.
    """
    known_keys([failed], ["refuse", "drop"], "failed")
    good = valid_rows(x, missing=missing)
    bad = int((~good).sum())
    if bad:
        what = "infinite or without any measured entry" if missing else "NaN or infinite"
        found = f"{bad} of {len(good)} rows failed ({what}; the first is row {int((~good).nonzero()[0, 0])})"
        if failed == "refuse":
            raise NonFiniteError(f'{name}: expected finite numbers, but {found}; failed="drop" leaves failed rows out')
        if bad == len(good):
            raise NonFiniteError(f"{name}: {found}: no simulation is left")
    return good.nonzero()[:, 0]


def select_valid(
    theta: Any, x: Any, *, failed: Failed = "refuse", missing: bool = False, name: str = "x"
) -> ValidPairs:
    """Pairs whose simulation did not fail.

    Args:
        theta: ``(N, P)``, finite.
        x: ``(N, *x_shape)``, or a dictionary of such.
        failed: ``"refuse"`` raises if a row of x failed, ``"drop"`` leaves such rows out.
        missing: whether NaN marks an entry that is missing, see `valid_rows`.
        name: what messages call x.

    Raises:
        NonFiniteError: a row failed and is to be refused, or none is left; theta is not finite.
        ShapeError: theta and x have different numbers of rows.
        UsageError: `failed` is another word.
    """
    truth = finite(as_tensor(theta, "theta", dtype=None), "theta")
    rows = as_rows(x, name)
    parts = {f"{name}[{key!r}]": value for key, value in rows.items()} if isinstance(rows, dict) else {name: rows}
    if not truth.ndim:
        raise ShapeError("theta: expected shape (N, P), got a single number")
    same_length(theta=truth, **parts)
    keep = kept_rows(rows, failed=failed, missing=missing, name=name)
    if len(keep) == len(truth):
        return ValidPairs(truth, rows, 0)
    return ValidPairs(truth[keep.to(truth.device)], select_rows(rows, keep), len(truth) - len(keep))
