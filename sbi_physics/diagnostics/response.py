r"""Response and resolution of a detector in bins of the true energy, as events real and generated show them.

With $r = E_\text{seen} / E_\text{true}$ the response is the mean $\mu$ of r and the relative resolution is
$\sigma / \mu$, with $\sigma$ its standard deviation.  Their errors hold for any distribution of r with four moments:
with $z = (r - \mu) / \sigma$ that of the resolution is the deviation of

$$ \frac{\sigma}{\mu} \left( \frac{z^2 - 1}{2} - \frac{\sigma}{\mu} z \right) $$

over $\sqrt{n}$.  A generator is called wrong only where a ratio is beyond its tolerance by more than chance allows.
Beside the ratios in the bins there is their mean over all, in which an energy scale shows that is off everywhere.

Few events, and such that leak out, make chance larger than normal.  So the largest deviation from one, of all ratios,
can be compared with those after random exchanges of real and generated events within the bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, positive_integer
from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.random import derive
from sbi_physics.diagnostics.events import checked_weights, column, effective_number
from sbi_physics.diagnostics.response_moments import Ratios, Sample, exchanged, moments, overall
from sbi_physics.diagnostics.uniformity import checked_level

__all__ = ["ResponseComparison", "response_and_resolution"]

_FEWEST_IN_BIN = 10
_DISCRETE = 20
_LEVEL = 0.01


class _Deviation(NamedTuple):
    """One ratio in one bin, or over all bins: how far it is from one, and how far outside of its tolerance."""

    what: str
    bin: int | None
    ratio: float
    error: float
    tolerance: float

    @property
    def sigmas(self) -> float:
        return abs(self.ratio - 1) / self.error if self.error > 0 else math.inf if self.ratio != 1 else 0.0

    @property
    def beyond(self) -> float:
        excess = abs(self.ratio - 1) - self.tolerance
        return excess / self.error if self.error > 0 else math.copysign(math.inf, excess)


@dataclass(frozen=True)
class ResponseComparison:
    """Response and resolution of real and generated events in K bins of the true energy.

    Attributes:
        edges: of the bins, ``(K + 1,)``, in the units of the energy.
        energy: mean true energy of real events in the bin, ``(K,)``.
        count: of real events, ``(K,)``.
        generated_count: of generated events, ``(K,)``.
        response: mean of seen over true energy of real events, ``(K,)``.
        response_error: its standard deviation, as for all errors, ``(K,)``.
        resolution: relative resolution of real events, ``(K,)``.
        resolution_error: ``(K,)``.
        generated_response: ``(K,)``.
        generated_response_error: ``(K,)``.
        generated_resolution: ``(K,)``.
        generated_resolution_error: ``(K,)``.
        level: the probability that equal distributions flunk, over all ratios together.
        null: the largest deviation of a ratio, in its error, after random exchanges of real and generated events,
            ``(E,)``; empty where none were made.
    """

    edges: Tensor
    energy: Tensor
    count: Tensor
    generated_count: Tensor
    response: Tensor
    response_error: Tensor
    resolution: Tensor
    resolution_error: Tensor
    generated_response: Tensor
    generated_response_error: Tensor
    generated_resolution: Tensor
    generated_resolution_error: Tensor
    level: float
    null: Tensor

    @property
    def response_ratio(self) -> Tensor:
        """Generated over real response, ``(K,)``."""
        return self.generated_response / self.response

    @property
    def response_ratio_error(self) -> Tensor:
        """Its standard deviation, ``(K,)``."""
        return _ratio_error(self.response, self.response_error, self.generated_response, self.generated_response_error)

    @property
    def resolution_ratio(self) -> Tensor:
        """Generated over real relative resolution, ``(K,)``."""
        return self.generated_resolution / self.resolution

    @property
    def resolution_ratio_error(self) -> Tensor:
        """Its standard deviation, ``(K,)``."""
        return _ratio_error(
            self.resolution, self.resolution_error, self.generated_resolution, self.generated_resolution_error
        )

    @property
    def energy_scale(self) -> tuple[float, float]:
        """Generated over real response over all bins, and its standard deviation."""
        value, error = overall(self.response_ratio, self.response_ratio_error)
        return float(value), float(error)

    @property
    def overall_resolution(self) -> tuple[float, float]:
        """Generated over real resolution over all bins, and its standard deviation."""
        value, error = overall(self.resolution_ratio, self.resolution_ratio_error)
        return float(value), float(error)

    @property
    def sigmas(self) -> float:
        """The largest deviation of a ratio from one, in its error."""
        return _largest(self._deviations(0.0, 0.0)).sigmas

    @property
    def p_value(self) -> float:
        """That a ratio of equal distributions deviates as much: from `null`, or of normal numbers where it is empty."""
        if len(self.null):
            return (1 + int((self.null >= self.sigmas).sum())) / (1 + len(self.null))
        return min(1.0, len(self._deviations(0.0, 0.0)) * math.erfc(self.sigmas / math.sqrt(2)))

    @property
    def agrees(self) -> bool:
        """Whether no ratio differs from one significantly, however little."""
        return self.p_value > self.level

    @property
    def agreement(self) -> str:
        """One plain sentence that names the ratio that differs most."""
        worst = self._said(_largest(self._deviations(0.0, 0.0)))
        if self.agrees:
            return f"response and resolution agree: largest deviation {worst}"
        return f"response or resolution differ, most {worst}"

    def passed(self, mean_tolerance: float = 0.01, resolution_tolerance: float = 0.05) -> bool:
        """Whether no ratio is significantly beyond its tolerance, where chance is normal.

        Args:
            mean_tolerance: how far the ratio of responses may be from one.
            resolution_tolerance: how far the ratio of resolutions may be from one.
        """
        return not self._wrong(mean_tolerance, resolution_tolerance)

    def explain(self, mean_tolerance: float = 0.01, resolution_tolerance: float = 0.05) -> str:
        """One plain sentence that names the worst ratio, for the tolerances given."""
        wrong = self._wrong(mean_tolerance, resolution_tolerance)
        every = self._deviations(mean_tolerance, resolution_tolerance)
        if wrong:
            worst = max(wrong, key=lambda found: found.beyond)
            return f"{len(wrong)} of {len(every)} ratios are beyond tolerance, worst {self._said(worst)}"
        blunt = sum(found.error > found.tolerance for found in every)
        text = f"response and resolution are right within tolerance: largest deviation {self._said(_largest(every))}"
        if blunt:
            text += f"; {blunt} of {len(every)} ratios are known less well than their tolerance: more events are needed"
        return text

    @property
    def verdict(self) -> str:
        """One plain sentence, for 1 % of the response and 5 % of the resolution."""
        return self.explain()

    def _deviations(self, mean_tolerance: float, resolution_tolerance: float) -> list[_Deviation]:
        if not (mean_tolerance >= 0 and resolution_tolerance >= 0):
            raise UsageError(f"tolerances: expected at least 0, got {mean_tolerance!r} and {resolution_tolerance!r}")
        both = (
            ("response", self.response_ratio, self.response_ratio_error, self.energy_scale, mean_tolerance),
            ("resolution", self.resolution_ratio, self.resolution_ratio_error, self.overall_resolution,
             resolution_tolerance),
        )  # fmt: skip
        found = []
        for what, ratio, error, whole, tolerance in both:
            found += [_Deviation(what, k, float(ratio[k]), float(error[k]), tolerance) for k in range(len(self.count))]
            if len(self.count) > 1 and math.isfinite(whole[0]):
                found.append(_Deviation(what, None, *whole, tolerance))
        return found

    def _wrong(self, mean_tolerance: float, resolution_tolerance: float) -> list[_Deviation]:
        """What is beyond tolerance by more sigmas than one of all ratios would be by chance at `level`."""
        from scipy.stats import norm

        every = self._deviations(mean_tolerance, resolution_tolerance)
        sigmas = float(norm.isf(self.level / (2 * len(every))))
        return [found for found in every if not found.beyond <= sigmas]

    def _said(self, found: _Deviation) -> str:
        where = "over all bins"
        if found.bin is not None:
            where = f"between {float(self.edges[found.bin]):.4g} and {float(self.edges[found.bin + 1]):.4g}"
        side = "above" if found.ratio > 1 else "below"
        tolerance = f", tolerance {found.tolerance:.2%}" if found.tolerance else ""
        return (
            f"{where}, where the generated {found.what} is {abs(found.ratio - 1):.2%} {side} "
            f"the real one ({found.sigmas:.1f} sigma{tolerance})"
        )


def response_and_resolution(
    energy_true: Any,
    energy_seen_real: Any,
    energy_seen_generated: Any,
    bins: int | Sequence[float] | Tensor = 10,
    *,
    energy_true_generated: Any = None,
    weights: Any = None,
    generated_weights: Any = None,
    exchanges: int = 0,
    level: float = 0.01,
    seed: int = 0,
) -> ResponseComparison:
    """Mean response and relative resolution in bins of the true energy, of real and of generated events.

    Args:
        energy_true: ``(n,)``, above zero, in any unit, the same for all energies.
        energy_seen_real: ``(n,)``.
        energy_seen_generated: ``(m,)``.
        bins: how many bins of equal shares of real events (true energies of at most 20 different values have a bin
            each), or the rising edges, the last of which belongs to the last bin; what lies outside is left out.
        energy_true_generated: ``(m,)``; where not given, it is `energy_true`.
        weights: of the real events ``(n,)``, ones where None; negative ones may be among them.
        generated_weights: likewise ``(m,)``.
        exchanges: how often real and generated events are exchanged at random; zero takes the errors to be normal.
        level: the probability that equal distributions flunk, over all ratios together.
        seed: of the exchanges.

    Raises:
        ShapeError: the shapes do not fit, or a bin holds less than 10 real or generated events; with weights, events
            that are worth fewer than 10.
        NonFiniteError: a number is NaN or infinite.
        SupportError: a true energy is not above zero, or a bin has no mean response above zero.
        UsageError: an argument is out of range.
    """
    true, real = column(energy_true, "energy_true"), column(energy_seen_real, "energy_seen_real")
    generated = column(energy_seen_generated, "energy_seen_generated")
    other = true if energy_true_generated is None else column(energy_true_generated, "energy_true_generated")
    if len(true) != len(real) or len(other) != len(generated):
        raise ShapeError(
            f"expected a true energy for each event, got {len(true)} for {len(real)} real and {len(other)} for "
            f"{len(generated)} generated events"
        )
    if not bool((true > 0).all() and (other > 0).all()):
        raise SupportError("energy_true: expected energies above zero, got some that are not")
    checked_level(level)
    if not (isinstance(exchanges, int) and (exchanges == 0 or (1 + exchanges) * level >= 1)):
        raise UsageError(
            f"exchanges: expected 0 or at least {1 / level - 1:.0f} for level {level:g}, got {exchanges!r}"
        )
    w, v = checked_weights(weights, len(real)), checked_weights(generated_weights, len(generated), "generated_weights")
    edges = _edges(true, bins)
    place, other_place = _places(true, edges), _places(other, edges)
    bins_there = range(len(edges) - 1)
    energy = torch.stack([true[place == k].mean() for k in bins_there])
    pairs = []
    for k in bins_there:
        here, there = place == k, other_place == k
        pair = Sample((real / true)[here], w[here]), Sample((generated / other)[there], v[there])
        _check_bin(pair, k)
        pairs.append(pair)
    first, second = ([moments(pair[side]) for pair in pairs] for side in (0, 1))
    counts = [torch.tensor([len(pair[side].ratio) for pair in pairs]) for side in (0, 1)]
    names = ("response", "response_error", "resolution", "resolution_error")
    named = [*names, *(f"generated_{name}" for name in names)]
    columns = [torch.stack(column) for side in (first, second) for column in zip(*side, strict=True)]
    measured: dict[str, Any] = dict(zip(named, columns, strict=True))
    null = _after_exchanges(pairs, exchanges, derive(seed, "response"))
    return ResponseComparison(edges, energy, counts[0], counts[1], **measured, level=level, null=null)


def _check_bin(pair: tuple[Sample, Sample], k: int) -> None:
    for sample, name in zip(pair, ("real", "generated"), strict=True):
        n = len(sample.ratio)
        if n < _FEWEST_IN_BIN:
            raise ShapeError(f"bins: expected at least {_FEWEST_IN_BIN} {name} events in each, got {n} in bin {k}")
        total = float(sample.weights.sum())
        if not (total > 0 and effective_number(sample.weights) >= _FEWEST_IN_BIN - 1e-6):
            raise ShapeError(f"bins: by their weights, {n} {name} events in bin {k} are worth fewer than 10")
        mean = float(sample.weights @ sample.ratio) / total
        if mean <= 0:
            raise SupportError(f"expected a mean response above zero, got {mean:.3g} for {name} events in bin {k}")


def _after_exchanges(pairs: Sequence[tuple[Sample, Sample]], exchanges: int, seed: int) -> Tensor:
    """The largest deviation of a ratio from one, in its error, after each exchange ``(exchanges,)``."""
    if not exchanges:
        return torch.zeros(0, dtype=torch.float64)
    every = [exchanged(*pair, exchanges, derive(seed, "bin", k)) for k, pair in enumerate(pairs)]
    found = Ratios(*(torch.stack(parts, 1) for parts in zip(*every, strict=True)))
    sigmas = []
    for ratio, error in ((found.response, found.response_error), (found.resolution, found.resolution_error)):
        whole, whole_error = overall(ratio, error)
        ratio, error = torch.cat([ratio, whole.unsqueeze(1)], 1), torch.cat([error, whole_error.unsqueeze(1)], 1)
        sigmas.append((ratio - 1).abs() / error)
    return torch.cat(sigmas, 1).nan_to_num(0.0, posinf=math.inf).amax(1)


def _edges(true: Tensor, bins: int | Sequence[float] | Tensor) -> Tensor:
    if not isinstance(bins, int | np.integer):
        edges = finite(as_tensor(bins, "bins", dtype=torch.float64).cpu(), "bins")
        if edges.ndim != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
            raise ShapeError(f"bins: expected a number of bins or rising edges (K + 1,), got {tuple(edges.shape)}")
        return edges
    count, values = positive_integer(bins, "bins"), true.unique()
    if len(values) == 1:
        return torch.stack([values[0], torch.nextafter(values[0], torch.tensor(math.inf, dtype=torch.float64))])
    if len(values) <= _DISCRETE:
        return torch.cat([values[:1], (values[:-1] * values[1:]).sqrt(), values[-1:]])
    # Not torch.quantile, which takes no more than 16 million numbers.
    return torch.as_tensor(np.unique(np.quantile(true.numpy(), np.linspace(0, 1, count + 1))))


def _places(true: Tensor, edges: Tensor) -> Tensor:
    """The bin of each event; -1, or the number of bins, outside."""
    place = torch.bucketize(true, edges, right=True) - 1
    return torch.where(true == edges[-1], len(edges) - 2, place)


def _ratio_error(below: Tensor, below_error: Tensor, above: Tensor, above_error: Tensor) -> Tensor:
    return torch.hypot(above_error / below, above / below * below_error / below)


def _largest(every: list[_Deviation]) -> _Deviation:
    return max(every, key=lambda found: found.sigmas)
