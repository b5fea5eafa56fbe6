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
from sbi_physics.integration.channels import Mixture
from sbi_physics.integration.estimate import Combination, combine, iteration_of
from sbi_physics.integration.evaluation import Evaluations
from sbi_physics.integration.grid import ProductGrid
from sbi_physics.integration.modes import around, cover, explore, joined, refit, search
from sbi_physics.integration.neural import Loss, train_flows
from sbi_physics.integration.rounds import MOST_CELL_DIMS, Round, cells_of, efficiency_of, gathered
from sbi_physics.integration.verdict import edge_mass
from sbi_physics.train.config import TrainConfig

__all__ = ["Adaptation"]

_PILOT = 4096
_FEW_CALLS = 65_536
_EFFICIENT, _WORTHWHILE = 0.9, 0.3
_CLEARLY, _GROWING = 0.8, 1.5
_AT_THE_EDGE = 0.01
_FIRST = 8192
_REPETITIONS = 32
_LEAST_ESS, _LEAST_COUNTING = 400.0, 100.0
_EXPLORATIONS, _MOST_OF_BUDGET = 2, 0.1
_LARGEST_ROUND, _LARGEST_NUMBERS = 1 << 21, 1 << 23
_NUMBERS_STORED = 1 << 24
_POINTS_KEPT = 400_000
_LATEST = 3
_POINTS_TRAINED = 150_000
_TRAINING_SECONDS = 90.0
_SURPRISE = 0.1
_MOST_RESTARTS = 3
_CALLS_TO_RESTART = 100_000
_SHARE_OF_PEAK = 0.3
_FOUND, _FEWEST_FOUND = 200, 20
_MOST_SEARCHED = 2_000_000


