"""`integrate`: the integral of a function over the unit cube, with an error that can be believed, and its events."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import BudgetError, ConvergenceError, UsageError
from sbi_physics.core.progress import Advance, progress_bar
from sbi_physics.core.random import check_seed, derive
from sbi_physics.integration.adaptive import Adaptation
from sbi_physics.integration.channels import Channel, Mixture
from sbi_physics.integration.estimate import Combination, Iteration
from sbi_physics.integration.evaluation import Evaluations, NonFinite
from sbi_physics.integration.event_map import event_map
from sbi_physics.integration.modes import channels_of
from sbi_physics.integration.rounds import Round, reweighted
from sbi_physics.integration.unweight import EventSample, MaximumWeight, accept, maximum_weight
from sbi_physics.integration.verdict import objections, sentence, weight_tail

__all__ = ["Estimate", "integrate"]

_DEFAULT_ERROR = 1e-3
_DEFAULT_CALLS = 20_000_000
_FEWEST_CALLS = 2_000
_BATCH = 1 << 16
_PARTS = 100
_ENOUGH = 5000


@dataclass(frozen=True)
class Estimate:
    """An integral, and a proposal whose points follow the integrand.

    Attributes:
        value: of the integral over the unit cube, in the unit of the integrand.
        error: its standard error.
        calls: evaluations of the integrand in all, those of exploration and training included.
        chi2: of the rounds about the value.
        degrees: its degrees of freedom.
        trusted: whether nothing speaks against it.
        verdict: what speaks against it, in words.
        effective_sample_size: of the weights of the rounds that count.
        pareto_k: of their tail.
        efficiency: effective share of the points of the last round.
        seconds: wall-clock time.
        rounds: value, error and calls of each round.
        kinds: of the map of each round.
        proposal: the mixture of maps that fits best.
    """

    value: float
    error: float
    calls: int
    chi2: float
    degrees: int
    trusted: bool
    verdict: str
    effective_sample_size: float
    pareto_k: float
    efficiency: float
    seconds: float
    rounds: tuple[Iteration, ...]
    kinds: tuple[str, ...]
    proposal: Mixture = field(repr=False)
    _function: Callable[[Any], Any] = field(repr=False)
    _non_finite: NonFinite = field(repr=False)
    _run: Adaptation = field(repr=False)

    @property
    def history(self) -> str:
        """A line for the search for peaks, where there was one, and for each round."""
        lines = [f"{'round':>6} {'map':<9} {'calls':>10} {'value':>14} {'error':>10}"]
        if (search := self.calls - sum(each.calls for each in self.rounds)) > 0:
            lines.append(f"{'search':>6} {'':<9} {search:>10}")
        for i, (each, kind) in enumerate(zip(self.rounds, self.kinds, strict=True), 1):
            lines.append(f"{i:>6} {kind:<9} {each.calls:>10} {each.value:>14.8g} {each.error:>10.2g}")
        return "\n".join(lines)

    def __str__(self) -> str:
        freedom = f"{self.degrees} degree{'' if self.degrees == 1 else 's'} of freedom"
        value = f"{self.value:.8g} +- {self.error:.2g}, chi2 {self.chi2:.1f} for {freedom}, {self.calls} calls"
        return "\n".join([self.history, value, self.verdict])

    def for_events(self, *, progress: bool = False) -> "Estimate":
        """The same with a proposal for unweighted events: the largest weights are small, rather than the variance.

        It is learned from the evaluations that there are, and takes minutes where only flows will do.

        Args:
            progress: whether to show a progress bar.
        """
        if "_for_events" not in self.__dict__:
            run = self._run
            proposal = event_map(
                {**run.maps, "proposal": self.proposal},
                run.rounds,
                run.largest_late,
                neural=run.neural,
                seed=run.seed,
                progress=progress,
            )
            tuned = replace(self, proposal=proposal)
            self.__dict__["_for_events"] = tuned.__dict__["_for_events"] = tuned
        return self.__dict__["_for_events"]

    def sample(self, n: int, *, seed: int = 0) -> EventSample:
        """Draw weighted events, f/q each.

        Args:
            n: how many.
            seed: of the points.
        """
        function = Evaluations(self._function, self.proposal.dims, non_finite=self._non_finite)
        points, weights = self._drawn(function, positive_integer(n, "n"), derive(check_seed(seed), "sample"))
        return EventSample(points, weights, 1.0, 0, 0.0, math.nan, function.calls)

    def unweight(
        self,
        n: int,
        *,
        strategy: MaximumWeight = "quantile",
        share: float = 1e-3,
        seed: int = 0,
        max_calls: int | None = None,
        progress: bool = False,
    ) -> EventSample:
        """Draw unweighted events.

        Where they would take more calls than the integral has taken, the proposal is first made one `for_events`.

        Args:
            n: how many.
            strategy: what counts as the largest weight, see `sbi_physics.integration.unweight`.
            share: what weights above it may have beyond it, as a share of the integral.
            seed: of the points.
            max_calls: evaluations of the integrand at most; None allows what 100 times the expected number takes.
            progress: whether to show a progress bar.

        Raises:
            BudgetError: the budget ended before n events were kept.
        """
        wanted, seed = positive_integer(n, "n"), derive(check_seed(seed), "unweight")
        source, largest, expected = self._rejection(wanted, strategy, share, seed)
        if wanted / expected > self.calls:
            source, largest, expected = self.for_events(progress=progress)._rejection(wanted, strategy, share, seed)
        budget = max_calls or math.ceil(100 * max(wanted, 1000) / expected)
        function = Evaluations(self._function, self.proposal.dims, non_finite=self._non_finite)
        kept: list[tuple[Tensor, Tensor]] = []
        count = batch = 0
        with progress_bar(wanted, "events", enabled=progress) as advance:
            while count < wanted:
                rows = min(_BATCH, math.ceil(1.1 * (wanted - count) / expected) + 100)
                if function.calls + rows > budget:
                    raise BudgetError(
                        f"unweight: {count} of {wanted} events after {function.calls} calls; the budget is {budget}"
                    )
                points, found = source._drawn(function, rows, derive(seed, batch))
                if batch == 0 and rows >= _ENOUGH:  # points that no map has learned from
                    largest = maximum_weight(found.abs(), strategy=strategy, share=share, events=wanted, seed=seed)
                kept.append(accept(points, found, largest, derive(seed, batch)))
                count, batch = count + len(kept[-1][0]), batch + 1
                advance(min(len(kept[-1][0]), wanted))
        accepted = torch.cat([weights for _, weights in kept])
        points, accepted_n = torch.cat([points for points, _ in kept])[:wanted], accepted[:wanted]
        over = (accepted_n.abs() - 1).clamp(min=0)
        return EventSample(
            points,
            accepted_n,
            len(accepted) / function.calls,
            int((over > 0).sum()),
            float(over.sum() / accepted_n.abs().sum()),
            largest,
            function.calls,
        )

    def _rejection(
        self, wanted: int, strategy: MaximumWeight, share: float, seed: int
    ) -> tuple["Estimate", float, float]:
        """This, the weight to compare points with, and the share of points that will be kept."""
        weights, chance = reweighted(self.proposal, self._run.largest_late)
        largest = maximum_weight(
            weights.abs(), strategy=strategy, share=share, events=wanted, probability=chance, seed=seed
        )
        return self, largest, float((chance * weights.abs()).sum() / chance.sum()) / largest

    def _drawn(self, function: Evaluations, n: int, seed: int) -> tuple[Tensor, Tensor]:
        parts = []
        for start in range(0, n, _BATCH):
            points, log_q = self.proposal.independent(min(_BATCH, n - start), derive(seed, start))
            parts.append((points, function(points) * torch.exp(-log_q)))
        return torch.cat([p for p, _ in parts]), torch.cat([w for _, w in parts])


def integrate(
    f: Callable[[Any], Any],
    dims: int | None = None,
    *,
    calls: int | None = None,
    rel_error: float | None = None,
    abs_error: float | None = None,
    channels: Sequence[Channel] = (),
    neural: bool = True,
    non_finite: NonFinite = "raise",
    seed: int = 0,
    max_seconds: float | None = None,
    progress: bool = True,
) -> Estimate:
    """Integrate a function over the unit hypercube, by maps that are learned from its values.

    Args:
        f: takes points ``(n, dims)`` in the open unit cube, float64, a tensor or a NumPy array; gives ``(n,)``.
        dims: number of dimensions; None asks `f.dims`.
        calls: evaluations of f at most; without an error all are used.  None allows 20 million.
        rel_error: relative error at which it is done; 0.001 where neither this, `abs_error` nor `calls` is given.
        abs_error: the same in the unit of f; the first that is reached ends it.
        channels: bijections of the cube that flatten peaks which are known, see `channels.Channel`; each gets a grid
            of its own and a share that is learned.
        neural: whether flows may be trained where grids leave many calls to be made: fewer calls, more time.
        non_finite: ``"raise"``, or ``"zero"`` to count NaN and infinity as zero, which the verdict then says.
        seed: of everything that is random.
        max_seconds: wall-clock budget, looked at between rounds.
        progress: whether to show a progress bar.

    Returns:
        Value, error, verdict, and a proposal to draw events from.

    Raises:
        UsageError: an argument has a value that it does not take.
        ShapeError, NonFiniteError, SimulationError: f gives something other than finite numbers ``(n,)``, or raises.
        ConvergenceError: f was zero at all points that were looked at.
    """
    for name, value in (("rel_error", rel_error), ("abs_error", abs_error), ("max_seconds", max_seconds)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name}: expected a positive number, got {value!r}")
    if rel_error is None and abs_error is None and calls is None:
        rel_error = _DEFAULT_ERROR
    if calls is not None and positive_integer(calls, "calls") < _FEWEST_CALLS:
        raise UsageError(f"calls: expected at least {_FEWEST_CALLS:,}, got {calls}")
    function = Evaluations(f, dims, max_calls=_DEFAULT_CALLS if calls is None else calls, non_finite=non_finite)
    for each in channels:
        if not isinstance(each, Channel) or each.dims != function.dims:
            raise UsageError(f"channels: expected maps of {function.dims} dimensions with to_x and to_v, got {each!r}")
    began = time.monotonic()
    start = channels_of(channels) if channels else None
    with progress_bar(_PARTS, "integrating", enabled=progress) as advance:
        show = _Progress(advance, function, rel_error, abs_error)
        run = Adaptation(function, rel_error, abs_error, start, neural, check_seed(seed), max_seconds, show)
        mixture = run.run()
    return _estimate(run, mixture, f, time.monotonic() - began)


class _Progress:
    """Turns rounds into a bar: the share of the work that is done, and the estimate."""

    def __init__(
        self, advance: Advance, function: Evaluations, rel_error: float | None, abs_error: float | None
    ) -> None:
        self._advance, self._function = advance, function
        self._rel_error, self._abs_error, self._done = rel_error, abs_error, 0

    def __call__(self, last: Round, found: Combination) -> None:
        wanted = _wanted(self._rel_error, self._abs_error, found.value)
        limit = self._function.max_calls or math.inf
        share = self._function.calls / limit
        if wanted is not None and found.error > 0:
            share = max(share, min(1.0, wanted / found.error) ** 2)
        parts = min(_PARTS, int(_PARTS * share))
        note = f"{last.kind}: {found.value:.6g} +- {found.error:.2g}, chi2 {found.chi2:.1f}/{found.degrees}"
        self._advance(max(0, parts - self._done), f"{note}, {self._function.calls} calls")
        self._done = max(self._done, parts)


def _wanted(rel_error: float | None, abs_error: float | None, value: float) -> float | None:
    found = [each for each in (abs_error, None if rel_error is None else rel_error * abs(value)) if each is not None]
    return max(found) if found else None


def _estimate(run: Adaptation, mixture: Mixture, f: Callable[[Any], Any], seconds: float) -> Estimate:
    found, function = run.estimate, run.function
    counted = run.counted or run.rounds[-1:]
    calls = torch.tensor([float(each.iteration.calls) for each in counted])
    weights = torch.cat([each.weights * c for each, c in zip(counted, calls / calls.sum(), strict=True)])
    if not bool((weights != 0).any()):
        raise ConvergenceError(f"integrand: it was zero at all {function.calls} points that were looked at")
    reasons = objections(
        found,
        weights,
        mixture,
        wanted=_wanted(run.rel_error, run.abs_error, found.value),
        replaced=function.replaced,
        calls=function.calls,
    )
    effective, shape = weight_tail(weights)
    return Estimate(
        found.value,
        found.error,
        function.calls,
        found.chi2,
        found.degrees,
        not reasons,
        sentence(reasons),
        effective,
        shape,
        counted[-1].efficiency,
        seconds,
        tuple(each.iteration for each in run.rounds),
        tuple(each.kind for each in run.rounds),
        mixture,
        f,
        function.non_finite,
        run,
    )
