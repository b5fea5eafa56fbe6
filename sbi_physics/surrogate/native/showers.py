"""Showers of their layers and voxels in one pass over the rows: as `surrogate.showers.Showers.decode`."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sbi_physics.models.columns import ColumnKind, Columns
from sbi_physics.models.native.compiler import load_library
from sbi_physics.models.native.rows import Rows, runs_natively

__all__ = ["decode_showers"]

_SOURCE = Path(__file__).with_name("showers.c")
# A layer of some showers lives on the stack.
_LARGEST_LAYER = 1 << 13


class _Call(ctypes.Structure):
    """`call_t` of the C source."""

    _fields_ = (
        ("shared", Rows),
        *((name, ctypes.c_ssize_t) for name in ("layers", "voxels", "events_stride")),
        *(
            (name, ctypes.c_void_p)
            for name in ("events", "wanted", "ends", "columns", "constant", "thresholds", "caps")
        ),
        ("showers", ctypes.c_void_p),
        ("threshold", ctypes.c_double),
    )


def decode_showers(
    wanted: Tensor, events: Tensor, voxels: Columns, ends: Sequence[int], *, threshold: float, rounds: int
) -> Tensor | None:
    """Showers ``(n, voxels)``; None where PyTorch has to make them.

    Args:
        wanted: energies of the layers ``(n, L)``.
        events: of those voxels that vary, ``(n, D)``.
        voxels: their kinds.
        ends: where each layer ends, in voxels.
        threshold: smallest energy of a voxel that is read out.
        rounds: how often the voxels are scaled.
    """
    largest = max(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True))
    if not runs_natively(wanted, events, voxels.threshold) or largest > _LARGEST_LAYER:
        return None
    if not bool(((voxels.kinds == ColumnKind.ZEROS) | ~voxels.varies).all()):
        return None
    library = load_library(_SOURCE, (("LARGEST", str(largest)), ("ROUNDS", str(rounds))))
    if library is None:
        return None
    count = len(voxels.kinds)
    showers = torch.empty(len(events), count, dtype=events.dtype)
    events = events if events.stride(1) == 1 else events.contiguous()
    held = {
        "events": events,
        "wanted": wanted.contiguous(),
        "ends": torch.tensor(ends),
        "columns": torch.where(voxels.varies, voxels.varies.cumsum(0) - 1, -1),
        "constant": voxels.constant,
        "thresholds": voxels.threshold,
        "caps": 10 * voxels.largest,
        "showers": showers,
    }
    call = _Call(
        layers=len(ends),
        voxels=count,
        events_stride=events.stride(0),
        threshold=threshold,
        **{name: tensor.data_ptr() for name, tensor in held.items()},
    )
    call.shared.run(library, call, len(events))
    return showers
