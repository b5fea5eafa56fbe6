r"""Solve the probability-flow equation, and follow the density along it.

Where points move with the velocity f, the logarithm of their density falls with its divergence (Chen et al. 2018,
arXiv:1806.07366),

$$ \frac{du}{d\phi} = f(u, \phi), \qquad \frac{d \ln p(u)}{d\phi} = -\nabla \cdot f. $$

The solver is the classical Runge-Kutta method of fourth order on a fixed grid, so that its time is known beforehand.
The grid is $\phi = \frac\pi2 \tau^3$ with equal steps in tau: finer near phi = 0, where the small structure of the
events appears.  The divergence is the exact trace of the Jacobian up to D = 32.  Above that it is the mean of
$\epsilon^T J \epsilon$ over random signs epsilon (Hutchinson 1989, doi:10.1080/03610918908812806; Grathwohl et al.
2019, arXiv:1810.01367), others at each point of the grid, so that their errors average out along the way; they are the
same in each call.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_physics.core.random import derive, seeded
from sbi_physics.models.repeat import repeat

__all__ = ["Field", "divergence_of", "solve", "solve_once"]

# A velocity (n, D) as a function of points (n, D), at one angle.
Field = Callable[[Tensor], Tensor]

_MOST_EXACT = 32
_PROBES = 16


class _Slope(NamedTuple):
    velocity: Tensor
    divergence: Tensor


def solve(
    field_at: Callable[[float], Field], points: Tensor, *, steps: int, to_noise: bool, divergences: bool
) -> tuple[Tensor, Tensor]:
    """Carry points ``(n, D)`` from angle 0 to pi/2 (to noise), or back.

    Args:
        field_at: the velocity at an angle.
        points: where to begin.
        steps: of the solver, four evaluations each.
        to_noise: the direction.
        divergences: whether to integrate the divergence, too.

    Returns:
        The points at the end, and the integral ``(n,)`` of the divergence along the way; zero if not asked for.
    """
    nodes = 2 * steps
    ahead, step = (1, 1 / steps) if to_noise else (-1, -1 / steps)
    total = points.new_zeros(len(points))

    def slope(node: int, position: Tensor) -> _Slope:
        tau = node / nodes
        field, rate = field_at(0.5 * math.pi * tau**3), 1.5 * math.pi * tau**2
        if not divergences:
            return _Slope(rate * field(position), torch.zeros_like(total))
        velocity, divergence = divergence_of(field, position, seed=node)
        return _Slope(rate * velocity, rate * divergence)

    for i in range(steps):
        node = 2 * i if to_noise else nodes - 2 * i
        first = slope(node, points)
        second = slope(node + ahead, points + step / 2 * first.velocity)
        third = slope(node + ahead, points + step / 2 * second.velocity)
        fourth = slope(node + 2 * ahead, points + step * third.velocity)
        points, total = (
            value + step / 6 * (a + 2 * (b + c) + d)
            for value, a, b, c, d in zip((points, total), first, second, third, fourth, strict=True)
        )
    return points, total


def solve_once(field: Callable[[Tensor, Tensor], Tensor], points: Tensor, *, steps: int) -> Tensor:
    """As `solve`, from noise to events and without divergences, in one loop whose grid is a tensor.

    Args:
        field: the velocity ``(n, D)`` at an angle ``(1,)`` and points ``(n, D)``.
        points: where to begin.
        steps: of the solver, four evaluations each.
    """
    tau = torch.arange(2 * steps, -1, -1, dtype=torch.float64) / (2 * steps)
    nodes = torch.stack([0.5 * math.pi * tau**3, -1.5 * math.pi * tau**2 / steps], -1)
    grid = torch.stack([nodes[:-2:2], nodes[1:-1:2], nodes[2::2]], 1).to(points)

    def slope(node: Tensor, position: Tensor) -> Tensor:
        return node[1] * field(node[:1], position)

    def step(position: Tensor, around: Tensor) -> Tensor:
        begin, middle, end = around.unbind(0)
        first = slope(begin, position)
        second = slope(middle, position + first / 2)
        third = slope(middle, position + second / 2)
        return position + (first + 2 * (second + third) + slope(end, position + third)) / 6

    return repeat(step, points, grid)


def divergence_of(field: Field, points: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The velocity ``(n, D)`` at points ``(n, D)`` and its divergence ``(n,)``, both without a graph.

    Args:
        field: the velocity.
        points: where.
        seed: of the random signs above D = 32.
    """
    directions = _directions(points.shape[1], seed, points)
    total = points.new_zeros(len(points))
    with torch.enable_grad():
        position = points.detach().requires_grad_()
        velocity = field(position)
        for i, direction in enumerate(directions, start=1):
            along = (velocity @ direction).sum()
            (row,) = torch.autograd.grad(along, position, retain_graph=i < len(directions))
            total = total + row @ direction
    return velocity.detach(), total


def _directions(dims: int, seed: int, like: Tensor) -> Tensor:
    """The axes, or directions ``(16, D)`` of random signs whose outer products have the identity as their mean."""
    if dims <= _MOST_EXACT:
        return torch.eye(dims, dtype=like.dtype, device=like.device)
    with seeded(derive(seed, "probes")):
        signs = 2 * torch.randint(2, (_PROBES, dims)) - 1
    return signs.to(like) / math.sqrt(_PROBES)
