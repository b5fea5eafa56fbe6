r"""Confidence sets that cover whatever the truth is: Neyman's construction, learned.

A test statistic t(theta, x) is large where theta disagrees with x (`posterior.statistics`).  With its distribution at
each theta, the p-value and the confidence set of a level are

$$ p(\theta; x) = P\big(t(\theta, X) \ge t(\theta, x) \,\big|\, \theta\big), \qquad
\{\theta : p(\theta; x) > 1 - level\}, $$

and the set holds the true theta with probability `level`, without a prior and without a large-sample limit (Neyman
1937; likelihood-free: Dalmasso et al. 2021, arXiv:2107.03920; Masserano et al. 2023, arXiv:2205.15680).  The
distribution is learned over the whole parameter space at once, from fresh simulations with theta from any proposal that
covers it, as one conditional density (`models.scalar`), so that all levels come from one fit and none cross.  All
simulations teach it; none is kept back for a calibration of the calibration, which costs more coverage than it gives
(it was tried).  What is left is for `coverage` to measure, with simulations that nothing was learned from.

Nuisance parameters: a value of the parameters of interest is in the set if it is for *some* value of the others, that
is, its p-value is the largest over those.  That covers at least as often as the level says, and more often where the
statistic moves with the nuisance parameters; one of the parameters of interest alone keeps the excess small.

With few counts, x and the statistic take few values, and coverage can be no smoother than they are.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, positive_integer, resolve_device, same_length
from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.core.samples import Cost, Samples
from sbi_physics.diagnostics.coverage_fit import LocalCoverage, local_coverage
from sbi_physics.models.scalar import ScalarDistribution
from sbi_physics.posterior.maximum import FreeCoordinates
from sbi_physics.posterior.observation import read_observation
from sbi_physics.posterior.posterior import Posterior
from sbi_physics.posterior.statistics import NaturalStatistic, Statistic
from sbi_physics.store.models import write_model
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train
from sbi_physics.train.pairs import training_pairs

__all__ = ["ConfidenceRegion", "ConfidenceSets", "NeymanConstruction"]

_STEPS = 1500
_EPOCHS = (8, 60)
_REGION_ROUNDS = 4
_MARGIN = 0.25
_NUISANCE_ROUNDS = 4
_SHRINK = 0.5


class ConfidenceSets:
    """Neyman's construction with a test statistic of your choice.

    Args:
        statistic: ``(theta (n, P), x (n, *x_shape))`` to ``(n,)``, large where theta disagrees with x: one of
            `posterior.statistics`, or any function; or a posterior, whose density or likelihood ratio is taken.
        parameters: `Parameters`, or any torch distribution over P numbers: names and bounds; the prior plays no part in
            the coverage.  None for those of the posterior.
        device: of the training, ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        config: settings of the training loop; epochs for about 1,500 steps where None.
    """

    def __init__(
        self,
        statistic: Statistic | Posterior,
        parameters: Any = None,
        *,
        device: str | torch.device = "auto",
        config: TrainConfig | None = None,
    ) -> None:
        if isinstance(statistic, Posterior):
            parameters = statistic.parameters if parameters is None else parameters
            statistic = NaturalStatistic(statistic)
        if not callable(statistic):
            raise UsageError(
                f"statistic: expected a posterior, or a function of theta and x, got {type(statistic).__name__}"
            )
        self.statistic, self.parameters = statistic, Parameters.from_prior(parameters)
        self.device, self.config = resolve_device(device), config

    def fit(self, theta_or_store: Any, x: Any = None, *, seed: int = 0, progress: bool = True) -> "NeymanConstruction":
        """Learn the distribution of the statistic at each theta.

        Args:
            theta_or_store: theta ``(N, P)``, a `Simulations` object or the path of its file: simulations that the
                statistic was not trained on, with theta from any distribution that covers the parameter space well (a
                uniform one, rather than a narrow prior); near its edge there is less to learn from.
            x: ``(N, *x_shape)`` simulated at each theta; None with a store.
            seed: of the training.
            progress: whether to show a progress bar.

        Raises:
            ShapeError, NonFiniteError, SupportError, SimulationError, StoreError, UsageError: the data do not fit.
            TrainingError: the loss is not finite.
        """
        began = time.monotonic()
        pairs = training_pairs(self.parameters, theta_or_store, x)
        values = _checked(self.statistic, pairs.theta, pairs.x)
        if not bool((values != values[0]).any()):
            raise UsageError("statistic: expected one that varies, got the same number for all simulations")
        with seeded(derive(check_seed(seed), "weights")):
            model = ScalarDistribution(self.parameters.bounds, len(values))
            scores = model.fit_scaling(pairs.theta, values).training_scores(values)
        model.to(self.device)
        record = train(
            model,
            model.loss,
            [scores.to(self.device), model.encode(pairs.theta.to(self.device)).detach()],
            config=self.config or _config(len(values)),
            seed=derive(seed, "train"),
            progress=progress,
            description="training the p-value",
        )
        provenance = {"simulations": len(values), "seed": seed, "training": record.to_dict()}
        seconds = time.monotonic() - began
        shape = tuple(pairs.x.shape[1:])
        return NeymanConstruction(self.statistic, self.parameters, model, shape, seconds, provenance)


@dataclass(frozen=True)
class ConfidenceRegion:
    """A confidence set of one observation, as the points that are in it.

    Attributes:
        points: the points that are in the set, equally weighted: they fill it and are no draws of a distribution.
        p_values: of those points, ``(m,)``.
        level: of the set.
        tried: how many points were tried.
        intervals: ``(P, 2)`` smallest and largest value of each parameter in the set.
    """

    points: Samples
    p_values: Tensor
    level: float
    tried: int
    intervals: Tensor

    def select(self, names: str | Sequence[str]) -> "ConfidenceRegion":
        """The projection onto some parameters: all values that are in the set with some value of the others.

        It covers those parameters at least as often as the level says.
        """
        points = self.points.select(names)
        columns = [self.points.names.index(name) for name in points.names]
        return replace(self, points=points, intervals=self.intervals[columns])

    @property
    def verdict(self) -> str:
        """One plain sentence: the interval of each parameter."""
        if not len(self.p_values):
            return f"the {self.level:.0%} confidence set is empty at {self.tried} points: no theta agrees with x"
        parts = [
            f"{name} in [{low:.4g}, {high:.4g}]{f' {unit}' if unit else ''}"
            for name, unit, (low, high) in zip(
                self.points.names, self.points.units, self.intervals.tolist(), strict=True
            )
        ]
        return f"{self.level:.0%} confidence: {', '.join(parts)} ({len(self.p_values)} of {self.tried} points)"


@dataclass(frozen=True, repr=False)
class NeymanConstruction:
    """Confidence sets of any level for any observation.

    Attributes:
        statistic: the test statistic.
        parameters: names, units, bounds and prior.
        model: the distribution of the statistic at each theta.
        x_shape: the shape of one observation.
        seconds: that the fit took.
        provenance: what it was trained on and how training went.
    """

    statistic: Statistic
    parameters: Parameters
    model: ScalarDistribution
    x_shape: tuple[int, ...]
    seconds: float
    provenance: dict[str, Any]

    KIND: ClassVar[str] = "confidence"

    def __repr__(self) -> str:
        return f"NeymanConstruction({self.parameters}: trained on {self.provenance['simulations']:,} simulations)"

    def save(self, path: str | Path) -> None:
        """Write it to a safetensors file; `sp.load` reads it back.

        The posterior whose statistic it is goes with it; a function of your own has to be handed in again,
        ``sp.load(path, statistic=function)``.

        Raises:
            StoreError: the file cannot be written.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        posterior = None
        if isinstance(self.statistic, NaturalStatistic):
            inner, posterior = self.statistic.posterior.parts()
            tensors |= {f"posterior.{name}": tensor for name, tensor in inner.items()}
        header = {
            "kind": self.KIND,
            "parameters": self.parameters.to_dict(),
            "posterior": posterior,
            "x_shape": list(self.x_shape),
            "size": len(self.model.ranked),
            "seconds": self.seconds,
            "provenance": self.provenance,
        }
        write_model(path, tensors, header)

    def p_value(self, theta: Any, x_obs: Any) -> Tensor:
        """Probability, if theta is true, of data that disagree with it at least as much as x_obs: float64 ``(n,)``.

        Args:
            theta: ``(n, P)``, or ``(P,)``, inside the bounds.
            x_obs: one observation for all, ``x_shape`` or ``(1, *x_shape)``; or ``(n, *x_shape)``, one for each theta.

        Raises:
            ShapeError, NonFiniteError, SupportError: the arrays do not fit, or a theta is outside the bounds.
        """
        at, x = self._rows(theta, x_obs)
        value = 1 - self.model.cumulative(_checked(self.statistic, at, x), at)
        return value.cpu() if as_tensor(theta, "theta").ndim > 1 else value.cpu()[0]

    def contains(self, theta: Any, x_obs: Any, level: float = 0.68) -> Tensor:
        """Whether the confidence set of x_obs holds theta; the arguments are those of `p_value`."""
        return self.p_value(theta, x_obs) > 1 - _probability(level)

    def critical_value(self, theta: Any, level: float = 0.68) -> Tensor:
        """What the statistic has to exceed for theta ``(n, P)`` to be outside the set of this level: ``(n,)``."""
        at = self._theta(theta)
        return self.model.quantile(_probability(level), at).cpu()

    def region(
        self, x_obs: Any, level: float = 0.68, *, grid: Any = None, n: int = 4000, seed: int = 0
    ) -> ConfidenceRegion:
        """The confidence set of one observation.

        Without a grid, points of the prior are tried first, and then, in rounds, points spread evenly over the box
        around those that are in the set, or nearest to it, so that a small set is filled too.  None lies beyond the
        parameters of the simulations that the p-value was learned from; a set that goes on there ends on their edge.

        Args:
            x_obs: ``x_shape``.
            level: of the set.
            grid: points ``(m, P)`` to try.
            n: points to try in each round.
            seed: of the points.

        Raises:
            ShapeError, NonFiniteError, SupportError: x_obs or the grid do not fit.
        """
        began = time.monotonic()
        _probability(level)
        if grid is not None:
            points = self._theta(grid)
            p_values = self.p_value(points, x_obs)
        else:
            points, p_values = self._search(x_obs, level, positive_integer(n, "n"), check_seed(seed))
        inside = p_values > 1 - level
        kept = points[inside]
        empty = kept.new_full((len(self.parameters), 2), torch.nan)
        intervals = torch.stack([kept.amin(0), kept.amax(0)], -1) if len(kept) else empty
        samples = Samples.of(kept, self.parameters, cost=Cost(time.monotonic() - began))
        return ConfidenceRegion(samples, p_values[inside], level, len(points), intervals)

    def interest_p_value(
        self, values: Any, x_obs: Any, interest: str | Sequence[str], *, n: int = 256, seed: int = 0
    ) -> Tensor:
        """The largest p-value over the nuisance parameters, at values of the parameters of interest: ``(m,)``.

        Searched among n draws of the prior, and then, in rounds, around the best of each: with many nuisance parameters
        give it more.

        Args:
            values: ``(m, k)``, or ``(m,)`` for one parameter of interest.
            x_obs: one observation.
            interest: k names.
            n: nuisance values that are tried in each round.
            seed: of those.

        Raises:
            UsageError: a name is not known.
            ShapeError, NonFiniteError, SupportError: the arrays do not fit, or a value is outside the bounds.
        """
        names = [interest] if isinstance(interest, str) else list(interest)
        columns = [self.parameters.index(name) for name in names]
        held = finite(as_tensor(values, "values", dtype=torch.float64), "values")
        held = held.unsqueeze(1) if held.ndim == 1 and len(names) == 1 else held
        batch_of(held, (len(names),), "values")
        coordinates = FreeCoordinates(self.parameters, columns, derive(check_seed(seed), "scale"))
        best = torch.full((len(held),), -1.0, dtype=torch.float64)
        centre, width = torch.zeros(len(held), coordinates.dims, dtype=torch.float64), 1.0
        each = held.repeat_interleave(n, 0)
        for i in range(_NUISANCE_ROUNDS if coordinates.dims else 1):
            if i == 0:
                w = coordinates.draws(n, derive(seed, "nuisance")).expand(len(held), n, -1)
            else:
                with seeded(derive(seed, "round", i)):
                    w = centre.unsqueeze(1) + width * torch.randn(len(held), n, coordinates.dims).double()
                width *= _SHRINK
            found = self.p_value(coordinates.theta(w.reshape(len(each), -1), each), x_obs).view(len(held), n)
            top, which = found.max(1)
            better = top > best
            best = torch.where(better, top, best)
            centre = torch.where(better.unsqueeze(1), w[torch.arange(len(held)), which], centre)
        return best

    def coverage(
        self, theta: Any, x: Any, *, levels: Sequence[float] = (0.68, 0.9), level: float = 0.01
    ) -> LocalCoverage:
        """Measure how often the sets hold the truth, over the parameter space, on simulations that are new to all.

        Args:
            theta: ``(n, P)`` from any distribution over the parameter space.
            x: ``(n, *x_shape)`` simulated at each.
            levels: of the sets.
            level: the probability that sets which cover flunk, over all levels together.
        """
        p_values = self.p_value(theta, x)
        return local_coverage(1 - p_values, theta, self.parameters.names, levels=levels, level=level)

    def _search(self, x_obs: Any, level: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
        low, high = self.model.known.cpu().unbind(-1)
        points = self.parameters.sample(n, seed=derive(seed, "points"))
        # Beyond the simulations that the p-value was learned from nothing is known.
        points = torch.maximum(torch.minimum(points, high), low)
        p_values = self.p_value(points, x_obs)
        for i in range(_REGION_ROUNDS):
            inside = p_values > 1 - level
            # While few are in the set, those that come nearest say where it is.
            best = inside if int(inside.sum()) >= n // 100 + 2 else p_values >= p_values.topk(n // 100 + 2).values[-1]
            lower, upper = points[best].amin(0), points[best].amax(0)
            margin = _MARGIN * (upper - lower)
            lower, upper = torch.maximum(lower - margin, low), torch.minimum(upper + margin, high)
            with seeded(derive(seed, "box", i)):
                spread = torch.rand(n, len(lower))
            tried = self.parameters.bijection.strictly_inside(lower + spread * (upper - lower))
            points = torch.cat([points, tried])
            p_values = torch.cat([p_values, self.p_value(tried, x_obs)])
        return points, p_values

    def _theta(self, theta: Any) -> Tensor:
        rows = finite(as_tensor(theta, "theta"), "theta")
        self.parameters.check_width(rows)
        rows = rows.unsqueeze(0) if rows.ndim == 1 else rows
        batch_of(rows, (len(self.parameters),), "theta")
        return self.parameters.check_within(rows)

    def _rows(self, theta: Any, x_obs: Any) -> tuple[Tensor, Tensor]:
        at = self._theta(theta)
        x = read_observation(x_obs, self.x_shape, iid=False, device=at.device).x
        if len(x) == 1:
            return at, x.expand(len(at), *self.x_shape)
        same_length(theta=at, x_obs=x)
        return at, x


def _config(size: int) -> TrainConfig:
    """Few events take many epochs, many take few."""
    batch = TrainConfig().batch_for(size)
    return TrainConfig(epochs=max(_EPOCHS[0], min(_EPOCHS[1], round(_STEPS * batch / size))))


def _checked(statistic: Statistic, theta: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        value = statistic(theta, x)
    if not isinstance(value, Tensor) or value.shape != theta.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(f"statistic: expected shape ({len(theta)},), got {got}")
    value = value.double().cpu()
    # Plus infinity is honest (theta is impossible given x) and is ranked above all numbers.
    bad = torch.isnan(value) | (value == -torch.inf)
    if bool(bad.any()):
        row = int(torch.nonzero(bad)[0, 0])
        raise NonFiniteError(
            f"statistic: expected numbers or plus infinity, got {float(value[row])} at theta = {theta[row].tolist()}"
        )
    return value


def _probability(level: float) -> float:
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability in (0, 1), got {level!r}")
    return float(level)
