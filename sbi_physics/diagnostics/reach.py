r"""Is an observation within reach of the training simulations?

An amortised posterior answers for any x, also for one that no simulation resembles; there it extrapolates, and is wrong
without a sign of it (Schmitt et al. 2021, arXiv:2112.08866; Huang et al. 2023, arXiv:2305.15871).  Three measures of
how far it lies from part of the training simulations are compared with those of the other part:

* the Mahalanobis distance, which sees what is far out, or breaks a correlation between observables;
* the distance to the k-th nearest simulation, which sees gaps inside the cloud;
* the largest residual of a single observable from what the others let expect, which sees one bad channel of many.

If the observation is one more simulation, its place among the held-out ones is uniform, whatever their distribution:
the p-value $(1 + \#\{d_h \geq d\}) / (1 + H)$ is exact.  The smallest of the three counts three times.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import finite, positive_integer
from sbi_physics.core.errors import NonFiniteError, UsageError
from sbi_physics.core.random import numpy_generator
from sbi_physics.core.validity import Failed, Rows, as_rows, count_rows, kept_rows, select_rows, valid_rows
from sbi_physics.diagnostics.cloud import Cloud, fit_cloud, most_rows
from sbi_physics.diagnostics.features import Features, feature_names, feature_rows, observations
from sbi_physics.diagnostics.uniformity import binomial_error, checked_level, left_out

__all__ = ["Reach", "misspecification"]

Array = np.ndarray[Any, Any]

_MOST_HELD_OUT = 2000
_MEASURES = 3
_NAMED = 3
_NOTICEABLE = 3.0


@dataclass(frozen=True)
class Reach:
    """How far B observations lie from the training simulations.

    Attributes:
        names: F names of the observables.
        distance: Mahalanobis distance, ``(B,)``; infinite where an observable differs that never varied in training.
        neighbour_distance: distance to the k-th nearest simulation in standard deviations, ``(B,)``.
        largest_residual: of all observables, in standard deviations, ``(B,)``.
        held_out_distance: Mahalanobis distances of held-out simulations, ``(B, H)``; rows differ only where different
            observables are missing.
        held_out_neighbour_distance: their distances to the k-th nearest, ``(B, H)``.
        held_out_largest_residual: their largest residuals, ``(B, H)``.
        p_values: ``(B,)`` that a simulation lies as far out, three times the smallest of three.
        p_value_errors: their binomial standard deviations, ``(B,)``.
        residuals: of each observable, from what the others let expect, in standard deviations, ``(B, F)``; NaN where it
            is missing.
        level: the probability that any of B observations from the simulator is called outside.
        failed: simulations that were left out.
    """

    names: tuple[str, ...]
    distance: Tensor
    neighbour_distance: Tensor
    largest_residual: Tensor
    held_out_distance: Tensor
    held_out_neighbour_distance: Tensor
    held_out_largest_residual: Tensor
    p_values: Tensor
    p_value_errors: Tensor
    residuals: Tensor
    level: float
    failed: int = 0

    @property
    def outside(self) -> Tensor:
        """Which observations lie outside the training simulations: boolean ``(B,)``.

        Where there are many observations for the held-out simulations, whatever lies beyond all of these is outside;
        and so is, always, what differs where the simulations never vary.
        """
        smallest = _MEASURES / (1 + self.held_out_distance.shape[1])
        return (self.p_values <= max(self.level / len(self.p_values), smallest)) | torch.isinf(self.distance)

    @property
    def passed(self) -> bool:
        """Whether all observations lie within reach of the training simulations."""
        return not bool(self.outside.any())

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One plain sentence for each observation."""
        return tuple(self._sentence(b) for b in range(len(self.p_values)))

    @property
    def verdict(self) -> str:
        """The sentences of the observations that lie outside, or that none does."""
        count, outside = len(self.p_values), self.outside.nonzero()[:, 0].tolist()
        if count == 1:
            text = self._sentence(0)
        elif not outside:
            smallest = float(self.p_values.min())
            text = f"all {count} observations lie within the training simulations: smallest p-value {smallest:.2g}"
        else:
            found = [f"{b} ({self._measured(b)})" for b in outside[:_NAMED]]
            more = [f"{len(outside) - _NAMED} more"] if len(outside) > _NAMED else []
            text = (
                f"{len(outside)} of {count} observations lie outside the training simulations, where the posterior "
                f"extrapolates: {', '.join(found + more)}"
            )
        return text + left_out(self.failed)

    def _sentence(self, b: int) -> str:
        which = "the observation" if len(self.p_values) == 1 else f"observation {b}"
        measured = self._measured(b)
        if not bool(self.outside[b]):
            p = f"p-value {float(self.p_values[b]):.2g} ± {float(self.p_value_errors[b]):.1g}"
            return f"{which} lies within the training simulations: {measured}; {p}"
        unusual = residual_words(self.names, self.residuals[b])
        return f"{which} lies outside the training simulations: {measured}{unusual}; the posterior extrapolates there"

    def _measured(self, b: int) -> str:
        kind, distance, others = self._farther(b)
        return f"{kind} {distance:.3g}, 99 % of simulations are within {_typical(others):.3g}"

    def _farther(self, b: int) -> tuple[str, float, Tensor]:
        """The measure that stands out most, in units of those held out."""
        measures = (
            ("distance", self.distance, self.held_out_distance),
            ("distance to the nearest simulations", self.neighbour_distance, self.held_out_neighbour_distance),
            ("largest residual [sigma]", self.largest_residual, self.held_out_largest_residual),
        )
        found = [(name, float(value[b]), others[b]) for name, value, others in measures]
        return min(found, key=lambda m: (float((m[2] >= m[1]).double().mean()), -m[1] / _typical(m[2])))


