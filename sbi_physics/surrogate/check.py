"""`check_surrogate`: how far generated events are from real ones, each number with its uncertainty.

The real events are split in two.  One half is the reference; the generated events, made at the parameters of the other
half, are compared with it, and so is that other half itself: the floor, which a perfect surrogate would reach.

There are eight tests, and each may be wrong about a perfect surrogate with an eighth of the probability `level`; within
a test the many features, bins and pairs share that again.  So all tests together flunk the simulator itself with the
probability `level` at most.  Where normal errors would be a bold assumption (response, correlations, kernel distance),
real and generated events are exchanged at random instead.

Events of weight w, which may be negative, stand for the density of which the weighted mean is the mean.  A generated
event has the weight of the real event whose parameters it was made at: then the parameters are distributed alike, and
what is left is p(x | theta).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, positive_integer, same_length
from sbi_physics.core.errors import NonFiniteError, ShapeError, SupportError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import check_seed, derive
from sbi_physics.core.voxels import VoxelGeometry
from sbi_physics.diagnostics.classifier import ClassifierTest, classifier_auc
from sbi_physics.diagnostics.correlations import correlation_difference
from sbi_physics.diagnostics.events import checked_weights, effective_number
from sbi_physics.diagnostics.histograms import jensen_shannon, separation_power
from sbi_physics.diagnostics.manifold import precision_recall_density_coverage
from sbi_physics.diagnostics.physics_distance import frechet_physics_distance, kernel_physics_distance
from sbi_physics.diagnostics.response import ResponseComparison, response_and_resolution
from sbi_physics.diagnostics.shower_features import high_level_features
from sbi_physics.diagnostics.training_rows import warn_if_trained_on
from sbi_physics.diagnostics.uniformity import checked_level
from sbi_physics.surrogate.surrogate_report import KINDS, ComparedEvents, SurrogateReport
from sbi_physics.surrogate.timing import largest_batch, time_events

__all__ = ["BATCHES", "Energy", "Features", "SurrogateReport", "check_surrogate"]

Features = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
Energy = Callable[[Tensor, Tensor], Tensor | None]
Test = TypeVar("Test")

_LEAST = 400
BATCHES = (1, 100, 10_000)
_MOST_FOR_DISTANCES = 10_000
_MOST_FEATURES = 500
_MOST_PRODUCTS = 1e11  # numbers that the exchanges of correlations may multiply
_ENERGY_BINS = 10
_FEWEST_IN_ENERGY_BIN = 100
_DISCRETE = 20


class _Events(NamedTuple):
    """Parameters ``(n, P)``, outputs ``(n, *x_shape)`` and weights ``(n,)``; no weights where all events are equal."""

    theta: Tensor
    x: Tensor
    weights: Tensor | None


class _Sets(NamedTuple):
    """Real events, generated ones at other parameters, and real ones at the parameters of the generated ones."""

    real: _Events
    generated: _Events
    paired: _Events


def check_surrogate(
    generator: Callable[..., Any],
    theta: Any,
    x: Any,
    *,
    weights: Any = None,
    features: Features | None = None,
    energy: Energy | None = None,
    geometry: VoxelGeometry | None = None,
    threshold: float = 0.0,
    simulator: Callable[..., Any] | None = None,
    classifier: Mapping[str, Any] | None = None,
    batches: Sequence[int] = BATCHES,
    level: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> SurrogateReport:
    """Compare what a generator makes with real events that it was not trained on.

    Args:
        generator: a `Surrogate`, a simulator, or any function that gives outputs ``(m, *x_shape)`` for
            ``(theta, seed=seed)``, theta ``(m, P)``: the simulator itself passes.
        theta: ``(n, P)``.
        x: ``(n, *x_shape)``, what the simulator gave there; 800 events at least.
        weights: of these events ``(n,)``, ones where None; negative ones may be among them.  Neighbours have no
            weights, so that precision, recall, density and coverage are then left out.
        features: ``features(theta, x)`` gives named numbers ``(n,)``; None takes those of showers with a geometry, and
            else the numbers of x themselves.
        energy: ``energy(theta, x)`` gives the energy seen ``(n,)``, to be compared with the first parameter, the energy
            put in; None takes the sum of all voxels with a geometry.  Where there is none, or it gives None, response
            and resolution are left out.
        geometry: the voxels of x, where x are showers.
        threshold: energy that a voxel must exceed to count as hit, with a geometry.
        simulator: what it stands in for, to be timed beside it.
        classifier: settings of `diagnostics.classifier_auc`.
        batches: rising sizes of the batches that are timed; none are where there is no size.
        level: the probability that a perfect surrogate flunks.
        seed: of the split, the generated events and the classifiers.
        progress: whether to show progress bars.

    Raises:
        ShapeError, NonFiniteError: the events do not fit one another, or there are too few.
        SupportError: by their weights the events are worth too few.
        UsageError: an argument is out of range.
    """
    check_seed(seed)
    checked_level(level)
    sizes = tuple(positive_integer(batch, "batches") for batch in batches)
    sets = _split(generator, _checked(generator, theta, x, weights), seed)
    warn_if_trained_on(generator, theta, x)
    names, columns = _columns(features or _default_features(geometry, threshold), sets)
    low, high = ([_whole(events, geometry) for events in sets], "low"), (columns, "high")
    parameters = [events.theta if geometry is None else events.theta.log10() for events in sets]
    share = level / len(KINDS)
    options: dict[str, Any] = {"progress": progress, "level": share, **(classifier or {})}

    def classify(of: tuple[Sequence[Tensor], str], other: int) -> ClassifierTest:
        return classifier_auc(
            of[0][0],
            of[0][other],
            contexts=parameters[0],
            generated_contexts=parameters[other],
            weights=sets.real.weights,
            generated_weights=sets[other].weights,
            seed=derive(seed, of[1] if other == 1 else f"{of[1]} floor"),
            **options,
        )

    tests = _Comparisons(names, columns, sets, share, seed)
    left_out: dict[str, str] = {}
    return SurrogateReport(
        events=len(sets.generated.x),
        low_level=classify(low, 1),
        low_level_floor=classify(low, 2),
        high_level=classify(high, 1),
        high_level_floor=classify(high, 2),
        separation=tests.histograms(separation_power),
        divergence=tests.histograms(jensen_shannon),
        correlations=_or_why(tests.correlations, "correlations", left_out),
        frechet=_or_why(tests.frechet, "Fréchet physics distance", left_out),
        kernel=tests.kernel(),
        manifold=_or_why(tests.manifold, "modes", left_out),
        response=_response(energy or _default_energy(geometry), tests, left_out),
        timings=tuple(time_events(generator, sets.generated.theta, batch) for batch in sizes),
        simulator_timing=None
        if simulator is None or not sizes
        else largest_batch(simulator, sets.generated.theta, sizes),
        left_out=left_out,
        level=level,
        compared=tests.compared(geometry, getattr(generator, "parameters", None)),
    )


def _checked(generator: Callable[..., Any], theta: Any, x: Any, weights: Any) -> _Events:
    theta = finite(as_tensor(theta, "theta"), "theta")
    parameters = getattr(generator, "parameters", None)
    theta = batch_of(theta, theta.shape[1:2] if parameters is None else (len(parameters),), "theta")
    if isinstance(x, Mapping):
        raise UsageError(f"x: a surrogate has one output, got several ({', '.join(x)}): take the one that it learned")
    x = finite(as_tensor(x, "x"), "x").to(torch.float32)
    same_length(theta=theta, x=x)
    if len(theta) < 2 * _LEAST:
        raise ShapeError(f"x: expected at least {2 * _LEAST} events, got {len(x)}")
    return _Events(theta, x, None if weights is None else checked_weights(weights, len(x)))


def _split(generator: Callable[..., Any], events: _Events, seed: int) -> _Sets:
    """Two halves, and events generated at the parameters of the second."""
    theta, x, weights = events
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(derive(seed, "split") % 2**63))
    half = len(order) // 2
    real, paired = (
        _Events(theta[some], x[some], None if weights is None else weights[some])
        for some in (order[:half], order[len(order) - half :])
    )
    for one in (real, paired):
        _check_worth(one.weights)
    made = generator(paired.theta, seed=derive(seed, "events"))
    if not isinstance(made, Tensor) or made.shape[1:] != x.shape[1:] or len(made) != half:
        raise ShapeError(f"x: the surrogate gives other outputs than these of shape {tuple(x.shape[1:])}")
    made = made.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(made).all()):
        raise NonFiniteError("the surrogate gave NaN or infinity; it has not learned the simulator")
    return _Sets(real, _Events(paired.theta, made, paired.weights), paired)


def _check_worth(weights: Tensor | None) -> None:
    if weights is None:
        return
    total = float(weights.sum())
    worth = effective_number(weights) if total > 0 else 0.0
    if worth < _LEAST:
        raise SupportError(
            f"weights: half of the events, {len(weights)}, are by their weights worth {worth:.0f} equal ones; expected "
            f"at least {_LEAST}"
        )


def _whole(events: _Events, geometry: VoxelGeometry | None) -> Tensor:
    """Outputs as the low-level classifier sees them ``(n, D)``: showers over their incident energy, as others as is."""
    return events.x.flatten(1) if geometry is None else events.x / events.theta[:, :1]


def _default_features(geometry: VoxelGeometry | None, threshold: float) -> Features:
    if geometry is None:
        return lambda theta, x: {f"x[{i}]": column for i, column in enumerate(x.flatten(1).unbind(1))}
    return lambda theta, x: high_level_features(x, theta[:, 0], geometry, threshold=threshold)


def _default_energy(geometry: VoxelGeometry | None) -> Energy | None:
    return None if geometry is None else lambda theta, x: x.sum(1)


def _columns(features: Features, sets: _Sets) -> tuple[tuple[str, ...], list[Tensor]]:
    """Names and float64 columns ``(n, D)`` of each set; features that are the same in all events are dropped."""
    named = [features(events.theta, events.x) for events in sets]
    if len({tuple(one) for one in named}) > 1:
        # What never varies in one set may be missing there, and not in another.
        theta, x = torch.cat([events.theta for events in sets]), torch.cat([events.x for events in sets])
        found = features(theta, x)
        named = [
            dict(zip(found, part, strict=True)) for part in zip(*(v.chunk(3) for v in found.values()), strict=True)
        ]
    every = [{name: _column(values, name) for name, values in one.items()} for one in named]
    names = [name for name, v in every[0].items() if any(bool((one[name] != v[0]).any()) for one in every)]
    if not names:
        raise ShapeError("features: expected some that vary from event to event")
    return tuple(names), [torch.stack([one[name] for name in names], 1) for one in every]


def _column(values: Any, name: str) -> Tensor:
    return finite(as_tensor(values, name, dtype=torch.float64).cpu(), f"feature {name}").reshape(-1)


class _Comparisons:
    """The tests of features: of real events with generated ones."""

    def __init__(self, names: tuple[str, ...], columns: Sequence[Tensor], sets: _Sets, level: float, seed: int) -> None:
        self.names, self.sets, self.level, self.seed = names, sets, level, seed
        self.real, self.generated = columns[0], columns[1]
        # A test by exchanges can be no surer than one of all of them.
        self.exchanges = max(199, math.ceil(1 / level) - 1)

    def _some(self, most: int) -> dict[str, Any]:
        """At most so many events."""
        weights = [None if one.weights is None else one.weights[:most] for one in self.sets[:2]]
        return {
            "real": self.real[:most],
            "generated": self.generated[:most],
            "weights": weights[0],
            "generated_weights": weights[1],
        }

    def histograms(self, measure: Callable[..., Test]) -> Test:
        some = self._some(len(self.real))
        return measure(**some, names=self.names, level=self.level, seed=derive(self.seed, "histograms"))

    def frechet(self) -> Any:
        _few(self.names, 1)
        some = self._some(_MOST_FOR_DISTANCES)
        return frechet_physics_distance(**some, scaling="maximum", level=self.level, seed=derive(self.seed, "frechet"))

    def kernel(self) -> Any:
        some = self._some(_MOST_FOR_DISTANCES)
        return kernel_physics_distance(
            **some,
            scaling="maximum",
            exchanges=self.exchanges,
            level=self.level,
            seed=derive(self.seed, "kernel"),
        )

    def manifold(self) -> Any:
        if self.sets.real.weights is not None:
            raise SupportError("neighbours of events have no weights")
        few = _MOST_FOR_DISTANCES
        return precision_recall_density_coverage(
            self.real[:few], self.generated[:few], level=self.level, seed=derive(self.seed, "manifold")
        )

    def correlations(self) -> Any:
        _few(self.names, 2)
        most = int(_MOST_PRODUCTS / (self.exchanges * len(self.names) ** 2))
        some = self._some(min(max(most, _LEAST), _MOST_FOR_DISTANCES))
        return correlation_difference(
            **some,
            names=self.names,
            exchanges=self.exchanges,
            level=self.level,
            seed=derive(self.seed, "correlations"),
        )

    def response(self, real: Tensor, generated: Tensor) -> ResponseComparison:
        weights = self.sets.paired.weights
        worth = len(real) if weights is None else int(effective_number(weights))
        return response_and_resolution(
            self.sets.paired.theta[:, 0],
            real,
            generated,
            _energy_bins(self.sets.paired.theta[:, 0].double().numpy(), worth),
            weights=weights,
            generated_weights=weights,
            exchanges=self.exchanges,
            level=self.level,
            seed=derive(self.seed, "response"),
        )

    def compared(self, geometry: VoxelGeometry | None, parameters: Parameters | None) -> ComparedEvents:
        real, generated, paired = self.sets
        n = len(real.x)
        weights = [torch.ones(n, dtype=torch.float64) if w is None else w for w in (real.weights, paired.weights)]
        share = (weights[1] / weights[1].sum()).float()
        (mean, error), (other, other_error) = (_mean_output(one.x, share) for one in (paired, generated))
        name, unit = ("theta", "") if parameters is None else (parameters.names[0], parameters.units[0])
        return ComparedEvents(
            self.names,
            self.real,
            self.generated,
            weights[0],
            weights[1],
            real_mean=mean,
            real_mean_error=error,
            generated_mean=other,
            generated_mean_error=other_error,
            geometry=geometry,
            energy_name=name,
            unit=unit,
        )


def _mean_output(x: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean of outputs ``(n, *x_shape)`` and its standard deviation; the shares ``(n,)`` sum to one."""
    mean = torch.tensordot(share, x, 1)
    variance = torch.tensordot(share.square(), x.square(), 1) - mean.square() * share.square().sum()
    return mean, variance.clamp(min=0.0).sqrt()


