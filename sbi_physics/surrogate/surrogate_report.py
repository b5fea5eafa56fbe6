"""`SurrogateReport`: what tells a surrogate from its simulator, as a table, as a sentence and as numbers."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.voxels import VoxelGeometry
from sbi_physics.diagnostics.classifier import ClassifierTest
from sbi_physics.diagnostics.correlations import CorrelationDifference
from sbi_physics.diagnostics.histograms import HistogramDistance
from sbi_physics.diagnostics.manifold import NAMES, ManifoldShares
from sbi_physics.diagnostics.physics_distance import FrechetPhysicsDistance, KernelPhysicsDistance
from sbi_physics.diagnostics.response import ResponseComparison
from sbi_physics.surrogate.timing import Timing

__all__ = ["KINDS", "ComparedEvents", "SurrogateReport", "with_error"]

KINDS = (
    "response",
    "modes",
    "histograms",
    "correlations",
    "Fréchet physics distance",
    "kernel physics distance",
    "high-level classifier",
    "low-level classifier",
)
"""The tests; what is easier to understand comes first, where several are equally sure."""

_FURTHEST = 37.0  # sigma, where probabilities end
_COLUMNS = ("value", "error", "expected", "expected_error")
_RATIOS = ("response_ratio", "response_ratio_error", "resolution_ratio", "resolution_ratio_error")


@dataclass(frozen=True)
class ComparedEvents:
    """What pictures need of the events.

    Attributes:
        names: of D features.
        real: features of real events, ``(n, D)``.
        generated: of generated events, ``(n, D)``.
        weights: of the real events, ``(n,)``.
        generated_weights: of the generated events, ``(n,)``.
        real_mean: the mean output at the parameters of the generated events, ``x_shape``.
        real_mean_error: its standard deviation.
        generated_mean: the mean generated output.
        generated_mean_error: its standard deviation.
        geometry: the voxels of an output, where it is a shower.
        energy_name: what the first parameter is called.
        unit: of the first parameter, empty where it is not known.
    """

    names: tuple[str, ...]
    real: Tensor
    generated: Tensor
    weights: Tensor
    generated_weights: Tensor
    real_mean: Tensor
    real_mean_error: Tensor
    generated_mean: Tensor
    generated_mean_error: Tensor
    geometry: VoxelGeometry | None
    energy_name: str
    unit: str


@dataclass(frozen=True)
class SurrogateReport:
    """What tells a surrogate from its simulator.

    A test that is None was left out, and `left_out` says why.

    Attributes:
        events: in each of the sets that are compared.
        low_level: a classifier of whole outputs with their parameters.
        low_level_floor: the same for real events against real ones.
        high_level: a classifier of the features.
        high_level_floor: the same for real events against real ones.
        separation: separation power of each feature.
        divergence: Jensen-Shannon divergence of each feature.
        correlations: of the features.
        frechet: distance of the features.
        kernel: distance of the features.
        manifold: precision, recall, density and coverage of the features.
        response: response and resolution against energy; None also where there is no energy to compare.
        timings: of generated events in batches of 1, 100 and 10,000, or of other sizes that were asked for.
        simulator_timing: of the simulator, in the largest of these batches for which there was time, or None.
        left_out: a sentence for each test that could not be made.
        level: the probability that the simulator itself flunks any of the tests; each has an equal share of it.
        compared: features and mean outputs, for pictures.
    """

    events: int
    low_level: ClassifierTest
    low_level_floor: ClassifierTest
    high_level: ClassifierTest
    high_level_floor: ClassifierTest
    separation: HistogramDistance
    divergence: HistogramDistance
    correlations: CorrelationDifference | None
    frechet: FrechetPhysicsDistance | None
    kernel: KernelPhysicsDistance
    manifold: ManifoldShares | None
    response: ResponseComparison | None
    timings: tuple[Timing, ...]
    simulator_timing: Timing | None
    left_out: dict[str, str]
    level: float
    compared: ComparedEvents = field(repr=False)

    def __repr__(self) -> str:
        return f"SurrogateReport({self.verdict})"

    @property
    def seconds(self) -> dict[int, float]:
        """For each generated event, by the size of the batch."""
        return {timing.batch: timing.seconds for timing in self.timings}

    @property
    def simulator_seconds(self) -> float | None:
        """For each event of the simulator."""
        return None if self.simulator_timing is None else self.simulator_timing.seconds

    @property
    def speed_up(self) -> float | None:
        """How many events are generated, in the batch that suits best, while the simulator makes one."""
        return None if self.simulator_timing is None else self.simulator_timing.seconds / self._fastest.seconds

    @property
    def speed_up_error(self) -> float | None:
        """Its standard error, of how much the times of batches vary."""
        if self.simulator_timing is None or self.speed_up is None:
            return None
        both = self.simulator_timing, self._fastest
        return self.speed_up * math.hypot(*(timing.error / timing.seconds for timing in both))

    @property
    def verdicts(self) -> dict[str, str]:
        """One plain sentence for each test."""
        found = {name: test[2] for name, test in self._tests.items()}
        return {**found, **{name: f"left out: {why}" for name, why in self.left_out.items()}}

    @property
    def p_values(self) -> dict[str, float]:
        """For each test that the simulator itself differs as much, whatever the number of features and bins."""
        return {name: test[0] for name, test in self._tests.items()}

    @property
    def failed(self) -> tuple[str, ...]:
        """Tests that tell generated events from real ones, the surest first."""
        wrong = [name for name, p in self.p_values.items() if p <= self.level / len(KINDS)]
        return tuple(sorted(wrong, key=lambda name: -min(self._tests[name][1], _FURTHEST)))

    @property
    def passed(self) -> bool:
        """Whether no test tells generated events from real ones."""
        return not self.failed

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        rest = "".join(f"; {name} left out: {why}" for name, why in self.left_out.items())
        if self.passed:
            return (
                f"as good as the simulator at this sample size: {self.events} generated events cannot be told from as "
                f"many real ones{rest}"
            )
        first, count = self.failed[0], len(self.failed)
        others = f" ({count} of {len(self._tests)} tests: {', '.join(self.failed)})" if count > 1 else ""
        return f"generated events differ from real ones, most in {first}: {self._tests[first][2]}{others}{rest}"

    def rows(self, features: int = 40) -> list[list[str]]:
        """A table: what was measured, of generated events, and what real ones give in their place.

        Args:
            features: how many of them at most, those that differ most.
        """
        table = [
            [name, with_error(a.auc, a.error), with_error(b.auc, b.error)]
            for name, a, b in (
                ("low-level AUC", self.low_level, self.low_level_floor),
                ("high-level AUC", self.high_level, self.high_level_floor),
            )
        ]
        for name, one in (("Fréchet physics distance", self.frechet), ("kernel physics distance", self.kernel)):
            if one is not None:
                table.append([name, with_error(one.value, one.error), "0"])
        if self.manifold is not None:
            columns = [getattr(self.manifold, key).tolist() for key in _COLUMNS]
            for name, value, error, *expected in zip(NAMES, *columns, strict=True):
                table.append([name, with_error(value, error), with_error(*expected)])
        if self.response is not None:
            table.append(["response, generated / real", with_error(*self.response.energy_scale), "1"])
            table.append(["resolution, generated / real", with_error(*self.response.overall_resolution), "1"])
        if self.correlations is not None:
            first, second, found, real, error = self.correlations.worst
            table.append([f"correlation, {first} and {second}", with_error(found, error), f"{real:.3f}"])
        shown = self.worst_features[:features]
        for name, histogram in (("separation power", self.separation), ("divergence (bits)", self.divergence)):
            for i in shown:
                value, *others = (
                    float(getattr(histogram, key)[i]) for key in ("value", "error", "expected", "expected_error")
                )
                table.append([f"{name}, {histogram.names[i]}", with_error(value, others[0]), with_error(*others[1:])])
        for timing in self.timings:
            cell, beside = with_error(1e3 * timing.seconds, 1e3 * timing.error), ""
            if self.simulator_timing is not None and self.simulator_timing.batch == timing.batch:
                beside = with_error(1e3 * self.simulator_timing.seconds, 1e3 * self.simulator_timing.error)
            table.append([f"ms for each event, batch {timing.batch}", cell, beside])
        if self.speed_up is not None and self.speed_up_error is not None:
            table.append(["speed-up", with_error(self.speed_up, self.speed_up_error), "1"])
        return table

    @property
    def worst_features(self) -> list[int]:
        """The places of all features, by their p-value and then by the excess of their separation power."""
        order = sorted(
            range(len(self.separation.names)),
            key=lambda i: (float(self.separation.p_values[i]), -float(self.separation.excess[i])),
        )
        return order

    def to_dict(self) -> dict[str, Any]:
        """All numbers, in types that JSON knows."""
        tests = {
            "low_level": self.low_level,
            "low_level_floor": self.low_level_floor,
            "high_level": self.high_level,
            "high_level_floor": self.high_level_floor,
        }
        found: dict[str, Any] = {
            "passed": self.passed,
            "verdict": self.verdict,
            "verdicts": self.verdicts,
            "p_values": self.p_values,
            "failed": list(self.failed),
            "left_out": self.left_out,
            "level": self.level,
            "events": self.events,
            **{name: {"auc": test.auc, "error": test.error, "p_value": test.p_value} for name, test in tests.items()},
            "separation": _by_feature(self.separation),
            "divergence": _by_feature(self.divergence),
            "kernel": {"value": self.kernel.value, "error": self.kernel.error},
            "seconds": {str(timing.batch): timing.seconds for timing in self.timings},
            "seconds_error": {str(timing.batch): timing.error for timing in self.timings},
            "simulator_seconds": self.simulator_seconds,
            "simulator_seconds_error": None if self.simulator_timing is None else self.simulator_timing.error,
            "speed_up": self.speed_up,
            "speed_up_error": self.speed_up_error,
        }
        if self.frechet is not None:
            found["frechet"] = {"value": self.frechet.value, "error": self.frechet.error}
        if self.correlations is not None:
            first, second, generated, real, error = self.correlations.worst
            found["correlation"] = {
                "features": [first, second], "generated": generated, "real": real, "error": error
            }  # fmt: skip
        if self.manifold is not None:
            found["manifold"] = {
                name: {key: float(getattr(self.manifold, key)[i]) for key in _COLUMNS} for i, name in enumerate(NAMES)
            }
        if self.response is not None:
            found["response"] = {key: getattr(self.response, key).tolist() for key in ("edges", *_RATIOS)}
            found["energy_scale"] = dict(zip(("value", "error"), self.response.energy_scale, strict=True))
        return found

    @property
    def _fastest(self) -> Timing:
        return min(self.timings, key=lambda timing: timing.seconds)

    @property
    def _tests(self) -> dict[str, tuple[float, float, str]]:
        """The p-value of each test that was made, about how many sigma that is, and a sentence."""
        found: dict[str, tuple[float, float, str]] = {}
        if self.response is not None:
            found["response"] = self.response.p_value, self.response.sigmas, self.response.agreement
        if self.manifold is not None:
            p = min(1.0, len(NAMES) * float(self.manifold.p_values.min()))
            found["modes"] = p, _sigmas(p), self.manifold.verdict
        p = min(1.0, len(self.separation.names) * float(self.separation.p_values.min()))
        found["histograms"] = p, _sigmas(p), self.separation.verdict
        if self.correlations is not None:
            found["correlations"] = self.correlations.p_value, self.correlations.sigmas, self.correlations.verdict
        if self.frechet is not None:
            p = self.frechet.p_value
            found["Fréchet physics distance"] = p, _sigmas(p), self.frechet.verdict
        found["kernel physics distance"] = self.kernel.p_value, _sigmas(self.kernel.p_value), self.kernel.verdict
        for name, test, floor in (
            ("high-level classifier", self.high_level, self.high_level_floor),
            ("low-level classifier", self.low_level, self.low_level_floor),
        ):
            said = f"{test.verdict}; real against real: AUC {floor.auc:.3f} ± {floor.error:.3f}"
            found[name] = test.p_value, _sigmas(test.p_value), said
        return found


def with_error(value: float, error: float) -> str:
    """A value and its error, to two digits of the error."""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.3g}"
    power = math.floor(math.log10(error))
    if -5 <= power <= 3:
        digits = max(0, 1 - power)
        return f"{value:.{digits}f} ± {error:.{digits}f}"
    top = math.floor(math.log10(max(abs(value), error)))
    digits, unit = max(1, top - power + 1), 10.0**top
    return f"({value / unit:.{digits}f} ± {error / unit:.{digits}f})e{top:+d}"


def _sigmas(p_value: float) -> float:
    """How far out a standard normal number is with this probability on one side."""
    tail = torch.tensor(max(p_value, 1e-300), dtype=torch.float64)
    return float(-torch.special.ndtri(tail))


def _by_feature(histogram: HistogramDistance) -> dict[str, dict[str, float]]:
    columns = ("value", "error", "expected", "expected_error")
    return {name: {key: float(getattr(histogram, key)[i]) for key in columns} for i, name in enumerate(histogram.names)}
