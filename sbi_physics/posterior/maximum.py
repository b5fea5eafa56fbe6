"""Maximise over some parameters while the others are held: what profiles and likelihood ratios share.

The parameters that are free climb in coordinates without bounds (`core.bijection`), shifted and scaled by the prior, so
that a step of one is a large one for each of them; periodic ones walk round their circle.  Many problems, each with its
own held values and its own starts, climb side by side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.core.circle import wrapped
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive
from sbi_physics.sampling.maximise import maximise

__all__ = ["FreeCoordinates", "Problems", "Solution"]

_SCALE_DRAWS = 2048
_ROWS_AT_ONCE = 1 << 16


class FreeCoordinates:
    """The parameters that are free, as numbers w without bounds on the scale of the prior.

    Args:
        parameters: all P of them.
        held: the columns of those that are held.
        seed: of the draws of the prior that set the scale.
    """

    def __init__(self, parameters: Parameters, held: Sequence[int], seed: int) -> None:
        self.parameters, self.held = parameters, list(held)
        self.free = [i for i in range(len(parameters)) if i not in self.held]
        self.wraps = torch.tensor(parameters.periodic)
        draws = parameters.sample(_SCALE_DRAWS, seed=derive(seed, "scale")).double()
        z = self._to_unbounded(draws)
        low, self.centre, high = z.quantile(torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64), dim=0)
        self.scale = torch.where(high > low, (high - low) / 2, 1.0)

    @property
    def dims(self) -> int:
        """How many are free, D."""
        return len(self.free)

    def draws(self, n: int, seed: int) -> Tensor:
        """Draws of the prior: w ``(n, D)``."""
        return self.coordinates(self.parameters.sample(n, seed=seed).double())

    def coordinates(self, theta: Tensor) -> Tensor:
        """W ``(*, D)`` of theta ``(*, P)``."""
        z = self._to_unbounded(theta.double())
        return ((z - self.centre) / self.scale)[..., self.free]

    def theta(self, w: Tensor, held: Tensor) -> Tensor:
        """Theta ``(m, P)`` from the free coordinates ``(m, D)`` and the held values ``(m, P - D)``; differentiable."""
        z = self.centre.expand(len(w), -1).clone()
        z[:, self.free] = self.centre[self.free] + self.scale[self.free] * w
        theta = torch.where(self.wraps, z, self.parameters.bijection.to_support(z)[0])
        if self.held:
            theta = theta.clone()
            theta[:, self.held] = held.to(theta)
        return wrapped(theta, self.parameters.bounds, self.parameters.periodic)

    def _to_unbounded(self, theta: Tensor) -> Tensor:
        return torch.where(self.wraps, theta, self.parameters.bijection.to_unbounded(theta)[0])


@dataclass(frozen=True)
class Solution:
    """The maxima of n problems.

    Attributes:
        theta: ``(n, P)``.
        value: ``(n,)``.
        gain: what a further step promises, ``(n,)``.
    """

    theta: Tensor
    value: Tensor
    gain: Tensor

    def better(self, other: "Solution") -> "Solution":
        """The better of two solutions of each problem."""
        first = self.value >= other.value
        return Solution(
            torch.where(first.unsqueeze(-1), self.theta, other.theta),
            torch.where(first, self.value, other.value),
            torch.where(first, self.gain, other.gain),
        )


@dataclass(frozen=True)
class Problems:
    """N functions to be maximised over the same free parameters.

    Attributes:
        function: ``(theta (m, P) float64, rows (m,))`` to ``(m,)``; `rows` says which of the n problems each is of.
        coordinates: what is free.
        held: values of the others ``(n, P - D)``.
        stop: says when the budget is spent.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    coordinates: FreeCoordinates
    held: Tensor
    stop: Callable[[], bool] = lambda: False

    def at(self, w: Tensor) -> Solution:
        """The functions at given points w ``(n, D)``."""
        theta = self.coordinates.theta(w, self.held)
        value = self._values(theta, torch.arange(len(theta)))
        return Solution(theta, value, torch.zeros_like(value))

    def screen(self, candidates: Tensor, starts: int) -> Tensor:
        """Choose starts ``(n, starts, D)`` among candidates ``(c, D)``: half the best of each problem, half as drawn.

        The best alone would all climb to one maximum; those as they come find others.
        """
        n, c = len(self.held), len(candidates)
        starts = min(starts, c)
        rows = torch.arange(n).repeat_interleave(c)
        values = []
        for part in torch.arange(n * c).split(_ROWS_AT_ONCE):
            theta = self.coordinates.theta(candidates[part % c], self.held[rows[part]])
            values.append(self._values(theta, rows[part]))
        best = torch.cat(values).view(n, c).topk((starts + 1) // 2, dim=1).indices
        others = torch.arange(starts // 2).expand(n, -1)
        return candidates[torch.cat([best, others], 1)]

    def climb(self, starts: Tensor, *, steps: int, polish: int) -> Solution:
        """The best maximum of each problem from its own starts ``(n, s, D)``."""
        n, s, _ = starts.shape
        coordinates, held = self.coordinates, self.held

        def function(w: Tensor, rows: Tensor) -> Tensor:
            problem = rows // s
            return self.function(coordinates.theta(w, held[problem]), problem).to(w)

        reached = maximise(function, starts.reshape(n * s, -1), steps=steps, polish=polish, stop=self.stop)
        value, which = reached.value.view(n, s).max(1)
        chosen = which + s * torch.arange(n)
        return Solution(coordinates.theta(reached.at[chosen], held), value, reached.gain[chosen])

    @torch.no_grad()
    def _values(self, theta: Tensor, rows: Tensor) -> Tensor:
        value = self.function(theta, rows).to(theta)
        return torch.where(torch.isnan(value) | (value == torch.inf), -torch.inf, value)