def _typical(others: Tensor) -> float:
    """What 99 % of the simulations are within."""
    return max(float(torch.nanquantile(others, 0.99)), 1e-300)


def residual_words(names: tuple[str, ...], residuals: Tensor) -> str:
    """The largest deviations ``(F,)`` in words, or nothing where none is large."""
    size = residuals.abs().nan_to_num(nan=0.0, posinf=math.inf)
    largest = [i for i in size.argsort(descending=True, stable=True)[:_NAMED].tolist() if float(size[i]) > _NOTICEABLE]
    words = [
        f"{names[i]} ({'never varies' if math.isinf(float(size[i])) else f'{float(residuals[i]):+.1f} sigma'})"
        for i in largest
    ]
    return f"; most unusual: {', '.join(words)}" if words else ""


def misspecification(
    x_train: Any,
    x_obs: Any,
    *,
    features: Features | None = None,
    neighbours: int = 5,
    held_out: int | None = None,
    level: float = 0.01,
    seed: int = 0,
    failed: Failed = "refuse",
) -> Reach:
    """Ask whether observations lie within the cloud of training simulations.

    NaN marks a missing entry.  What is missing in an observation is left out of the comparison; what is missing in a
    simulation counts as the mean.

    Args:
        x_train: ``(N, *x_shape)`` simulations that the posterior was trained on, or a dictionary of such.
        x_obs: one observation, or ``(B, *x_shape)``.
        features: a function from x to ``(N, F)`` numbers to compare instead, such as an embedding network, or the
            logarithm of what varies over decades.
        neighbours: k.
        held_out: simulations that are held out, H; half of them, 2,000 at most, where None.
        level: the probability that any of B observations from the simulator is called outside.
        seed: of the choice which to hold out.
        failed: what to do with simulations that hold infinity, or nothing but NaN: ``"refuse"`` or ``"drop"``.

    Raises:
        ShapeError: the shapes do not fit.
        NonFiniteError: a simulation failed and is to be refused; an observation holds infinity, or nothing but NaN.
        UsageError: there are too few simulations for `level`, or an argument is out of range.
    """
    known = as_rows(x_train, "x_train")
    keep = kept_rows(known, failed=failed, missing=True, name="x_train")
    observed = observations(x_obs, known)
    if not bool(valid_rows(observed, missing=True).all()):
        raise NonFiniteError("x_obs: expected numbers, or NaN for missing entries, got infinity or nothing but NaN")
    count = _held_out(len(keep), held_out, level, neighbours)
    order = keep[torch.as_tensor(numpy_generator(seed).permutation(len(keep)))]
    rest = _numbers(known, order[:count], features)
    width = rest.shape[1]
    part = _numbers(known, order[count : count + most_rows(max(width, count))], features)
    asked = _numbers(observed, torch.arange(count_rows(observed)), features)
    found, others, residuals = _compared(part, rest, asked, neighbours)
    beyond = (others >= found[:, :, None]).sum(2).min(0)
    comparable = (~np.isnan(others[0])).sum(1)
    p_values = torch.as_tensor(np.minimum(1.0, _MEASURES * (1 + beyond) / (1 + comparable)))
    return Reach(
        feature_names(known, width, features),
        *_tensors(found),
        *_tensors(others),
        p_values,
        _MEASURES * binomial_error(p_values / _MEASURES, count),
        torch.as_tensor(residuals),
        level,
        count_rows(known) - len(keep),
    )


