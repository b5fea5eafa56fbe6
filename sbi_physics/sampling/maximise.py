r"""Climb to the maxima of a function from many starts at once.

Every row climbs on its own, and all rows are evaluated together.  First Adam (Kingma and Ba 2014, arXiv:1412.6980),
whose steps do not depend on the scale of the function and which walks over the small ripples of a network, with a step
that falls to zero; then BFGS with backtracking, which ends on the maximum: with the inverse curvature H and the
gradient g a step is $H g$, and $g^T H g / 2$ is what it would gain if the function were a parabola.  A row is done when
that is below the tolerance.

Where the function is minus infinity or NaN a row turns back.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError, UsageError

__all__ = ["Differentiable", "Maxima", "maximise"]

Differentiable = Callable[[Tensor, Tensor], Tensor]

_FIRST_RATE, _LAST_RATE = 0.15, 0.01
_MOMENTS = (0.9, 0.99)
_LONGEST_STEP = 2.0
_HALVINGS = 12
_ARMIJO = 1e-4


@dataclass(frozen=True)
class Maxima:
    """What each of n rows climbed to.

    Attributes:
        at: ``(n, D)``.
        value: of the function there, ``(n,)``; minus infinity where it was never finite.
        gain: what a further step promises, ``(n,)``; small where the row converged.
    """

    at: Tensor
    value: Tensor
    gain: Tensor


def maximise(
    function: Differentiable,
    start: Tensor,
    *,
    steps: int = 100,
    polish: int = 40,
    tolerance: float = 1e-6,
    stop: Callable[[], bool] = lambda: False,
) -> Maxima:
    """Maximise a function of each row.

    Args:
        function: ``(points (m, D), rows (m,))`` to ``(m,)``, differentiable in the points; `rows` says which of the n
            rows they belong to, and a value depends on its own row alone.
        start: ``(n, D)`` in coordinates whose natural scale is one.
        steps: of Adam.
        polish: of BFGS.
        tolerance: a row whose next step promises less is done.
        stop: asked before each step; once it says True, what was reached is returned.

    Raises:
        ShapeError: the function returns another shape.
        UsageError: it returns something that cannot be differentiated.
    """
    best = _evaluated(function, start.detach().clone(), torch.arange(len(start), device=start.device))
    best = _adam(function, best, steps, stop)
    return _bfgs(function, best, polish, tolerance, stop)


@dataclass
class _State:
    at: Tensor
    value: Tensor
    gradient: Tensor


def _evaluated(function: Differentiable, points: Tensor, rows: Tensor) -> _State:
    """Values and gradients; what is no number counts as minus infinity, with no gradient."""
    with torch.enable_grad():
        leaf = points.detach().requires_grad_()
        value = function(leaf, rows)
        if value.shape != points.shape[:1]:
            raise ShapeError(f"function: expected shape ({len(points)},), got {tuple(value.shape)}")
        if not value.requires_grad:
            raise UsageError(
                "function: expected one that is differentiable in theta (torch operations on the tensor it is given), "
                "got a value without a gradient"
            )
        good = torch.isfinite(value)
        (gradient,) = torch.autograd.grad(torch.where(good, value, 0.0).sum(), leaf, allow_unused=True)
    if gradient is None:
        raise UsageError("function: expected one that depends on theta, got a value that does not")
    good = good & torch.isfinite(gradient).all(-1)
    value = torch.where(good, value.detach().to(points.dtype), -torch.inf)
    return _State(points.detach(), value, torch.where(good.unsqueeze(-1), gradient, 0.0))


def _adam(function: Differentiable, best: _State, steps: int, stop: Callable[[], bool]) -> _State:
    rows = torch.arange(len(best.at), device=best.at.device)
    now = _State(best.at, best.value, best.gradient)
    first, second = torch.zeros_like(now.at), torch.zeros_like(now.at)
    for step in range(steps):
        if stop():
            break
        first = first.lerp(now.gradient, 1 - _MOMENTS[0])
        second = second.lerp(now.gradient.square(), 1 - _MOMENTS[1])
        mean = first / (1 - _MOMENTS[0] ** (step + 1))
        size = (second / (1 - _MOMENTS[1] ** (step + 1))).sqrt()
        rate = _LAST_RATE + (_FIRST_RATE - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))
        now = _evaluated(function, now.at + rate * mean / (size + 1e-12), rows)
        best = _better(now, best)
        # A row that fell off the support goes on from the best place it knows.
        lost = torch.isinf(now.value).unsqueeze(-1)
        now = _State(torch.where(lost, best.at, now.at), now.value, torch.where(lost, best.gradient, now.gradient))
        first = torch.where(lost, 0.0, first)
    return best


def _better(new: _State, old: _State) -> _State:
    better = new.value > old.value
    column = better.unsqueeze(-1)
    return _State(
        torch.where(column, new.at, old.at),
        torch.where(better, new.value, old.value),
        torch.where(column, new.gradient, old.gradient),
    )


def _bfgs(function: Differentiable, state: _State, steps: int, tolerance: float, stop: Callable[[], bool]) -> Maxima:
    n, dims = state.at.shape
    identity = torch.eye(dims, dtype=state.at.dtype, device=state.at.device).expand(n, dims, dims)
    curvature = identity.clone()
    fresh = torch.ones(n, dtype=torch.bool, device=state.at.device)
    alive = torch.isfinite(state.value)
    gain = torch.full_like(state.value, torch.inf)
    for _ in range(steps):
        if stop() or not bool(alive.any()):
            break
        direction = _direction(curvature, state.gradient, fresh)
        promise = (direction * state.gradient).sum(-1)
        gain = torch.where(alive, 0.5 * promise, gain)
        alive = alive & (gain > tolerance)
        rows = alive.nonzero()[:, 0]
        if not len(rows):
            break
        moved, risen = _line_search(function, state, direction, promise, rows)
        step, change = moved.at - state.at[rows], state.gradient[rows] - moved.gradient
        curvature[rows] = _updated(curvature[rows], step, change, fresh[rows])
        # A row that cannot rise along H g tries the gradient itself once before it gives up.
        alive[rows] = risen | ~fresh[rows]
        curvature[rows[~risen]] = identity[rows[~risen]]
        fresh[rows] = ~risen
        state.at[rows], state.value[rows], state.gradient[rows] = moved.at, moved.value, moved.gradient
    return Maxima(state.at, state.value, gain)


def _direction(curvature: Tensor, gradient: Tensor, fresh: Tensor) -> Tensor:
    """Where to go: ``H g``, no longer than the longest step; while nothing is known of H, at most one along g."""
    direction = (curvature @ gradient.unsqueeze(-1)).squeeze(-1)
    uphill = (direction * gradient).sum(-1, keepdim=True) > 0
    direction = torch.where(uphill, direction, gradient)
    longest = torch.where(fresh, 1.0, _LONGEST_STEP).unsqueeze(-1)
    return direction * (longest / direction.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)


def _line_search(
    function: Differentiable, state: _State, direction: Tensor, promise: Tensor, rows: Tensor
) -> tuple[_State, Tensor]:
    """Halve the step until the rows rise; those that never do stay."""
    moved = _State(state.at[rows], state.value[rows], state.gradient[rows])
    risen = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    length = 1.0
    for _ in range(_HALVINGS):
        open_ = (~risen).nonzero()[:, 0]
        if not len(open_):
            break
        which = rows[open_]
        tried = _evaluated(function, state.at[which] + length * direction[which], which)
        good = tried.value >= state.value[which] + _ARMIJO * length * promise[which]
        good &= tried.value > state.value[which]
        taken = open_[good]
        moved.at[taken], moved.value[taken], moved.gradient[taken] = (
            tried.at[good],
            tried.value[good],
            tried.gradient[good],
        )
        risen[taken] = True
        length *= 0.5
    return moved, risen


def _updated(curvature: Tensor, step: Tensor, change: Tensor, fresh: Tensor) -> Tensor:
    """The inverse curvature after a step s that changed the gradient of minus the function by y."""
    along = (step * change).sum(-1)
    good = along > 1e-12
    scale = torch.where(good & fresh, along / change.square().sum(-1).clamp(min=1e-30), 1.0)
    identity = torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)
    start = torch.where(fresh[:, None, None], scale[:, None, None] * identity, curvature)
    weight = torch.where(good, 1 / along.clamp(min=1e-12), 0.0)[:, None, None]
    s, y = step.unsqueeze(-1), change.unsqueeze(-1)
    left = identity - weight * (s @ y.mT)
    new = left @ start @ left.mT + weight * (s @ s.mT)
    return torch.where(good[:, None, None], new, start)
