r"""What is left after cuts on a score, and how improbable that is without a resonance.

After a cut the background b in the signal region is estimated twice:

- ``fit``: a falling function, fitted to the masses beside the region of the events that pass the same cut;
- ``template``: the background before the cut, by a fit of the masses beside the region, times the share of the template
  that passes, times what corrects that share in the control region, (passing data) / (passing template) there.

The probability of the observed number or more, with the uncertainty of b integrated over (`counting`), is the local
p-value of a cut.  Several cuts are several chances, but the events of one are among those of the next:
pseudo-experiments draw the events between two cuts independently, around the estimates, and estimates anew with the
uncertainties that the fits state.  The global p-value is the share of them in which the smallest local p-value is as
small as the observed one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbi_physics.anomaly.binning import count_events
from sbi_physics.anomaly.counting import discovery_p_value, significance_of
from sbi_physics.anomaly.events import Events, SignalRegion
from sbi_physics.anomaly.limits import UpperLimit, upper_limit
from sbi_physics.anomaly.mass import MassModel
from sbi_physics.anomaly.sculpting import Sculpting, mass_sculpting
from sbi_physics.anomaly.spectrum import SpectrumFit, fit_spectrum
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import derive, numpy_generator

__all__ = ["Estimate", "SearchResult", "Selections", "WorkingPoint", "evaluate_search"]

Array = NDArray[np.float64]
_ORDERS_AFTER = (2, 3)
_FEWEST_FOR_A_FIT = 12
_SMALLEST_BACKGROUND = 1e-3
_SURE = 5.0
"""Standard deviations by which a cut that keeps too much is told."""


@dataclass(frozen=True)
class Estimate:
    """A background after a cut, and what it makes of the observed number.

    Attributes:
        background: expected events.
        uncertainty: its standard deviation.
        p_value: the probability of at least the observed number, local.
    """

    background: float
    uncertainty: float
    p_value: float

    @property
    def significance(self) -> float:
        """The p-value in standard deviations, one-sided."""
        return float(significance_of(self.p_value))


@dataclass(frozen=True, eq=False)
class WorkingPoint:
    """The events that pass a cut.

    Attributes:
        efficiency: share of the background that passes.
        threshold: smallest score that passes.
        observed: events in the signal region, or the sum of their weights.
        fit: the background by the fit beside the region.
        template: the background by the template.
        counts: of all bins of mass, ``(B,)``.
        spectrum: the fit; None where too few events pass for one, and the shape before the cut is taken.
        sculpting: whether the cut changes the spectrum of the control region.
    """

    efficiency: float
    threshold: float
    observed: float
    fit: Estimate
    template: Estimate
    counts: Array
    spectrum: SpectrumFit | None
    sculpting: Sculpting


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The result of a search.

    Attributes:
        region: the signal region.
        edges: of the bins of mass, ``(B + 1,)``.
        counts: of all events ``(B,)``.
        spectrum: the fit beside the region before any cut.
        before: the observed number in the region without a cut and its background.
        points: by efficiency, the largest first.
        global_p_value: of the smallest local p-value of the fits at all cuts.
        global_p_error: its standard deviation, for the finite number of pseudo-experiments.
        toys: those.
        scale: events that a count is worth: 1 without weights.
    """

    region: SignalRegion
    edges: Array
    counts: Array
    spectrum: SpectrumFit
    before: tuple[float, Estimate]
    points: tuple[WorkingPoint, ...]
    global_p_value: float
    global_p_error: float
    toys: int
    scale: float

    @property
    def best(self) -> WorkingPoint:
        """The cut with the smallest local p-value."""
        return min(self.points, key=lambda point: point.fit.p_value)

    @property
    def beyond_toys(self) -> bool:
        """Whether no pseudo-experiment was as extreme: the global p-value is then less than can be told."""
        return self.global_p_value == 0

    @property
    def significance(self) -> float:
        """The global p-value in standard deviations; where no pseudo-experiment was as extreme, a lower bound."""
        return float(significance_of(max(self.global_p_value, 1 / (self.toys + 1))))

    def upper_limits(self, *, level: float = 0.95, signal_efficiencies: Sequence[float] | None = None) -> UpperLimit:
        """Upper limits on the number of signal events, for each cut.

        Args:
            level: of confidence.
            signal_efficiencies: the share of a signal that passes each cut; None limits what is left after it.
        """
        n, b, error = (self.scale * np.array(column) for column in zip(*self._fits(), strict=True))
        shares = 1.0 if signal_efficiencies is None else np.asarray(signal_efficiencies, dtype=np.float64)
        limit = upper_limit(np.rint(n), b, error, level=level, efficiency=shares)
        return UpperLimit(limit.observed / self.scale, limit.expected / self.scale, level)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, in types that JSON knows."""
        n, estimate = self.before
        return {
            "signal_region": [self.region.low, self.region.high],
            "observed": n,
            "background": estimate.background,
            "background_uncertainty": estimate.uncertainty,
            "points": [_described(point) for point in self.points],
            "best_efficiency": self.best.efficiency,
            "local_p_value": self.best.fit.p_value,
            "local_significance": self.best.fit.significance,
            "global_p_value": self.global_p_value,
            "global_p_error": self.global_p_error,
            "global_significance": self.significance,
            "toys": self.toys,
        }

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        best = self.best
        bound = "more than " if self.beyond_toys else ""
        return (
            f"{best.observed:.0f} events pass the cut of {best.efficiency:.2g} where {best.fit.background:.1f} ± "
            f"{best.fit.uncertainty:.1f} are expected: {best.fit.significance:.1f} standard deviations locally, "
            f"{bound}{self.significance:.1f} for the search"
        )

    @property
    def loose(self) -> tuple[WorkingPoint, ...]:
        """Cuts that keep more than twice the background that they are to keep: the scores of many events are equal."""
        total = self.before[1].background

        def excess(point: WorkingPoint) -> float:
            return point.fit.background - 2 * point.efficiency * total

        return tuple(point for point in self.points if excess(point) > _SURE * point.fit.uncertainty)

    def __str__(self) -> str:
        lines = [f"{'background kept':>15} {'observed':>9} {'by fit':>17} {'by template':>17} {'local sigma':>11}"]
        for point in self.points:
            estimates = [f"{e.background:.1f} ± {e.uncertainty:.1f}" for e in (point.fit, point.template)]
            lines.append(
                f"{point.efficiency:>15.2%} {point.observed:>9.0f} {estimates[0]:>17} {estimates[1]:>17} "
                f"{point.fit.significance:>11.2f}"
            )
        if self.loose:
            point = self.loose[-1]
            share = point.fit.background / self.before[1].background
            lines.append(
                f"the cut of {point.efficiency:.2g} keeps {share:.2g} of the background: many events have equal "
                "scores, as their features have few values, or the template differs from the data everywhere"
            )
        return "\n".join([*lines, self.verdict])

    def _fits(self) -> list[tuple[float, float, float]]:
        return [(point.observed, point.fit.background, point.fit.uncertainty) for point in self.points]


class Selections(NamedTuple):
    """Scores by which events are cut, each by models that have not seen it.

    Attributes:
        signal: of the events of the signal region ``(n,)``.
        control: of those of the control region ``(m,)``.
        template: of the template in the signal region ``(k,)``.
        template_weights: ``(k,)``.
        beside: scores and weights of the template in the control region; None leaves the template uncorrected.
    """

    signal: Tensor
    control: Tensor
    template: Tensor
    template_weights: Tensor
    beside: tuple[Tensor, Tensor] | None


def evaluate_search(
    signal: Events,
    control: Events,
    selections: Selections,
    mass: MassModel,
    *,
    efficiencies: Sequence[float],
    toys: int,
    seed: int,
) -> SearchResult:
    """Cut, count, estimate and compare.

    Args:
        signal: events of the signal region.
        control: events of the control region.
        selections: their scores.
        mass: the fit before any cut.
        efficiencies: of the cuts.
        toys: pseudo-experiments.
        seed: of those.

    Raises:
        UsageError: an efficiency is not in (0, 1].
    """
    kept = sorted({float(value) for value in efficiencies}, reverse=True)
    if not kept or not all(0 < value <= 1 for value in kept):
        raise UsageError(f"efficiencies: expected numbers in (0, 1], got {list(efficiencies)}")
    cuts = _Cuts(signal, control, selections, mass)
    points = tuple(cuts.at(efficiency) for efficiency in kept)
    p_value, error = _global_p_value(points, cuts.scale, toys, seed)
    fit = mass.fit_of_spectrum
    n, b = float(signal.weights.sum()), fit.background
    return SearchResult(
        mass.region,
        fit.edges,
        fit.counts,
        fit,
        (n, cuts.estimate(n, b.total, b.uncertainty)),
        points,
        p_value,
        error,
        toys,
        cuts.scale,
    )


class _Cuts:
    """All events with their scores."""

    def __init__(self, signal: Events, control: Events, selections: Selections, mass: MassModel) -> None:
        self.signal, self.control, self.selections, self.mass = signal, control, selections, mass
        weights = signal.weights
        self.plain = bool((weights == 1).all()) and bool((control.weights == 1).all())
        self.scale = 1.0 if self.plain else float(weights.sum() / weights.square().sum())

    def at(self, efficiency: float) -> WorkingPoint:
        threshold = _weighted_quantile(self.selections.template, self.selections.template_weights, efficiency)
        inside, outside = self.selections.signal >= threshold, self.selections.control >= threshold
        passing = torch.cat([self.control.mass[outside], self.signal.mass[inside]])
        weights = torch.cat([self.control.weights[outside], self.signal.weights[inside]])
        observed = float(self.signal.weights[inside].sum())
        counts, fit, (b, error) = self._fitted(passing, weights, outside)
        return WorkingPoint(
            efficiency,
            threshold,
            observed,
            self.estimate(observed, b, error),
            self.estimate(observed, *self._by_template(threshold)),
            counts,
            fit,
            mass_sculpting(self.control.mass, outside, self._bins_beside(), weights=self.control.weights),
        )

    def estimate(self, observed: float, background: float, uncertainty: float) -> Estimate:
        """With its p-value; weighted events count as many as their sum of squares allows."""
        b = max(background, _SMALLEST_BACKGROUND)
        p_value = discovery_p_value(max(self.scale * observed, 0.0), self.scale * b, self.scale * uncertainty)
        return Estimate(b, uncertainty, float(p_value))

    def _fitted(
        self, mass: Tensor, weights: Tensor, outside: Tensor
    ) -> tuple[Array, SpectrumFit | None, tuple[float, float]]:
        """Counts after the cut, the fit, and the background in the region with its uncertainty."""
        fit = self.mass.fit_of_spectrum
        counts, variances = np.zeros(len(fit.edges) - 1), None
        if len(mass):
            counts, variances = count_events(mass.numpy(), fit.edges, None if self.plain else weights.numpy())
        passing = float(self.control.weights[outside].sum())
        if int(outside.sum()) >= _FEWEST_FOR_A_FIT:
            try:
                found = fit_spectrum(
                    fit.edges,
                    np.maximum(counts, 0.0),
                    window=fit.window,
                    variances=variances,
                    orders=_ORDERS_AFTER,
                    sqrt_s=fit.function.sqrt_s,
                )
            except UsageError:
                found = None
            if found is not None and found.converged:
                return counts, found, (found.background.total, found.background.uncertainty)
        # As many as the cut leaves beside the region, spread as before the cut.
        ratio = fit.background.total / float(self.control.weights.sum())
        spread = float(self.control.weights[outside].square().sum())
        return counts, None, (ratio * max(passing, 0.0), ratio * max(spread, 1.0) ** 0.5)

    def _by_template(self, threshold: float) -> tuple[float, float]:
        before = self.mass.background
        share, relative = _share(self.selections.template, self.selections.template_weights, threshold)
        variance = (before.uncertainty / before.total) ** 2 + relative
        correction = 1.0
        if self.selections.beside is not None:
            here, error_here = _share(*self.selections.beside, threshold)
            data, error = _share(self.selections.control, self.control.weights, threshold)
            if here > 0 and data > 0:
                correction, variance = data / here, variance + error + error_here
        b = before.total * share * correction
        return b, b * variance**0.5

    def _bins_beside(self) -> Array:
        fit = self.mass.fit_of_spectrum
        return np.stack([fit.edges[:-1], fit.edges[1:]], 1)[fit.used]


def _share(scores: Tensor, weights: Tensor, threshold: float) -> tuple[float, float]:
    """The share of events that pass, and its relative variance."""
    passing = weights[scores >= threshold]
    total = float(passing.sum())
    if total <= 0:
        return 0.0, 1.0
    return total / float(weights.sum()), float(passing.square().sum()) / total**2


def _weighted_quantile(scores: Tensor, weights: Tensor, efficiency: float) -> float:
    """The score that a share of the weight reaches."""
    order = scores.argsort(descending=True)
    # Negative weights make it fall here and there.
    reached = (weights[order].cumsum(0) / weights.sum()).cummax(0).values
    place = int(torch.searchsorted(reached, torch.tensor(efficiency, dtype=reached.dtype)))
    return float(scores[order[min(place, len(order) - 1)]])


def _global_p_value(points: Sequence[WorkingPoint], scale: float, toys: int, seed: int) -> tuple[float, float]:
    """The share of pseudo-experiments whose smallest local p-value is as small, and its standard deviation."""
    random = numpy_generator(derive(seed, "global"))
    b = scale * np.array([point.fit.background for point in points])
    variance = (scale * np.array([point.fit.uncertainty for point in points])) ** 2
    # From the tightest cut outwards: what a looser one adds is independent.
    b, variance = np.maximum.accumulate(b[::-1]), np.maximum.accumulate(variance[::-1])
    steps, spread = np.diff(b, prepend=0.0), np.sqrt(np.diff(variance, prepend=0.0))
    n = random.poisson(np.broadcast_to(steps, (toys, len(steps)))).cumsum(1)
    estimates = (steps + spread * random.standard_normal((toys, len(steps)))).cumsum(1)
    p_values = discovery_p_value(n, np.maximum(estimates, _SMALLEST_BACKGROUND), np.tile(variance**0.5, (toys, 1)))
    observed = min(point.fit.p_value for point in points)
    share = float((p_values.min(1) <= observed * (1 + 1e-9)).mean())
    return share, float(np.sqrt(max(share * (1 - share), 1 / toys) / toys))


def _described(point: WorkingPoint) -> dict[str, Any]:
    found: dict[str, Any] = {
        "efficiency": point.efficiency,
        "threshold": point.threshold,
        "observed": point.observed,
        "sculpting_chi2": point.sculpting.chi2,
        "sculpting_ndf": point.sculpting.ndf,
    }
    for name, estimate in {"fit": point.fit, "template": point.template}.items():
        found |= {
            f"{name}_background": estimate.background,
            f"{name}_uncertainty": estimate.uncertainty,
            f"{name}_p_value": estimate.p_value,
            f"{name}_significance": estimate.significance,
        }
    return found
