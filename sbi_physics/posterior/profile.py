r"""Nuisance parameters, the frequentist way: the profile likelihood.

With parameters of interest $\psi$ and nuisance parameters $\lambda$, the profile and what it gives are

$$ \ell_p(\psi) = \max_\lambda \ln p(x|\psi, \lambda), \qquad
\{\psi : 2\,(\ell_p(\hat\psi) - \ell_p(\psi)) \le \chi^2_{k,\,level}\}, $$

where by Wilks' theorem the set covers with k = 1 or 2 parameters of interest, if the data are many enough for the
likelihood to be close to a Gaussian and the truth is not on a bound; `confidence.ConfidenceSets` cover without that.
See Murphy and van der Vaart 2000 (J. Am. Stat. Assoc. 95, 449) and Algeri et al. 2020 (arXiv:1911.10237).

The Bayesian way needs no work: the marginal posterior of some parameters is `Samples.select` of the draws of all.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, known_keys, positive_integer
from sbi_physics.core.circle import wrapped
from sbi_physics.core.errors import BudgetError, NonFiniteError, ShapeError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import check_seed, derive
from sbi_physics.core.samples import Cost
from sbi_physics.posterior.crossings import crossings
from sbi_physics.posterior.maximum import FreeCoordinates, Problems, Solution
from sbi_physics.posterior.profile_curve import Profile

__all__ = ["profile_likelihood"]

_POINTS = {1: 41, 2: 21}
# What the profile falls by at the ends of a range that is chosen: beyond three standard deviations.
_DEPTH = {1: 5.0, 2: 6.5}
_CANDIDATES = 64
_GLOBAL_CANDIDATES = 1024
_SWEEPS = 8
_WORTH_A_SWEEP = 0.01
_REACH = tuple(2.0**k for k in range(-9, 5))


def profile_likelihood(
    log_likelihood: Callable[[Tensor], Tensor],
    parameters: Any,
    interest: str | Sequence[str],
    *,
    points: Any = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    prior: bool = False,
    starts: int = 8,
    steps: int = 100,
    seed: int = 0,
    max_calls: int | None = None,
    max_seconds: float | None = None,
) -> Profile:
    """Maximise a log-likelihood over all parameters but one or two, at values of those.

    Every point is tried from several starts: draws of the prior, the best over all parameters, and, in rounds until
    nothing rises any more, the solutions of the neighbouring points, so that a second maximum that one point finds
    becomes known to all.

    Args:
        log_likelihood: theta ``(n, P)`` float64 to ``(n,)`` in nats, differentiable: that of an exact simulator, or a
            learned one, ``lambda theta: posterior.log_likelihood(theta, x_obs)``.
        parameters: `Parameters`, or any torch distribution over P numbers: names, bounds, and where to start.
        interest: one or two names.
        points: how many along each axis of a grid (41 for one parameter, 21 each for two), or the points ``(m, k)``.
        ranges: from where to where the grid goes, by name; where the profile has fallen by 5 nats (6.5 for two) if
            not stated. That of a periodic parameter may go beyond a bound.
        prior: whether to add the log-density of the prior: the profile is then that of the posterior, and no
            frequentist set.
        starts: climbs at each point.
        steps: of Adam in each of them, before BFGS.
        seed: of the starts.
        max_calls: most rows at which the likelihood is evaluated; a step that has begun is ended.
        max_seconds: wall-clock budget, looked at before each step.

    Raises:
        UsageError: a name is not known, or the likelihood cannot be differentiated.
        ShapeError: the points or the likelihood have another shape.
        SupportError: a point is outside the bounds.
        NonFiniteError: the likelihood is nowhere finite.
        BudgetError: the budget ended before there was a point.
    """
    parameters = Parameters.from_prior(parameters)
    names = [interest] if isinstance(interest, str) else list(interest)
    columns = [parameters.index(name) for name in names]
    if len(set(columns)) != len(columns) or len(columns) not in (1, 2):
        raise UsageError(f"interest: expected one or two different parameters, got {names}")
    search = _Search(
        log_likelihood, parameters, columns, prior, starts, steps, check_seed(seed), max_calls, max_seconds
    )
    search.find_maximum()
    grid, shape = search.grid(points, ranges)
    solution, unsettled = search.solve(grid)
    return search.result(grid, shape, solution, unsettled)


class _Search:
    """The state of a search: what was found, and what it cost."""

    def __init__(
        self,
        log_likelihood: Callable[[Tensor], Tensor],
        parameters: Parameters,
        columns: list[int],
        prior: bool,
        starts: int,
        steps: int,
        seed: int,
        max_calls: int | None,
        max_seconds: float | None,
    ) -> None:
        self.log_likelihood, self.parameters, self.columns, self.prior = log_likelihood, parameters, columns, prior
        self.starts, self.steps = positive_integer(starts, "starts"), positive_integer(steps, "steps")
        self.seed, self.max_calls, self.max_seconds = seed, max_calls, max_seconds
        self.calls, self.began = 0, time.monotonic()
        self.whole = FreeCoordinates(parameters, [], derive(seed, "whole"))
        self.nuisance = FreeCoordinates(parameters, columns, derive(seed, "nuisance"))

    def evaluate(self, theta: Tensor, rows: Tensor) -> Tensor:
        self.calls += len(theta)
        value = self.log_likelihood(theta)
        if not isinstance(value, Tensor) or value.shape != theta.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(
                f"log_likelihood: expected a tensor of shape ({len(theta)},) that torch can differentiate, got {got}"
            )
        value = value.to(theta)
        return value + self.parameters.log_prob(theta).to(theta) if self.prior else value

    def spent(self) -> bool:
        late = self.max_seconds is not None and time.monotonic() - self.began >= self.max_seconds
        return late or (self.max_calls is not None and self.calls >= self.max_calls)

    def problems(self, held: Tensor | None = None) -> Problems:
        coordinates = self.whole if held is None else self.nuisance
        values = torch.zeros(1, 0, dtype=torch.float64) if held is None else held
        return Problems(self.evaluate, coordinates, values, self.spent)

    def find_maximum(self) -> None:
        """Climb over all parameters."""
        problem = self.problems()
        self._check_budget()
        candidates = self.whole.draws(_GLOBAL_CANDIDATES, derive(self.seed, "candidates"))
        chosen = problem.screen(candidates, 2 * self.starts)
        self.best = problem.climb(chosen, steps=self.steps, polish=self.steps)
        if not bool(torch.isfinite(self.best.value).all()):
            raise NonFiniteError(
                f"log_likelihood: expected a finite value somewhere, got none at {self.calls} draws of the prior"
            )

    def grid(self, points: Any, ranges: Mapping[str, tuple[float, float]] | None) -> tuple[Tensor, tuple[int, ...]]:
        """Values of the parameters of interest ``(m, k)``, and the shape of their grid."""
        names = [self.parameters.names[i] for i in self.columns]
        known_keys(list(ranges or {}), names, "ranges")
        if points is not None and not isinstance(points, int):
            given = finite(as_tensor(points, "points", dtype=torch.float64), "points").cpu()
            given = given.unsqueeze(1) if given.ndim == 1 and len(names) == 1 else given
            return self._inside(batch_of(given, (len(names),), "points")), (len(given),)
        count = _POINTS[len(names)] if points is None else positive_integer(points, "points")
        if count < 3:
            raise UsageError(f"points: expected at least 3 along an axis, got {count}")
        axes = []
        for name, column in zip(names, self.columns, strict=True):
            low, high = (ranges or {}).get(name) or self._range(column)
            if not low < high:
                raise UsageError(f"ranges: expected lower < upper for {name}, got ({low:g}, {high:g})")
            ends = self.parameters.bounds[column]
            # As bounds are written: 1.2, of which single precision makes a number a little larger.
            low, high = (
                float(end) if abs(value - float(end)) <= 1e-6 * abs(high - low) else value
                for value, end in zip((low, high), ends, strict=True)
            )
            axes.append(torch.linspace(low, high, count, dtype=torch.float64))
        grid = torch.stack([axis.reshape(-1) for axis in torch.meshgrid(*axes, indexing="ij")], -1)
        return self._inside(grid), (count,) * len(names)

    def _inside(self, grid: Tensor) -> Tensor:
        theta = self.best.theta.expand(len(grid), -1).clone()
        theta[:, self.columns] = grid
        self.parameters.check_within(wrapped(theta, self.parameters.bounds, self.parameters.periodic), "points")
        return grid

    def _range(self, column: int) -> tuple[float, float]:
        """Where the profile of one parameter has fallen far enough, found in doubling steps either way."""
        depth = _DEPTH[len(self.columns)]
        bounds, centre = self.parameters.bounds[column], float(self.best.theta[0, column])
        if self.parameters.periodic[column]:
            bounds = centre + (bounds - bounds.mean())
        low, high = bounds.tolist()
        draws = self.parameters.sample(2048, seed=derive(self.seed, "width")).double()[:, column]
        width = float(draws.quantile(0.84) - draws.quantile(0.16)) or 1.0
        steps = torch.tensor(_REACH, dtype=torch.float64) * width
        at = torch.cat([centre - steps, centre + steps]).clamp(low, high)
        coordinates = FreeCoordinates(self.parameters, [column], derive(self.seed, "axis", column))
        problem = Problems(self.evaluate, coordinates, at.unsqueeze(1), self.spent)
        starts = coordinates.coordinates(self.best.theta).expand(len(at), -1).unsqueeze(1)
        value = self._climb(problem, starts, quick=True).value - self.best.value
        at = torch.cat([at, torch.tensor([centre], dtype=torch.float64)])
        value = torch.cat([value, value.new_zeros(1)]).clamp(max=0.0)
        pieces = crossings(at, value, depth, bounds)
        # Beyond the farthest point nothing is known: the grid ends there.
        return max(float(pieces[0, 0]), float(at.min())), min(float(pieces[-1, 1]), float(at.max()))

    def solve(self, grid: Tensor) -> tuple[Solution, float]:
        """Maximise at each point; by how much the last round still raised one of them."""
        problem = self.problems(grid)
        if self.nuisance.dims == 0:
            return problem.at(torch.zeros(len(grid), 0, dtype=torch.float64)), 0.0
        known = self.nuisance.coordinates(self.best.theta).expand(len(grid), 1, -1)
        solution = problem.at(known[:, 0])
        candidates = self.nuisance.draws(_CANDIDATES, derive(self.seed, "nuisance candidates"))
        starts = torch.cat([known, problem.screen(candidates, max(1, self.starts - 1))], 1)
        solution = self._climb(problem, starts).better(solution)
        neighbours, risen = _neighbours(grid), math.inf
        for _ in range(_SWEEPS):
            if self.spent():
                break
            from_others = self.nuisance.coordinates(solution.theta)[neighbours]
            better = self._climb(problem, from_others, quick=True).better(solution)
            risen = float((better.value - solution.value).nan_to_num(0.0).max())
            solution = better
            if risen <= _WORTH_A_SWEEP:
                break
        return solution, risen

    def _climb(self, problem: Problems, starts: Tensor, *, quick: bool = False) -> Solution:
        return problem.climb(starts, steps=0 if quick else self.steps, polish=self.steps)

    def result(self, grid: Tensor, shape: tuple[int, ...], solution: Solution, unsettled: float) -> Profile:
        """Relative to the maximum over all parameters, which a point of the grid may improve."""
        top = int(solution.value.argmax())
        if float(solution.value[top]) > float(self.best.value[0]):
            start = self.whole.coordinates(solution.theta[top])
            climbed = self.problems().climb(start.reshape(1, 1, -1), steps=0, polish=self.steps)
            found = Solution(solution.theta[top : top + 1], solution.value[top : top + 1], solution.gain[top : top + 1])
            self.best = climbed.better(found)
        maximum = float(self.best.value[0])
        names, p = tuple(self.parameters.names[i] for i in self.columns), self.parameters
        return Profile(
            names,
            p.names,
            p.units,
            p.labels,
            grid,
            shape,
            solution.value - maximum,
            solution.theta,
            self.best.theta[0],
            maximum,
            p.bounds[self.columns],
            unsettled,
            "budget" if self.spent() else "converged",
            Cost(time.monotonic() - self.began, 0, self.calls),
            tuple(p.periodic[i] for i in self.columns),
        )

    def _check_budget(self) -> None:
        if self.spent():
            raise BudgetError(
                f"profile: the budget allows no point (max_calls={self.max_calls}, max_seconds={self.max_seconds})"
            )


def _neighbours(grid: Tensor) -> Tensor:
    """The nearest other points of each, two for one parameter and four for two: indices ``(m, 2 k)``."""
    m, k = grid.shape
    spread = (grid.amax(0) - grid.amin(0)).clamp(min=1e-300)
    distance = torch.cdist(grid / spread, grid / spread)
    distance.fill_diagonal_(torch.inf)
    return distance.topk(min(2 * k, max(m - 1, 1)), largest=False).indices
