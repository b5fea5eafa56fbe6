r"""Response and resolution of a detector in bins of the true energy, as events real and generated show them.

With $r = E_\text{seen} / E_\text{true}$ the response is the mean $\mu$ of r and the relative resolution is
$\sigma / \mu$, with $\sigma$ its standard deviation.  Their errors hold for any distribution of r with four moments:
with $z = (r - \mu) / \sigma$ that of the resolution is the deviation of

$$ \frac{\sigma}{\mu} \left( \frac{z^2 - 1}{2} - \frac{\sigma}{\mu} z \right) $$

over $\sqrt{n}$.  A generator is called wrong only where a ratio is beyond its tolerance by more than chance allows.
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
from sbi_physics.diagnostics.events import column

__all__ = ["ResponseComparison", "response_and_resolution"]

_FEWEST_IN_BIN = 10
_DISCRETE = 20
_LEVEL = 0.01


class _Deviation(NamedTuple):
    """One ratio in one bin: `sigmas` says how far it is from one, `beyond` how far outside of its tolerance."""

    what: str
    bin: int
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

    def passed(self, mean_tolerance: float = 0.01, resolution_tolerance: float = 0.05) -> bool:
        """Whether no ratio is significantly beyond its tolerance.

        Args:
            mean_tolerance: how far the ratio of responses may be from one.
            resolution_tolerance: how far the ratio of resolutions may be from one.
        """
        return not self._wrong(mean_tolerance, resolution_tolerance)

    def explain(self, mean_tolerance: float = 0.01, resolution_tolerance: float = 0.05) -> str:
        """One plain sentence that names the worst bin, for the tolerances given."""
        wrong = self._wrong(mean_tolerance, resolution_tolerance)
        if wrong:
            worst = max(wrong, key=lambda found: found.beyond)
            return f"{len(wrong)} of {2 * len(self.count)} ratios are beyond tolerance, worst {self._said(worst)}"
        every = self._deviations(mean_tolerance, resolution_tolerance)
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
            ("response", self.response_ratio, self.response_ratio_error, mean_tolerance),
            ("resolution", self.resolution_ratio, self.resolution_ratio_error, resolution_tolerance),
        )
        return [
            _Deviation(what, k, float(ratio[k]), float(error[k]), tolerance)
            for what, ratio, error, tolerance in both
            for k in range(len(self.count))
        ]

    def _wrong(self, mean_tolerance: float, resolution_tolerance: float) -> list[_Deviation]:
        """What is beyond tolerance by more sigmas than one of all ratios would be by chance in 1 % of cases."""
        from scipy.stats import norm

        every = self._deviations(mean_tolerance, resolution_tolerance)
        sigmas = float(norm.isf(_LEVEL / (2 * len(every))))
        return [found for found in every if not found.beyond <= sigmas]

    def _said(self, found: _Deviation) -> str:
        low, high = float(self.edges[found.bin]), float(self.edges[found.bin + 1])
        side = "above" if found.ratio > 1 else "below"
        return (
            f"between {low:.4g} and {high:.4g}, where the generated {found.what} is {abs(found.ratio - 1):.2%} {side} "
            f"the real one ({found.sigmas:.1f} sigma, tolerance {found.tolerance:.2%})"
        )


def response_and_resolution(
    energy_true: Any,
    energy_seen_real: Any,
    energy_seen_generated: Any,
    bins: int | Sequence[float] | Tensor = 10,
    *,
    energy_true_generated: Any = None,
) -> ResponseComparison:
    """Mean response and relative resolution in bins of the true energy, of real and of generated events.

    Args:
        energy_true: ``(n,)``, above zero, in any unit, the same for all energies.
        energy_seen_real: ``(n,)``.
        energy_seen_generated: ``(m,)``.
        bins: how many bins of equal shares of real events (true energies of at most 20 different values have a bin
            each), or the rising edges, the last of which belongs to the last bin; what lies outside is left out.
        energy_true_generated: ``(m,)``; where not given, it is `energy_true`.

    Raises:
        ShapeError: the shapes do not fit, or a bin holds less than 10 real or generated events.
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
    edges = _edges(true, bins)
    place, other_place = _places(true, edges), _places(other, edges)
    bins_there = range(len(edges) - 1)
    energy = torch.stack([true[place == k].mean() for k in bins_there])
    kinds = ((real / true, place, "real"), (generated / other, other_place, "generated"))
    rows = [[_moments(ratio[where == k], k, name) for k in bins_there] for ratio, where, name in kinds]
    first, second = (torch.tensor(found, dtype=torch.float64).unbind(1) for found in rows)
    counts = (first[0].long(), second[0].long())
    return ResponseComparison(edges, energy, *counts, *first[1:], *second[1:])


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


def _moments(ratio: Tensor, k: int, name: str) -> tuple[int, float, float, float, float]:
    """Number of events, response and its error, relative resolution and its error."""
    n = len(ratio)
    if n < _FEWEST_IN_BIN:
        raise ShapeError(f"bins: expected at least {_FEWEST_IN_BIN} {name} events in each, got {n} in bin {k}")
    mean, deviation = float(ratio.mean()), float(ratio.std())
    if mean <= 0:
        raise SupportError(f"expected a mean response above zero, got {mean:.3g} for {name} events in bin {k}")
    resolution = deviation / mean
    if deviation == 0:
        return n, mean, 0.0, 0.0, 0.0
    z = (ratio - mean) / deviation
    influence = resolution * (0.5 * (z.square() - 1) - resolution * z)
    return n, mean, deviation / math.sqrt(n), resolution, float(influence.std()) / math.sqrt(n)


def _ratio_error(below: Tensor, below_error: Tensor, above: Tensor, above_error: Tensor) -> Tensor:
    return torch.hypot(above_error / below, above / below * below_error / below)


def _largest(every: list[_Deviation]) -> _Deviation:
    return max(every, key=lambda found: found.sigmas)
