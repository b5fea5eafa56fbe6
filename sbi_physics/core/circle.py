"""Parameters whose two bounds are one point, as of an angle: one turn of their circle, from where it is best cut."""

import math

import torch
from torch import Tensor

__all__ = ["on_one_turn", "wrapped"]

_SECTORS = 72


def wrapped(theta: Tensor, bounds: Tensor, periodic: tuple[bool, ...]) -> Tensor:
    """Move periodic parameters by whole turns to within their bounds; differentiable.

    Args:
        theta: ``(*, P)``.
        bounds: ``(P, 2)``.
        periodic: P flags; the others stay as they are.

    Returns:
        ``(*, P)``.
    """
    if not any(periodic):
        return theta
    low, high = bounds.to(theta).unbind(-1)
    turned = torch.minimum(torch.maximum(low + torch.remainder(theta - low, high - low), low), high)
    return torch.where(torch.tensor(periodic, device=theta.device), turned, theta)


def on_one_turn(values: Tensor, weights: Tensor, low: float, turn: float) -> Tensor:
    """Values ``(*, n)`` of a circle, moved by whole turns to the one that begins where their weights are smallest.

    Args:
        values: ``(*, n)``, float64.
        weights: ``(*, n)``.
        low: where the circle is cut.
        turn: its length.
    """
    bins = ((values - low) / turn * _SECTORS).long() % _SECTORS
    mass = torch.zeros(*values.shape[:-1], _SECTORS, dtype=torch.float64).scatter_add(-1, bins, weights)
    around = sum(mass.roll(shift, -1) for shift in range(-2, 3))
    # Of several that are empty the one opposite to the rest.
    centres = 2 * math.pi * (torch.arange(_SECTORS, dtype=torch.float64) + 0.5) / _SECTORS
    direction = torch.atan2((mass * centres.sin()).sum(-1), (mass * centres.cos()).sum(-1)).unsqueeze(-1)
    cut = (around + 1e-6 * torch.cos(centres - direction)).argmin(-1, keepdim=True)
    start = low + turn * (cut + 0.5) / _SECTORS
    turned = start + (values - start) % turn
    middle = (weights * turned).sum(-1, keepdim=True)
    return turned - turn * torch.floor((middle - low) / turn)
