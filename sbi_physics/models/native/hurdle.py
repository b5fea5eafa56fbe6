"""Numbers that are zero or above a threshold, drawn in one pass over the rows: as `models.hurdle.Hurdles.draw`."""

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_physics.models.native.compiler import load_library
from sbi_physics.models.native.rows import Rows, runs_natively

__all__ = ["HurdleTables", "draw_hurdles"]

_SOURCE = Path(__file__).with_name("hurdle.c")
_MOST_COMPONENTS = 16


class HurdleTables(NamedTuple):
    """What is the same for all rows, see `models.hurdle.HurdleNetwork`: G groups, D numbers, W waves.

    Attributes:
        edges: of the groups ``(G,)``.
        scales: of the groups ``(G,)``.
        waves: at the angles of the numbers ``(W, D)``, in the order of the groups.
        group_of: the group of each number ``(D,)``, in the order of the groups.
        order: which number of an event stands where in the order of the groups ``(D,)``.
        always: which numbers of an event are never zero ``(D,)``.
    """

    edges: Tensor
    scales: Tensor
    waves: Tensor
    group_of: Tensor
    order: Tensor
    always: Tensor


class _Call(ctypes.Structure):
    """`call_t` of the C source."""

    _fields_ = (
        ("shared", Rows),
        *((name, ctypes.c_ssize_t) for name in ("numbers", "groups", "noise_stride")),
        *((name, ctypes.c_void_p) for name in ("raw", "noise", *HurdleTables._fields[:5])),
        *((name, ctypes.c_void_p) for name in ("always", "events")),
    )


def draw_hurdles(raw: Tensor, noise: Tensor, tables: HurdleTables, components: int) -> Tensor | None:
    """The numbers ``(n, D)``; None where PyTorch has to draw them.

    Args:
        raw: what the network gave, ``(n, 1 + 3 K + 2 W, G)``.
        noise: standard normal ``(n, 2 D)``.
        tables: what is the same for all rows.
        components: K.
    """
    if not runs_natively(raw, noise, tables.edges) or components > _MOST_COMPONENTS:
        return None
    library = load_library(_SOURCE, (("COMPONENTS", str(components)), ("WAVES", str(len(tables.waves)))))
    if library is None:
        return None
    noise = noise if noise.stride(1) == 1 else noise.contiguous()
    held = {"raw": raw.contiguous(), "noise": noise, **tables._asdict()}
    events = torch.empty(len(raw), len(tables.order), dtype=raw.dtype)
    call = _Call(
        numbers=len(tables.order),
        groups=len(tables.edges),
        noise_stride=noise.stride(0),
        events=events.data_ptr(),
        **{name: tensor.data_ptr() for name, tensor in held.items()},
    )
    call.shared.run(library, call, len(raw))
    return events
