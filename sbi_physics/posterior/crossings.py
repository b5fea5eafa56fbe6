"""Where a curve that is known at points is above a depth: the ends of likelihood intervals."""

import torch
from torch import Tensor

__all__ = ["crossings", "opened"]


def crossings(at: Tensor, value: Tensor, depth: float, bounds: Tensor) -> Tensor:
    """The pieces in which a curve lies above minus the depth.

    Between two points the signed root of twice the fall is interpolated, which is a straight line for a parabola, so
    that few points are enough.

    Args:
        at: ``(m,)`` where the curve is known, in any order, its maximum among them.
        value: ``(m,)`` relative to the maximum; at most 0, minus infinity where there is none.
        depth: how far it has to fall, above 0.
        bounds: ``(2,)`` beyond which there is nothing.

    Returns:
        The lower and the upper end of each piece ``(n, 2)``, from below: a bound where the curve is still above at it,
        and infinite where it is still above at the last point before one.  One row of NaN where it is above nowhere.
    """
    order = torch.argsort(at)
    at, fall = at[order], (-2 * value[order]).clamp(min=0.0).sqrt()
    edge = (2 * depth) ** 0.5
    inside = (fall <= edge).nonzero()[:, 0].tolist()
    if not inside:
        return at.new_full((1, 2), torch.nan)

    def end(i: int, step: int) -> Tensor:
        outer = i + step
        if 0 <= outer < len(at):
            # A curve that falls to minus infinity within one step is cut half way.
            finite = bool(torch.isfinite(fall[outer]))
            share = (edge - fall[i]) / (fall[outer] - fall[i]) if finite else fall.new_tensor(0.5)
            return at[i] + share * (at[outer] - at[i])
        bound = bounds[(step + 1) // 2].to(at)
        reached = bool((at[i] - bound).abs() <= 1e-6 * (at[-1] - at[0]))
        return bound if reached else bound.new_tensor(step * torch.inf)

    lower = [i for i in inside if i - 1 not in inside]
    upper = [i for i in inside if i + 1 not in inside]
    return torch.stack([torch.stack([end(i, -1), end(j, 1)]) for i, j in zip(lower, upper, strict=True)])


def opened(at: Tensor, value: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A curve on a circle as one on a line: cut at its lowest point, which becomes both ends.

    Args:
        at: ``(m,)`` where the curve is known.
        value: ``(m,)``.
        bounds: ``(2,)`` the turn on which its maximum is to be.

    Returns:
        `at` and `value` with one point more, and the two ends ``(2,)``.
    """
    low, turn = bounds[0], bounds[1] - bounds[0]
    lowest, highest = int(value.argmin()), int(value.argmax())
    turned = at[lowest] + torch.remainder(at - at[lowest], turn)
    turned = turned - turn * torch.floor((turned[highest] - low) / turn)
    at, value = torch.cat([turned, turned[lowest : lowest + 1] + turn]), torch.cat([value, value[lowest : lowest + 1]])
    return at, value, torch.stack([at[lowest], at[-1]])