def _tensors(measures: Array) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (torch.as_tensor(measure) for measure in measures)
    return first, second, third


def _held_out(n: int, held_out: int | None, level: float, neighbours: int) -> int:
    fewest = math.ceil(_MEASURES / checked_level(level))
    count = min(n // 2, _MOST_HELD_OUT) if held_out is None else positive_integer(held_out, "held_out")
    if count < fewest:
        raise UsageError(
            f"expected at least {fewest} simulations to hold out for level {level:g}, got {count}; raise the level"
        )
    if n - count < max(positive_integer(neighbours, "neighbours"), 2):
        raise UsageError(f"held_out: expected at most {n - max(neighbours, 2)} of {n} simulations, got {count}")
    return count


def _numbers(x: Rows, index: Tensor, features: Features | None) -> Array:
    rows = feature_rows(select_rows(x, index), features)
    return (rows if features is None else finite(rows, "features")).numpy()


def _compared(part: Array, rest: Array, asked: Array, k: int) -> tuple[Array, Array, Array]:
    """Measures of the observations ``(3, B)`` and of the held-out rows ``(3, B, H)``, and residuals ``(B, F)``."""
    patterns, which = np.unique(np.isnan(asked), axis=0, return_inverse=True)
    found, others = np.empty((_MEASURES, len(asked))), np.empty((_MEASURES, len(asked), len(rest)))
    residuals = np.full(asked.shape, np.nan)
    every = np.concatenate([part, rest])
    for i, missing in enumerate(patterns):
        at, there = np.flatnonzero(which.reshape(-1) == i), ~missing
        members, rows = part[:, there], asked[at][:, there]
        cloud = fit_cloud(members, every[:, there])
        held = rest[:, there]
        typical = cloud.residuals(held)
        # With more observables than simulations the shrunk covariance is too small for rows that it has not seen.
        known = typical[np.isfinite(typical)]
        scale = max(float(np.sqrt(np.square(known).sum() / max(known.size, 1))), 1e-12)
        residuals[np.ix_(at, there)] = cloud.residuals(rows) / scale
        found[:, at] = _measures(cloud, rows, members, k, cloud.residuals(rows) / scale)
        others[:, at] = _measures(cloud, held, members, k, typical / scale)[:, None]
        # Simulations without any of the entries that the observation has say nothing.
        others[:, at] = np.where(np.isnan(held).all(1), np.nan, others[:, at])
    return found, others, residuals


def _measures(cloud: Cloud, rows: Array, members: Array, k: int, residuals: Array) -> Array:
    largest = np.abs(np.nan_to_num(residuals, nan=0.0, posinf=np.inf, neginf=-np.inf)).max(1)
    return np.stack([cloud.distance(rows), cloud.neighbour_distance(rows, members, k), largest])