def _energy_bins(energy: "np.ndarray[Any, Any]", worth: int) -> Any:
    """How many bins, where each of few energies has events enough; or edges between bins of about equal shares."""
    _, counts = np.unique(energy, return_counts=True)
    if len(counts) <= _DISCRETE and counts.min() >= _FEWEST_IN_ENERGY_BIN:
        return _ENERGY_BINS
    most = max(1, min(_ENERGY_BINS, worth // _FEWEST_IN_ENERGY_BIN))
    edges = np.unique(np.quantile(energy, np.linspace(0, 1, most + 1)))
    while len(edges) > 2:
        counts = np.histogram(energy, edges)[0]
        k = int(counts.argmin())
        if counts[k] >= _FEWEST_IN_ENERGY_BIN // 2:
            break
        # Together with the next bin, or the last with the one before.
        edges = np.delete(edges, min(k + 1, len(edges) - 2))
    return edges if len(edges) > 1 else 1


def _few(names: Sequence[str], least: int) -> None:
    if not least <= len(names) <= _MOST_FEATURES:
        raise ShapeError(f"expected {least} to {_MOST_FEATURES} features, got {len(names)}")


def _response(energy: Energy | None, tests: _Comparisons, left_out: dict[str, str]) -> ResponseComparison | None:
    real, generated = (
        None if energy is None else energy(events.theta, events.x)
        for events in (tests.sets.paired, tests.sets.generated)
    )
    if real is None or generated is None:
        return None
    return _or_why(lambda: tests.response(real, generated), "response", left_out)


def _or_why(test: Callable[[], Test], name: str, left_out: dict[str, str]) -> Test | None:
    """What a test finds, or None and a sentence why it cannot be made of such events."""
    try:
        return test()
    except (ShapeError, SupportError) as error:
        left_out[name] = str(error)
        return None
