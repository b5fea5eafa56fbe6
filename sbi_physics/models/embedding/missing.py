"""What is missing in an observation: NaN, made harmless.

The entries of an observation that are missing become zero, and a channel of its own says where, so that a network can
tell them from entries that are zero.  A row (a time step, a member of a set) of which nothing is there is *absent*: it
is masked out, so that the result is the one without it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rows", "masked_mean", "rows", "to_front", "with_indicators"]


class Rows(NamedTuple):
    """The rows of observations.

    Attributes:
        values: ``(n, T, C)``, zero where missing.
        missing: ``(n, T, C)``, one where an entry is missing.
        present: ``(n, T)``, False where a whole row is absent.
    """

    values: Tensor
    missing: Tensor
    present: Tensor


def with_indicators(x: Tensor, axis: int) -> Tensor:
    """Values, zero for NaN, followed along `axis` by as many channels that are one where NaN was."""
    missing = torch.isnan(x)
    return torch.cat([torch.where(missing, 0.0, x), missing.to(x.dtype)], axis)


def rows(x: Tensor, times: int | None = None) -> Rows:
    """Read rows ``(n, T, C)`` with NaN where something is missing.

    Args:
        x: the observations.
        times: the channel that is time.  A row without its time, or with nothing but its time, is absent, too.
    """
    missing = torch.isnan(x)
    if times is None or x.shape[-1] == 1:
        absent = missing.all(-1)
    else:
        others = [channel for channel in range(x.shape[-1]) if channel != times]
        absent = missing[..., times] | missing[..., others].all(-1)
    return Rows(torch.where(missing, 0.0, x), missing.to(x.dtype), ~absent)


def to_front(given: Rows) -> Rows:
    """Move the rows that are present to the front, in their order; on a CPU the rest that all have in common is cut.

    The values of absent rows become zero.
    """
    order = torch.argsort(given.present.logical_not().to(torch.uint8), dim=1, stable=True)
    if order.device.type == "cpu" and len(order):
        # Elsewhere a shape that depends on the data would have to wait for the device.
        order = order[:, : max(1, int(given.present.sum(1).max()))]
    present = given.present.gather(1, order)
    wide = order.unsqueeze(-1).expand(-1, -1, given.values.shape[-1])
    here = present.unsqueeze(-1).to(given.values.dtype)
    return Rows(given.values.gather(1, wide) * here, given.missing.gather(1, wide) * here, present)


def masked_mean(values: Tensor, present: Tensor) -> Tensor:
    """Mean of values ``(n, T, H)`` over the rows that are present: ``(n, H)``, zero where none is."""
    here = present.unsqueeze(-1).to(values.dtype)
    return (values * here).sum(1) / here.sum(1).clamp(min=1.0)
