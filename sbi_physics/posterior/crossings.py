"""Where a curve that is known at points falls below a depth: the ends of likelihood intervals."""

import torch
from torch import Tensor

__all__ = ["crossings"]


def crossings(at: Tensor, value: Tensor, depth: float, bounds: Tensor) -> Tensor:
    """The outermost places where a curve rises above minus the depth, from below and from above.

    Between two points the signed root of twice the fall is interpolated, which is a straight line for a parabola, so
    that few points are enough.

    Args:
        at: ``(m,)`` where the curve is known, in any order, its maximum among them.
        value: ``(m,)`` relative to the maximum; at most 0, minus infinity where there is none.
        depth: how far it has to fall, above 0.
        bounds: ``(2,)`` beyond which there is nothing.

    Returns:
        The lower and the upper end ``(2,)``: a bound where the curve is still above at it, and infinite where it is
        still above at the last point before one.
    """
    order = torch.argsort(at)
    at, fall = at[order], (-2 * value[order]).clamp(min=0.0).sqrt()
    edge = (2 * depth) ** 0.5
    inside = (fall <= edge).nonzero()[:, 0]
    if not len(inside):
        return at.new_full((2,), torch.nan)
    ends = []
    for i, step, bound in ((int(inside[0]), -1, bounds[0]), (int(inside[-1]), 1, bounds[1])):
        outer = i + step
        if 0 <= outer < len(at):
            share = (edge - fall[i]) / (fall[outer] - fall[i])
            # A curve that falls to minus infinity within one step is cut half way.
            share = share if bool(torch.isfinite(fall[outer])) else fall.new_tensor(0.5)
            ends.append(at[i] + share * (at[outer] - at[i]))
        else:
            reached = bool((at[i] - bound).abs() <= 1e-6 * (at[-1] - at[0]))
            ends.append(bound if reached else bound.new_tensor(step * torch.inf))
    return torch.stack([torch.as_tensor(end, dtype=at.dtype) for end in ends])
