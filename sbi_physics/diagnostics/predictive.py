r"""Posterior predictive check: does the model, with the parameters it was found to have, give data like those observed?

Data are simulated at draws of the posterior.  Each entry of the observation, or each summary that the user names, is
placed among them (Gelman, Meng & Stern 1996, Statistica Sinica 6, 733).  Two distances look at all of them together:
the Mahalanobis distance from the simulated data, and the largest deviation of a single one; half of the simulations say
what is typical, the distance of the observation is ranked among those of the other half.

The data were used to find the posterior, so that p-values are larger than those of fresh data: a small one means more,
a moderate one less.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, positive_integer
from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.random import derive, numpy_generator
from sbi_physics.core.samples import Samples
from sbi_physics.core.validity import Failed, Rows, as_rows, count_rows, select_valid, valid_rows
from sbi_physics.diagnostics.cloud import differs, fit_cloud
from sbi_physics.diagnostics.features import entry_names, feature_rows, observations
from sbi_physics.diagnostics.uniformity import binomial_error, checked_level, left_out

__all__ = ["PredictiveCheck", "predictive_check"]

Array = np.ndarray[Any, Any]
Statistics = Callable[[Any], Any] | Mapping[str, Callable[[Any], Any]]

_NAMED = 3
_NOTICEABLE = 2.0


@dataclass(frozen=True)
class PredictiveCheck:
    """An observation among the predictions of its posterior, in K statistics.

    Attributes:
        names: K names: of the entries of x, or of the statistics.
        observed: ``(K,)``; NaN where it is missing.
        replicated: the same of n simulated data sets, ``(n, K)``.
        p_values: two-sided, of each statistic alone, ``(K,)``; NaN where it is missing.
        p_value_errors: their binomial standard deviations, ``(K,)``.
        deviations: from the predictive mean, in predictive standard deviations, ``(K,)``.
        distance: Mahalanobis distance of the observation.
        replicated_distance: of the second half of the simulations, ``(m,)``.
        distance_p_value: share of these that are as large.
        largest_p_value: share of these whose largest deviation is as large as that of the observation.
        level: the probability that data from the predictive distribution flunk.
        failed: simulations that were left out.
    """

    names: tuple[str, ...]
    observed: Tensor
    replicated: Tensor
    p_values: Tensor
    p_value_errors: Tensor
    deviations: Tensor
    distance: float
    replicated_distance: Tensor
    distance_p_value: float
    largest_p_value: float
    level: float
    failed: int = 0

    @property
    def p_value(self) -> float:
        """Of all statistics together: from the smaller of two p-values, doubled."""
        return min(1.0, 2 * min(self.distance_p_value, self.largest_p_value))

    @property
    def p_value_error(self) -> float:
        """Its binomial standard deviation."""
        return 2 * float(binomial_error(torch.tensor(self.p_value / 2), len(self.replicated_distance)))

    @property
    def passed(self) -> bool:
        """Whether the observation looks like data of the model."""
        return self.p_value > self.level

    @property
    def worst(self) -> tuple[int, ...]:
        """Positions of up to three statistics, the largest deviation first; all but the first exceed two sigma."""
        size = self.deviations.abs().nan_to_num(nan=-1.0, posinf=torch.inf)
        largest = size.argsort(descending=True, stable=True)[:_NAMED].tolist()
        return tuple(i for i in largest if i == largest[0] or float(size[i]) > _NOTICEABLE)

    @property
    def verdict(self) -> str:
        """One plain sentence that names what deviates most."""
        p = f"p-value {self.p_value:.2g} ± {self.p_value_error:.1g}"
        if self.passed:
            return f"the observation looks like data of the model: {p}, {self._deviation(self.worst[0])} at most" + (
                left_out(self.failed)
            )
        found = ", ".join(self._deviation(i) for i in self.worst)
        return f"the observation does not look like data of the model: {p}; worst: {found}{left_out(self.failed)}"

    def _deviation(self, i: int) -> str:
        size = float(self.deviations[i])
        return (
            f"{self.names[i]} ({size:+.1f} sigma)"
            if np.isfinite(size)
            else f"{self.names[i]} (predicted without spread)"
        )


def predictive_check(
    posterior_or_samples: Any,
    simulator: Callable[..., Any],
    x_obs: Any,
    *,
    n: int = 1000,
    statistics: Statistics | None = None,
    level: float = 0.01,
    seed: int = 0,
    failed: Failed = "drop",
    missing: bool = False,
) -> PredictiveCheck:
    """Compare an observation with data simulated at draws of its posterior.

    Args:
        posterior_or_samples: has ``sample(n, x_obs, seed=...)``; or draws for this observation, `Samples` or
            ``(m, P)``.
        simulator: ``simulator(theta, seed=...)`` gives x ``(n, *x_shape)``, or a dictionary of such.
        x_obs: one observation; NaN marks a missing entry, which is left out.
        n: simulations.
        statistics: a function from rows of x to ``(n,)``, ``(n, K)`` or a dictionary of such; or several by name.  All
            entries of x where None.
        level: the probability that data from the predictive distribution flunk.
        seed: of the draws and the simulations.
        failed: what to do with failed simulations; they are left out unless ``"refuse"``.
        missing: whether NaN in a simulation marks a missing entry; a failed simulation otherwise.

    Raises:
        ShapeError: the shapes do not fit.
        NonFiniteError: a simulation failed and is to be refused, or nothing is left to compare.
        UsageError: n is too small for `level`, or an argument is out of range.
    """
    if positive_integer(n, "n") < 4 / checked_level(level):
        raise UsageError(f"n: expected at least {4 / level:.0f} simulations for level {level:g}, got {n}")
    theta = _draws(posterior_or_samples, x_obs, n, seed)
    simulated = as_rows(simulator(theta, seed=derive(seed, "simulator")), "simulator output")
    good = select_valid(theta, simulated, failed=failed, missing=missing, name="simulator output")
    observed = observations(x_obs, good.x)
    if count_rows(observed) != 1:
        raise ShapeError(f"x_obs: expected one observation, got {count_rows(observed)}")
    rows, names = _numbers(good.x, statistics)
    asked = _numbers(observed, statistics)[0][0]
    there = ~np.isnan(asked)
    if not there.any() or np.isinf(asked).any():
        raise NonFiniteError("x_obs: expected finite statistics, or NaN for missing ones, got infinity or only NaN")
    if len(rows) < 4 / level:
        raise NonFiniteError(
            f"simulator output: {good.failed} of {n} simulations failed, which leaves too few for level {level:g}"
        )
    return _checked(rows, asked, there, names, level, good.failed)


def _draws(source: Any, x_obs: Any, n: int, seed: int) -> Tensor:
    if callable(getattr(source, "sample", None)):
        source = source.sample(n, x_obs, seed=derive(seed, "posterior"))
    if isinstance(source, Samples):
        if source.values.ndim != 2:
            raise ShapeError(f"samples: expected draws of one observation, got {len(source.values)} observations")
        if source.log_weights is not None:
            source = source.resample(n, seed=derive(seed, "resample"))
        source = source.values
    theta = finite(as_tensor(source, "samples", dtype=None), "samples")
    if theta.ndim != 2 or not len(theta):
        raise ShapeError(f"samples: expected shape (m, P), got {tuple(theta.shape)}")
    if len(theta) == n:
        return theta
    rows = numpy_generator(derive(seed, "choice")).choice(len(theta), n, replace=len(theta) < n)
    return theta[torch.as_tensor(rows, device=theta.device)]


def _numbers(x: Rows, statistics: Statistics | None) -> tuple[Array, tuple[str, ...]]:
    """Statistics ``(n, K)`` of rows of x, and their names."""
    if statistics is None:
        return feature_rows(x).numpy(), entry_names(x)
    n = count_rows(x)
    found: Any = (
        {name: function(x) for name, function in statistics.items()} if isinstance(statistics, Mapping) else None
    )
    values = as_rows(statistics(x) if found is None else found, "statistics")  # type: ignore[operator]
    if count_rows(values) != n:
        raise ShapeError(f"statistics: expected one row for each of {n} simulations, got {count_rows(values)}")
    if bool(valid_rows(values, missing=True).all()):
        return feature_rows(values).numpy(), entry_names(values, "statistic")
    raise NonFiniteError("statistics: expected finite numbers, got infinity or nothing but NaN")


def _checked(
    rows: Array, asked: Array, there: Array, names: tuple[str, ...], level: float, failed: int
) -> PredictiveCheck:
    half = len(rows) // 2
    cloud = fit_cloud(rows[:half, there])
    everything = np.concatenate([asked[None], rows])[:, there]
    distance = cloud.distance(everything[[0, *range(1 + half, len(everything))]])
    offset = everything - cloud.mean
    impossible = np.where(differs(everything, cloud.mean), np.copysign(np.inf, offset), 0.0)
    deviation = np.where(cloud.constant, impossible, offset / cloud.deviation)
    largest = np.nan_to_num(np.abs(deviation), nan=0.0, posinf=np.inf).max(1)
    deviations = np.full(len(asked), np.nan)
    deviations[there] = deviation[0]
    p_values = torch.as_tensor(np.where(there, _two_sided(rows, asked), np.nan))
    return PredictiveCheck(
        names,
        torch.as_tensor(asked),
        torch.as_tensor(rows),
        p_values,
        2 * binomial_error(p_values / 2, len(rows)),
        torch.as_tensor(deviations),
        float(distance[0]),
        torch.as_tensor(distance[1:]),
        _share(distance[0], distance[1:]),
        _share(largest[0], largest[1 + half :]),
        level,
        failed,
    )


def _share(value: float, others: Array) -> float:
    return float((1 + (others >= value).sum()) / (1 + len(others)))


def _two_sided(rows: Array, asked: Array) -> Array:
    """Twice the smaller share ``(K,)`` of rows ``(n, K)`` at or beyond the observed value."""
    count = (~np.isnan(rows)).sum(0)
    with np.errstate(invalid="ignore"):
        above, below = (rows >= asked).sum(0), (rows <= asked).sum(0)
    return np.minimum(1.0, 2 * (1 + np.minimum(above, below)) / (1 + count))