@dataclass
class Adaptation:
    """An integration on its way.

    Attributes:
        function: the integrand.
        rel_error: relative error at which it is done; None for none.
        abs_error: the same, absolute.
        start: a mixture to begin with, or None.
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
        if (self.rel_error is None and self.abs_error is None) or len(self.counted) < 2:
            return False
        found = self.estimate
        return any(
            found.error <= wanted
            for wanted in (self.abs_error, None if self.rel_error is None else self.rel_error * abs(found.value))
            if wanted is not None
        )

    @property
    def counted(self) -> list[Round]:
        """The rounds that have a say in the estimate."""
        return [each for each in self.rounds if each.iteration.weight > 0]

    @property
    def largest_late(self) -> Round:
        """The largest of the last rounds, by which maps are judged."""
        return max(self.rounds[-_LATEST:], key=lambda each: len(each.values))

    @property
    def maps(self) -> dict[str, Mixture]:
        """The best map of each kind that was tried."""
        return {kind: mixture for kind, (_, mixture) in self._best.items()}

    def run(self) -> Mixture:
        """Integrate until the error or a budget is reached; returns the mixture that follows the integrand best."""
        mixture, kind = self._begin()
        size: float = _FIRST
        while not self.done and (size := self._next_size(size)):
            last = self._round(mixture, kind, size)
            surprised = self._surprised(last)
            if max(edge_mass(mixture)) > _AT_THE_EDGE or (surprised and not self._may_restart):
                break
            if surprised:
                mixture, kind = self._again()
                size = _FIRST
                continue
            mixture, kind = self._next_map(kind, size)
            size = min(2 * size, _LARGEST_ROUND, _LARGEST_NUMBERS / self.function.dims)
        return self._most_even()

    def _most_even(self) -> Mixture:
        """The mixture whose weights are the most even at the points of the last round.

        A map that makes the mean exact need not be one: even points integrate a smooth function as they are.
        """
        known = [mixture for _, mixture in self._best.values()]
        if set(self._best) == {"identity"} and self.rounds[-1].efficiency < _EFFICIENT:
            points, values, log_q, worth = gathered(self.rounds, _POINTS_KEPT)
            known.append(cover(points, worth * values * torch.exp(-log_q), seed=derive(self.seed, "events")))
        return max(known, key=lambda each: efficiency_of(each, self.rounds[-1]))

    def _begin(self) -> tuple[Mixture, str]:
        if self.start is not None:
            return self.start, "grids"
        identity = Mixture((ProductGrid.uniform(self.function.dims),), torch.ones(1).double())
        pilot = self._round(identity, "identity", min(_PILOT, self.function.left() / 4))
        if self._needed(pilot) <= _FEW_CALLS and self._effective(pilot) >= _LEAST_ESS:
            return identity, "identity"
        return self._first_cover(pilot), "grids"

    def _first_cover(self, pilot: Round) -> Mixture:
        seed = derive(self.seed, "cover", self.restarts)
        if self._effective(pilot) >= _LEAST_ESS:
            return cover(pilot.draws.points, pilot.weights.abs(), seed=seed)
        return self._explored(seed)

    def _explored(self, seed: int) -> Mixture:
        clouds = []
        for number in range(_EXPLORATIONS):
            left, before = self.function.left(), self.function.calls
            budget = None if math.isinf(left) else max(1, int(left / 3))
            try:
                clouds.append(explore(self.function, seed=derive(seed, number), max_calls=budget))
            except (ConvergenceError, BudgetError):
                break
            if self.function.calls - before > _MOST_OF_BUDGET * self.function.left():
                break
        if clouds:
            cloud = torch.cat(clouds)
            return cover(cloud, torch.ones(len(cloud), dtype=torch.float64), seed=seed)
        return self._searched(seed)

    def _searched(self, seed: int) -> Mixture:
        """From uniform points alone, where no cloud could be made of the integrand."""
        points, sizes = search(self.function, _FOUND, int(min(self.function.left() / 4, _MOST_SEARCHED)), seed)
        pilot = self.rounds[0]
        seen = pilot.values != 0
        points, sizes = torch.cat([points, pilot.draws.points[seen]]), torch.cat([sizes, pilot.values[seen].abs()])
        if len(points) < _FEWEST_FOUND:
            raise ConvergenceError(
                f"integrand: it was zero at {self.function.calls - len(points)} of {self.function.calls} points looked "
                f"at; expected {_FEWEST_FOUND} or more where it is not: integrate over a smaller region that holds them"
            )
        return cover(points, sizes, seed=seed, clusters=(1,))

    def _round(self, mixture: Mixture, kind: str, size: float) -> Round:
        number = len(self.rounds)
        repetitions = _REPETITIONS if size >= _FIRST else _REPETITIONS // 2
        draws = mixture.draw(size, repetitions, derive(self.seed, "round", number))
        values = self.function(draws.points)
        terms = draws.factor * values * torch.exp(-draws.log_q)
        iteration = iteration_of(terms, draws.repetition, len(values), self._weight(kind, len(values)))
        squares = float(terms.square().sum())
        efficiency = float(terms.abs().sum()) ** 2 / squares / len(values) if squares > 0 else 0.0
        found = Round(draws, values, iteration, kind, efficiency)
        self.rounds.append(found)
        self._forget()
        scaled = iteration.variance_per_call if self._effective(found) >= _LEAST_COUNTING else math.inf
        if kind not in self._best or scaled < self._best[kind][0]:
            self._best[kind] = scaled, mixture
        self.report(found, self.estimate)
        return found

    def _forget(self) -> None:
        """Keep the points of the latest rounds alone, so that memory has a bound."""
        stored = 0
        for i in reversed(range(len(self.rounds))):
            stored += self.rounds[i].draws.points.numel()
            if stored > _NUMBERS_STORED and i < len(self.rounds) - 1:
                self.rounds[i] = self.rounds[i].without_points()

    def _weight(self, kind: str, calls: int) -> float:
        """Of the next round in the estimate: known before its points are drawn.

        A map counts from its second round on, if the first was of enough points; larger rounds, which have better maps
        and more even points, count for more than their number.
        """
        value, mixture = self._best.get(kind, (math.inf, None))
        return float(calls) ** _GROWING if mixture is not None and math.isfinite(value) else 0.0

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
        needed = max(1.2 * self._needed(self.rounds[-1]), _FIRST / 2) if self.rounds else math.inf
        left = self.function.left()
        if left < _FIRST / 4:
            return 0
        # Numbers of points in the channels are rounded to powers of two, by which there may be half again as many.
        return min(size, needed, left / 1.5)

    def _surprised(self, last: Round) -> bool:
        """Whether one point of a round that was to be smooth makes much of its value."""
        terms = last.weights.abs()
        return len(self.rounds) > 2 and float(terms.max()) > _SURPRISE * float(terms.sum())

    @property
    def _may_restart(self) -> bool:
        return self.restarts < _MOST_RESTARTS and self.function.left() > _CALLS_TO_RESTART

    def _again(self) -> tuple[Mixture, str]:
        """Explore anew, and forget the rounds that had not seen what surprised."""
        self.restarts += 1
        last = self.rounds[-1]
        heaviest = last.draws.points[int(last.weights.abs().argmax())]
        for i, each in enumerate(self.rounds):
            self.rounds[i] = replace(each, iteration=replace(each.iteration, weight=0.0))
        self._best.clear()
        seed = derive(self.seed, "again", self.restarts)
        return joined(self._explored(seed), around(self.function, heaviest, seed=seed), _SHARE_OF_PEAK), "grids"

    def _next_map(self, kind: str, size: float) -> tuple[Mixture, str]:
        """What the next round draws from."""
        last = self.rounds[-1]
        best = min(self._best, key=lambda k: self._best[k][0])
        if self._needed(last) <= size or self.done:
            return self._best[best][1], best
        if best != kind and self._best[best][0] < _CLEARLY * last.iteration.variance_per_call:
            kind = best
        if last.efficiency < _EFFICIENT and self._needed(last) > 2 * self.function.calls:
            kind = self._better_kind(kind, last)
        return self._learned(kind), kind

    def _better_kind(self, kind: str, last: Round) -> str:
        """Cells, where they would have been better in the last round; else flows, unless these have failed."""
        if self.start is None and 1 < self.function.dims <= MOST_CELL_DIMS and kind != "flows":
            efficiency = self._efficiency_of_cells(last)
            if efficiency > max(last.efficiency / _CLEARLY, _WORTHWHILE):
                return "cells"
        ready = len(self.rounds) > 2 and self._effective(last) >= _LEAST_ESS
        if self.neural and self.function.dims > 1 and ready and "flows" not in self._best:
            return "flows"
        return kind if kind != "identity" else "grids"

    def _efficiency_of_cells(self, last: Round) -> float:
        """That of a tree which has not seen the last round, at the points of that round."""
        earlier = self.rounds[:-1]
        if sum(len(each.values) for each in earlier) < _FIRST:
            return 0.0
        return efficiency_of(cells_of(*gathered(earlier, _POINTS_KEPT)[:3]), last)

    def _learned(self, kind: str) -> Mixture:
        """The map of a kind, fitted to all points."""
        known = self._best[kind][1] if kind in self._best else None
        if kind == "identity" and known is not None:
            return known
        points, values, log_q, worth = gathered(self.rounds, _POINTS_KEPT)
        if kind == "cells":
            return cells_of(points, values, log_q)
        weights = worth * values * torch.exp(-log_q)
        grids = self._best["grids"][1] if "grids" in self._best else None
        if grids is None:
            grids = cover(points, weights, seed=derive(self.seed, "cover", self.restarts))
        if kind == "grids":
            return grids if known is None else refit(grids, points, weights, 2)
        return self._flows(grids if known is None else known, points, values, log_q, worth)

    def _flows(self, mixture: Mixture, *points: Tensor) -> Mixture:
        rounds = sum(each.kind == "flows" for each in self.rounds)
        if rounds and self.rounds[-1].efficiency > _EFFICIENT:
            return mixture
        settings: dict[str, Any] = {"config": TrainConfig(epochs=20, patience=4, max_seconds=_TRAINING_SECONDS)}
        loss: Loss = "kl" if rounds < 2 else "variance"
        x, values, log_q, worth = (each[:_POINTS_TRAINED] for each in points)
        return train_flows(
            mixture, x, values, log_q, worth=worth, loss=loss, seed=derive(self.seed, "flows", rounds), **settings
        )
