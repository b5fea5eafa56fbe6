"""The iterations of an integration: pilot, exploration, and rounds that learn from all points before them.

The maps are tried in the order of what they cost, and the next kind only where the present one leaves many calls to be
made: the identity, a mixture of grids, a tree of cells in few dimensions, flows.  The kind whose variance for each call
is smallest stays; it learns on with the points of each round, which is twice as large as the one before.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.errors import BudgetError, ConvergenceError
from sbi_physics.core.random import derive
from sbi_physics.integration.cells import CellMap
from sbi_physics.integration.channels import Draws, Mixture
from sbi_physics.integration.estimate import Combination, Iteration, combine, iteration_of
from sbi_physics.integration.evaluation import Evaluations
from sbi_physics.integration.grid import ProductGrid
from sbi_physics.integration.modes import cover, explore, refit
from sbi_physics.integration.neural import train_flows
from sbi_physics.train.config import TrainConfig

__all__ = ["Adaptation", "Round"]

_PILOT = 4096
_FIRST = 8192
_REPETITIONS = 32
_LEAST_ESS = 400.0
_EXPLORATIONS = 2
_MOST_CELL_DIMS = 6
_CELL_SHARE = 0.95
_POINTS_KEPT = 400_000
_SURPRISE = 0.1
_MOST_RESTARTS = 2


@dataclass(frozen=True)
class Round:
    """The points of one round, and what they say.

    Attributes:
        draws: the points.
        values: the integrand there, ``(n,)``.
        iteration: value, error and calls.
        kind: of the map.
        efficiency: effective sample size of the weights over their number.
    """

    draws: Draws
    values: Tensor
    iteration: Iteration
    kind: str
    efficiency: float

    @property
    def weights(self) -> Tensor:
        """What each point adds to the value of the round, ``(n,)``."""
        return self.draws.factor * self.values * torch.exp(-self.draws.log_q) / (int(self.draws.repetition.max()) + 1)


@dataclass
class Adaptation:
    """An integration on its way.

    Attributes:
        function: the integrand.
        rel_error: relative error at which it is done; None for none.
        abs_error: the same, absolute.
        maps: the maps of the user, or None.
        neural: whether flows may be trained.
        seed: of everything.
        max_seconds: wall-clock budget.
        report: is called with each round and the estimate so far.
    """

    function: Evaluations
    rel_error: float | None
    abs_error: float | None
    start: Mixture | None
    neural: bool
    seed: int
    max_seconds: float | None
    report: Callable[[Round, Combination], None]
    rounds: list[Round] = field(default_factory=list)
    explored: int = 0
    restarts: int = 0
    _best: dict[str, tuple[float, Mixture]] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    @property
    def estimate(self) -> Combination:
        """What the rounds so far give."""
        return combine([each.iteration for each in self.rounds])

    @property
    def done(self) -> bool:
        """Whether the wanted error is reached, by two rounds at least."""
        if self.rel_error is None and self.abs_error is None or len(self._counted) < 2:
            return False
        found = self.estimate
        return any(
            found.error <= wanted
            for wanted in (self.abs_error, None if self.rel_error is None else self.rel_error * abs(found.value))
            if wanted is not None
        )

    @property
    def _counted(self) -> list[Round]:
        return [each for each in self.rounds if each.iteration.weight > 0]

    def run(self) -> Mixture:
        """Integrate until the error or a budget is reached; returns the best mixture."""
        mixture, kind = self._begin()
        size = _FIRST
        while not self.done and (size := self._next_size(size)):
            last = self._round(mixture, kind, size)
            if self._surprised(last):
                mixture, kind = self._again()
                size = _FIRST
                continue
            mixture, kind = self._next_map(mixture, kind, size)
            size *= 2
        return min(self._best.values(), key=lambda each: each[0])[1]

    def _begin(self) -> tuple[Mixture, str]:
        identity = self.start or Mixture((ProductGrid.uniform(self.function.dims),), torch.ones(1).double())
        pilot = self._round(identity, "identity", min(_PILOT, self.function.left() / 4))
        if self._needed(pilot) <= 2 * _PILOT and self._effective(pilot) >= _LEAST_ESS:
            return identity, "identity"
        if self.start is not None and self._effective(pilot) >= _LEAST_ESS:
            return identity, "identity"
        return self._first_cover(pilot), "grids"

    def _first_cover(self, pilot: Round) -> Mixture:
        seed = derive(self.seed, "cover", self.restarts)
        if self._effective(pilot) >= _LEAST_ESS:
            return cover(pilot.draws.points, pilot.weights.abs(), seed=seed)
        return self._explored(seed)

    def _explored(self, seed: int) -> Mixture:
        clouds, before = [], self.function.calls
        for number in range(_EXPLORATIONS):
            budget = None if self.function.max_calls is None else max(1, int(self.function.left() / 2))
            try:
                clouds.append(
                    explore(self.function, self.function.dims, seed=derive(seed, number), max_calls=budget)
                )
            except ConvergenceError as error:
                raise ConvergenceError(
                    f"integrand: it was zero at nearly all of {self.function.calls} points looked at; where it is not "
                    "must be told, by an integrand over that region alone"
                ) from error
            except BudgetError:
                break
        self.explored += self.function.calls - before
        if not clouds:
            # What is left of the budget goes to the points that there are.
            every = [torch.cat([getattr(r, name) for r in self.rounds]) for name in ("weights",)][0].abs()
            return cover(torch.cat([r.draws.points for r in self.rounds]), every + 1e-300, seed=seed, clusters=(1,))
        cloud = torch.cat(clouds)
        return cover(cloud, torch.ones(len(cloud), dtype=torch.float64), seed=seed)

    def _round(self, mixture: Mixture, kind: str, size: float) -> Round:
        number = len(self.rounds)
        repetitions = _REPETITIONS if size >= _FIRST else _REPETITIONS // 2
        draws = mixture.draw(size, repetitions, derive(self.seed, "round", number))
        values = self.function(draws.points)
        terms = draws.factor * values * torch.exp(-draws.log_q)
        before = self.rounds[-1].iteration.variance_per_call if self.rounds else math.inf
        iteration = iteration_of(terms, draws.repetition, len(values), 1.0)
        iteration = replace(iteration, weight=len(values) / before if before > 0 else 0.0)
        squares = float(terms.square().sum())
        efficiency = float(terms.abs().sum()) ** 2 / squares / len(values) if squares > 0 else 0.0
        found = Round(draws, values, iteration, kind, efficiency)
        self.rounds.append(found)
        scaled = iteration.variance_per_call
        if kind not in self._best or scaled < self._best[kind][0]:
            self._best[kind] = scaled, mixture
        self.report(found, self.estimate)
        return found

    def _effective(self, of: Round) -> float:
        return of.efficiency * of.iteration.calls

    def _needed(self, of: Round) -> float:
        """Calls that the wanted error would take as things are."""
        value = abs(self.estimate.value)
        wanted = [self.abs_error or 0.0, (self.rel_error or 0.0) * value]
        if max(wanted) <= 0:
            return self.function.left() if math.isfinite(self.function.left()) else math.inf
        return of.iteration.variance_per_call / max(wanted) ** 2

    def _next_size(self, size: float) -> float:
        """Points of the next round: no more than are needed or allowed; 0 ends the run."""
        if self.max_seconds is not None and time.monotonic() - self._began > self.max_seconds:
            return 0
        needed = max(1.2 * self._needed(self.rounds[-1]), _FIRST / 2)
        left = self.function.left()
        if left < _FIRST / 4:
            return 0
        # Numbers of points in the channels are rounded to powers of two, by which there may be half again as many.
        return min(size, needed, left / 1.5)

    def _surprised(self, last: Round) -> bool:
        """Whether one point of a round that was to be smooth makes much of its value."""
        terms = last.weights.abs()
        return (
            self.restarts < _MOST_RESTARTS
            and len(self.rounds) > 2
            and float(terms.max()) > _SURPRISE * float(terms.sum())
        )

    def _again(self) -> tuple[Mixture, str]:
        """Explore anew, and forget the rounds that had not seen what surprised."""
        self.restarts += 1
        for i, each in enumerate(self.rounds):
            self.rounds[i] = replace(each, iteration=replace(each.iteration, weight=0.0))
        self._best.clear()
        return self._explored(derive(self.seed, "again", self.restarts)), "grids"

    def _next_map(self, mixture: Mixture, kind: str, size: float) -> tuple[Mixture, str]:
        """What the next round draws from."""
        last, before = self.rounds[-1], self.rounds[-2] if len(self.rounds) > 1 else None
        needed = self._needed(last)
        best = min(self._best, key=lambda k: self._best[k][0])
        if needed <= size or self.done:
            return (mixture, kind) if best == kind else (self._best[best][1], best)
        if best != kind and self._best[best][0] < 0.8 * last.iteration.variance_per_call:
            kind, mixture = best, self._best[best][1]
        elif before is not None and before.kind == kind and self._slow(before, last, needed):
            kind = self._next_kind(kind)
        return self._learned(mixture, kind), kind

    def _slow(self, before: Round, last: Round, needed: float) -> bool:
        """Whether the last round was hardly better, where much remains to be done."""
        improved = last.iteration.variance_per_call < 0.5 * before.iteration.variance_per_call
        return not improved and needed > 2 * self.function.calls

    def _next_kind(self, kind: str) -> str:
        order = ["identity", "grids"]
        order += ["cells"] if 1 < self.function.dims <= _MOST_CELL_DIMS and self.start is None else []
        order += ["flows"] if self.neural and self.function.dims > 1 else []
        following = [each for each in order[order.index(kind) + 1 :] if each not in self._best]
        return following[0] if following else kind

    def _learned(self, mixture: Mixture, kind: str) -> Mixture:
        if kind == "identity":
            return mixture
        points, values, log_q, worth = self._points()
        weights = worth * values * torch.exp(-log_q)
        if kind == "grids":
            if "grids" not in self._best:
                return cover(points, weights, seed=derive(self.seed, "cover", self.restarts))
            return refit(mixture, points, weights, 2)
        grids = self._best["grids"][1] if "grids" in self._best else cover(points, weights, clusters=(1,))
        if kind == "cells":
            return _cells(points, values, log_q, weights)
        begun = mixture if "flows" in self._best else grids
        return self._flows(begun, points, values, log_q, worth)

    def _flows(self, mixture: Mixture, *points: Tensor) -> Mixture:
        rounds = sum(each.kind == "flows" for each in self.rounds)
        settings: dict[str, Any] = {"config": TrainConfig(epochs=25, patience=5)}
        loss = "kl" if rounds < 2 else "variance"
        x, values, log_q, worth = points
        return train_flows(
            mixture, x, values, log_q, worth=worth, loss=loss, seed=derive(self.seed, "flows", rounds), **settings
        )

    def _points(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points of all rounds, latest first: where, |f|, log-density drawn from, worth of a point of its round."""
        rows = [(r.draws.points, r.values.abs(), r.draws.log_q, self._worth(r)) for r in reversed(self.rounds)]
        columns = [torch.cat(each)[:_POINTS_KEPT] for each in zip(*rows, strict=True)]
        return columns[0], columns[1], columns[2], columns[3]

    def _worth(self, of: Round) -> Tensor:
        return of.draws.factor * len(of.values) * max(of.efficiency, 1e-6)


def _cells(points: Tensor, values: Tensor, log_q: Tensor, weights: Tensor) -> Mixture:
    tree = CellMap.fitted(points, values, torch.exp(log_q))
    shares = torch.tensor([_CELL_SHARE, 1 - _CELL_SHARE], dtype=torch.float64)
    return Mixture((tree, ProductGrid.uniform(points.shape[1])), shares)
