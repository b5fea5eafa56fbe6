"""`check_surrogate`: how far generated events are from real ones, each number with its uncertainty.

The real events are split in two.  One half is the reference; the generated events, made at the parameters of the other
half, are compared with it, and so is that other half itself: the floor, which a perfect surrogate would reach.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, same_length
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.protocols import Simulator
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.classifier import ClassifierTest, classifier_auc
from sbi_physics.diagnostics.histograms import HistogramDistance, jensen_shannon, separation_power
from sbi_physics.diagnostics.manifold import ManifoldShares, precision_recall_density_coverage
from sbi_physics.diagnostics.physics_distance import (
    FrechetPhysicsDistance,
    KernelPhysicsDistance,
    frechet_physics_distance,
    kernel_physics_distance,
)
from sbi_physics.diagnostics.response import ResponseComparison, response_and_resolution

__all__ = ["Energy", "Features", "SurrogateReport", "check_surrogate"]

Features = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
Energy = Callable[[Tensor, Tensor], Tensor | None]

_LEAST = 400
_BATCHES = (1, 100, 10_000)
_MOST_FOR_DISTANCES = 10_000
_TIMING_SECONDS = 1.0
_MOST_REPEATS = 20


@dataclass(frozen=True)
class SurrogateReport:
    """What tells a surrogate from its simulator.

    Attributes:
        events: in each of the sets that are compared.
        low_level: a classifier of whole outputs with their parameters.
        low_level_floor: the same for real events against real ones.
        high_level: a classifier of the features.
        high_level_floor: the same for real events against real ones.
        separation: separation power of each feature.
        divergence: Jensen-Shannon divergence of each feature.
        frechet: distance of the features.
        kernel: distance of the features.
        manifold: precision, recall, density and coverage of the features.
        response: response and resolution against energy; None where there is no energy to compare.
        seconds: for each event in batches of 1, 100 and 10,000.
        simulator_seconds: for each event of the simulator, in a batch of 10,000 or fewer; None where there is none.
    """

    events: int
    low_level: ClassifierTest
    low_level_floor: ClassifierTest
    high_level: ClassifierTest
    high_level_floor: ClassifierTest
    separation: HistogramDistance
    divergence: HistogramDistance
    frechet: FrechetPhysicsDistance
    kernel: KernelPhysicsDistance
    manifold: ManifoldShares
    response: ResponseComparison | None
    seconds: dict[int, float]
    simulator_seconds: float | None

    @property
    def speed_up(self) -> float | None:
        """Events per second at the largest batch over those of the simulator."""
        return None if self.simulator_seconds is None else self.simulator_seconds / min(self.seconds.values())

    @property
    def verdicts(self) -> dict[str, str]:
        """One plain sentence for each measurement."""
        found = {
            "low-level classifier": _beside(self.low_level, self.low_level_floor),
            "high-level classifier": _beside(self.high_level, self.high_level_floor),
            "histograms": self.separation.verdict,
            "divergence": self.divergence.verdict,
            "Fréchet physics distance": self.frechet.verdict,
            "kernel physics distance": self.kernel.verdict,
            "modes": self.manifold.verdict,
        }
        return found if self.response is None else {**found, "response": self.response.verdict}

    @property
    def passed(self) -> bool:
        """Whether no measurement tells generated events from real ones."""
        return all(self._passed.values())

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        if self.passed:
            return f"{self.events} generated events cannot be told from as many real ones"
        named = ", ".join(name for name, passed in self._passed.items() if not passed)
        return f"generated events differ from real ones: {named}"

    def rows(self) -> list[list[str]]:
        """A table: what was measured, of generated events, and what real ones give in their place."""
        both = (
            ("low-level AUC", self.low_level, self.low_level_floor),
            ("high-level AUC", self.high_level, self.high_level_floor),
        )
        table = [[name, _with_error(a.auc, a.error), _with_error(b.auc, b.error)] for name, a, b in both]
        for name, histogram in (("separation power", self.separation), ("divergence (bits)", self.divergence)):
            for i, feature in enumerate(histogram.names):
                value = _with_error(float(histogram.value[i]), float(histogram.error[i]))
                table.append([f"{name}, {feature}", value, f"{float(histogram.expected[i]):.2g}"])
        table.append(["Fréchet physics distance", _with_error(self.frechet.value, self.frechet.error), "0"])
        table.append(["kernel physics distance", _with_error(self.kernel.value, self.kernel.error), "0"])
        for i, name in enumerate(("precision", "recall", "density", "coverage")):
            value = _with_error(float(self.manifold.value[i]), float(self.manifold.error[i]))
            expected = _with_error(float(self.manifold.expected[i]), float(self.manifold.expected_error[i]))
            table.append([name, value, expected])
        for batch, seconds in self.seconds.items():
            table.append([f"ms for each event, batch {batch}", f"{1e3 * seconds:.3g}", ""])
        if self.simulator_seconds is not None:
            table.append(["speed-up", f"{self.speed_up:.3g}", f"{1e3 * self.simulator_seconds:.3g} ms"])
        return table

    def to_dict(self) -> dict[str, Any]:
        """All numbers, in types that JSON knows."""
        tests = {
            "low_level": self.low_level,
            "low_level_floor": self.low_level_floor,
            "high_level": self.high_level,
            "high_level_floor": self.high_level_floor,
        }
        names = ("precision", "recall", "density", "coverage")
        found: dict[str, Any] = {
            "passed": self.passed,
            "verdict": self.verdict,
            "verdicts": self.verdicts,
            "events": self.events,
            **{name: {"auc": test.auc, "error": test.error, "p_value": test.p_value} for name, test in tests.items()},
            "separation": _by_feature(self.separation),
            "divergence": _by_feature(self.divergence),
            "frechet": {"value": self.frechet.value, "error": self.frechet.error},
            "kernel": {"value": self.kernel.value, "error": self.kernel.error},
            "manifold": {
                name: {"value": float(v), "error": float(e), "expected": float(x)}
                for name, v, e, x in zip(
                    names, self.manifold.value, self.manifold.error, self.manifold.expected, strict=True
                )
            },
            "seconds": {str(batch): seconds for batch, seconds in self.seconds.items()},
            "simulator_seconds": self.simulator_seconds,
            "speed_up": self.speed_up,
        }
        if self.response is not None:
            found["response"] = {
                key: getattr(self.response, key).tolist()
                for key in (
                    "edges",
                    "response_ratio",
                    "response_ratio_error",
                    "resolution_ratio",
                    "resolution_ratio_error",
                )
            }
        return found

    @property
    def _passed(self) -> dict[str, bool]:
        """Whether there is no difference, however small, by each kind of measurement."""
        return {
            "low-level classifier": self.low_level.passed,
            "high-level classifier": self.high_level.passed,
            "histograms": self.separation.passed and self.divergence.passed,
            "distances": self.frechet.passed and self.kernel.passed,
            "modes": self.manifold.passed,
            "response": self.response is None or self.response.passed(0.0, 0.0),
        }


def check_surrogate(
    surrogate: Simulator,
    theta: Any,
    x: Any,
    *,
    features: Features | None = None,
    energy: Energy | None = None,
    simulator: Simulator | None = None,
    classifier: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SurrogateReport:
    """Compare what a surrogate generates with real events that it was not trained on.

    Args:
        surrogate: a `Surrogate`, or any simulator: the simulator itself passes.
        theta: ``(n, P)``.
        x: ``(n, *x_shape)``, what the simulator gave there.
        features: ``features(theta, x)`` gives named numbers ``(n,)``; None takes the numbers of x themselves.
        energy: ``energy(theta, x)`` gives the energy seen ``(n,)``, to be compared with theta, the energy put in; where
            it is None, or gives None, response and resolution are left out.
        simulator: what it stands in for, to be timed beside it.
        classifier: settings of `diagnostics.classifier_auc`.
        seed: of the split, the generated events and the classifiers.
        progress: whether to show progress bars.

    Raises:
        ShapeError, NonFiniteError: the events do not fit one another, or there are too few.
    """
    theta = batch_of(finite(as_tensor(theta, "theta"), "theta"), (len(surrogate.parameters),), "theta")
    x = finite(as_tensor(x, "x"), "x").to(torch.float32)
    same_length(theta=theta, x=x)
    if len(theta) < 2 * _LEAST:
        raise ShapeError(f"x: expected at least {2 * _LEAST} events, got {len(x)}")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(derive(seed, "split") % 2**63))
    first, second = order.chunk(2)[0], order[len(order) - len(order) // 2 :]
    first = first[: len(second)]
    generated = surrogate(theta[second], seed=derive(seed, "events"))
    if not isinstance(generated, Tensor) or generated.shape[1:] != x.shape[1:]:
        raise ShapeError(f"x: the surrogate gives other outputs than these of shape {tuple(x.shape[1:])}")
    sets = [(theta[first], x[first]), (theta[second], generated.cpu()), (theta[second], x[second])]
    named = [_named(features, *one) for one in sets]
    names = list(named[0])
    columns = [torch.stack([one[name].double() for name in names], 1) for one in named]
    options: dict[str, Any] = {"progress": progress, **(classifier or {})}
    few = [one[:_MOST_FOR_DISTANCES] for one in columns]

    def classify(kind: str, of: Sequence[Tensor], other: int) -> ClassifierTest:
        given = {"contexts": sets[0][0], "generated_contexts": sets[other][0]}
        return classifier_auc(of[0], of[other], **given, seed=derive(seed, kind), **options)

    whole = [values.flatten(1) for _, values in sets]
    return SurrogateReport(
        events=len(second),
        low_level=classify("low", whole, 1),
        low_level_floor=classify("low floor", whole, 2),
        high_level=classify("high", columns, 1),
        high_level_floor=classify("high floor", columns, 2),
        separation=separation_power(columns[0], columns[1], names=names, seed=derive(seed, "histograms")),
        divergence=jensen_shannon(columns[0], columns[1], names=names, seed=derive(seed, "histograms")),
        frechet=frechet_physics_distance(few[0], few[1], seed=derive(seed, "frechet")),
        kernel=kernel_physics_distance(few[0], few[1], seed=derive(seed, "kernel")),
        manifold=precision_recall_density_coverage(few[0], few[1], seed=derive(seed, "manifold")),
        response=_response(energy, sets),
        seconds={batch: _seconds(surrogate, theta, batch) for batch in _BATCHES},
        simulator_seconds=None if simulator is None else _seconds(simulator, theta, _BATCHES[-1]),
    )


def _named(features: Features | None, theta: Tensor, x: Tensor) -> dict[str, Tensor]:
    if features is not None:
        return {name: values.reshape(len(x)) for name, values in features(theta, x).items()}
    return {f"x[{i}]": column for i, column in enumerate(x.flatten(1).unbind(1)) if bool((column != column[0]).any())}


def _response(energy: Energy | None, sets: Sequence[tuple[Tensor, Tensor]]) -> ResponseComparison | None:
    real, generated = (None if energy is None else energy(*sets[i]) for i in (2, 1))
    if real is None or generated is None:
        return None
    return response_and_resolution(sets[1][0][:, 0], real, generated)


def _beside(test: ClassifierTest, floor: ClassifierTest) -> str:
    return f"{test.verdict}; real against real: AUC {floor.auc:.3f} ± {floor.error:.3f}"


def _with_error(value: float, error: float) -> str:
    return f"{value:.4g} ± {error:.1g}"


def _by_feature(histogram: HistogramDistance) -> dict[str, dict[str, float]]:
    return {
        name: {"value": float(value), "error": float(error), "expected": float(expected)}
        for name, value, error, expected in zip(
            histogram.names, histogram.value, histogram.error, histogram.expected, strict=True
        )
    }


def _seconds(simulator: Simulator, theta: Tensor, batch: int) -> float:
    """Seconds for each event in batches of a size; the first, which may load or compile something, does not count."""
    rows = theta.repeat(-(-batch // len(theta)), 1)[:batch]
    simulator(rows, seed=0)
    began, repeats = time.monotonic(), 0
    while repeats < _MOST_REPEATS and (repeats == 0 or time.monotonic() - began < _TIMING_SECONDS):
        repeats += 1
        simulator(rows, seed=repeats)
    return (time.monotonic() - began) / (repeats * batch)
