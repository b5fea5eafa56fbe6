r"""`SimulatedCloud`: where the training simulations lie, kept with a posterior, and a warning for what lies far beyond.

A network answers for any observation; for one that no simulation resembles, the answer is an extrapolation that nothing
in it gives away.  `sp.diagnostics.misspecification` asks the question with a p-value, but needs the simulations.  Here
one half of them fixes mean and covariance of the observables, and two measures of every other one are kept: the
Mahalanobis distance, and the largest residual of a single observable from what the others let expect, in units of the
largest in the first half.  An observation is far if one of its measures d has

$$ d > d_{max} + \tfrac12\,(d_{max} - d_{median}), $$

beyond the farthest of H simulations by half as much again.  One more simulation has $d > d_{max}$ with a probability of
1 / (H + 1), whatever the distribution, and the margin makes that rarer still where tails are light.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.random import numpy_generator
from sbi_physics.core.validity import Rows
from sbi_physics.diagnostics.cloud import Cloud, fit_cloud, most_rows
from sbi_physics.diagnostics.features import entry_names
from sbi_physics.diagnostics.reach import residual_words
from sbi_physics.models.embedding.packing import Packing

__all__ = ["SimulatedCloud"]

Array = np.ndarray[Any, Any]

_log = logging.getLogger(__name__)

_FEWEST = 100
"""Simulations below which nothing is said: one more of them is too often the farthest."""

_SHARE = 4
"""Of the rows that fit in a bounded memory: copies of them are made, beside a training that may fill it."""

_MOST_CORRELATED = 512
"""Observables up to which their correlations are known, as in whitening."""

_MARGIN = 0.5
_NAMED = 3
_MOST_TOLD = 10_000
_PREFIX = "simulated."
_WARNING = (
    "x_obs: farther from the simulations than any of them: %s. The posterior there is an extrapolation and may be "
    "wrong by any amount: check the units and the order of the observables, and with sp.diagnostics.misspecification "
    "whether the simulator gives such data; if it can, simulate more where it does"
)


@dataclass(frozen=True)
class SimulatedCloud:
    """The observables of training simulations.

    Attributes:
        cloud: mean and covariance of one half of them.
        extremes: the largest residual of each observable in that half, ``(F,)`` in standard deviations, at least one.
        median: of the two measures of the other half, ``(2,)``.
        farthest: the largest of the two measures of the other half, ``(2,)``.
        count: simulations of the other half, H.
    """

    cloud: Cloud
    extremes: Array
    median: Array
    farthest: Array
    count: int
    _told: set[bytes] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def fit(cls, x: Tensor, *, seed: int) -> "SimulatedCloud | None":
        """Learn from simulations x ``(N, *x_shape)``, NaN where an entry is missing; None where they are too few."""
        if len(x) < _FEWEST:
            return None
        order = torch.as_tensor(numpy_generator(seed).permutation(len(x)))
        most, half = max(most_rows(x[0].numel()) // _SHARE, _FEWEST), len(x) // 2
        first, other = _numbers(x[order[:half][:most]]), _numbers(x[order[half:][:most]])
        cloud = fit_cloud(first, np.concatenate([first, other]), correlated=first.shape[1] <= _MOST_CORRELATED)
        with np.errstate(invalid="ignore"):
            extremes = np.fmax(np.fmax.reduce(np.abs(cloud.residuals(first)), 0), 1.0)
        blank = np.zeros(2)
        measures = cls(cloud, extremes, blank, blank, len(other)).measures(other)
        return cls(cloud, extremes, np.median(measures, 1), measures.max(1), len(other))

    def measures(self, rows: Array) -> Array:
        """Distance, and largest residual in units of the extremes, of rows ``(m, F)``: ``(2, m)``.

        They are infinite where an observable differs that never varied.
        """
        relative = np.nan_to_num(np.abs(self.cloud.residuals(rows)) / self.extremes, nan=0.0, posinf=np.inf)
        return np.stack([self.cloud.distance(rows), relative.max(1)])

    def far(self, x: Tensor) -> Tensor:
        """Which of the observations x ``(B, *x_shape)`` are far: boolean ``(B,)``, on the CPU."""
        return torch.as_tensor(self._beyond(self.measures(_numbers(x))))

    def warn(self, x: Tensor, packing: Packing | None = None) -> None:
        """Log one warning where observations x ``(B, *x_shape)`` are far from the simulations, once for each of them.

        Args:
            x: NaN where an entry is missing.
            packing: how the parts of named observations lie in x.
        """
        if len(x) > 1 and bool((x == x[:1]).all()):  # one observation, repeated for many theta
            x = x[:1]
        rows = _numbers(x)
        measures = self.measures(rows)
        new = [b for b in np.flatnonzero(self._beyond(measures)).tolist() if self._untold(rows[b])]
        if not new:
            return
        names = entry_names(_parts(x, packing))
        words = [self._words(rows[b], measures[:, b], names) for b in new[:_NAMED]]
        text = words[0]
        if len(x) > 1:
            found = [f"number {b} ({word})" for b, word in zip(new, words, strict=False)]
            more = [f"{len(new) - _NAMED} more"] if len(new) > _NAMED else []
            text = f"{len(new)} of {len(x)} observations, {', '.join(found + more)}"
        _log.warning(_WARNING, text)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, as a file keeps it."""
        cloud = self.cloud
        arrays = {
            "mean": cloud.mean,
            "deviation": cloud.deviation,
            "constant": cloud.constant,
            "basis": cloud.basis,
            "variance": cloud.variance,
            "rest": np.array(cloud.rest),
            "extremes": self.extremes,
            "median": self.median,
            "farthest": self.farthest,
            "count": np.array(self.count),
        }
        return {_PREFIX + name: torch.as_tensor(array) for name, array in arrays.items()}

    @classmethod
    def take(cls, tensors: dict[str, Tensor]) -> "SimulatedCloud | None":
        """Take what `tensors` gave out of those of a file; None where an older version wrote the file.

        Raises:
            KeyError, ValueError: a part is missing, or the parts do not fit together.
        """
        names = [name for name in tensors if name.startswith(_PREFIX)]
        if not names:
            return None
        found = {name.removeprefix(_PREFIX): tensors.pop(name).numpy() for name in names}
        mean, basis = found["mean"], found["basis"]
        width = [found[name].shape == mean.shape for name in ("deviation", "constant", "extremes")]
        if not all(width) or basis.shape != (len(found["variance"]), len(mean)):
            raise ValueError("the parts of the simulated cloud have different widths")
        cloud = Cloud(mean, found["deviation"], found["constant"], basis, found["variance"], float(found["rest"]))
        return cls(cloud, found["extremes"], found["median"], found["farthest"], int(found["count"]))

    def _beyond(self, measures: Array) -> Array:
        """Which columns of the measures ``(2, m)`` are beyond the margin: boolean ``(m,)``."""
        bound = self.farthest + _MARGIN * (self.farthest - self.median)
        return np.asarray((measures > bound[:, None]).any(0))

    def _untold(self, row: Array) -> bool:
        """Whether there was no warning of this row yet; from now on there was."""
        digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        if digest in self._told:
            return False
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told.add(digest)
        return True

    def _words(self, row: Array, measures: Array, names: tuple[str, ...]) -> str:
        """How far one observation is, by the measure that stands out more."""
        residuals = self.cloud.residuals(row[None])[0]
        impossible = np.isinf(residuals)
        if impossible.any():
            constant = ", ".join(names[i] for i in np.flatnonzero(impossible)[:_NAMED])
            return f"{constant} differs from what all simulations have in common"
        spread = np.maximum(self.farthest - self.median, 1e-300)
        if np.argmax((measures - self.median) / spread) == 0:
            unusual = residual_words(names, torch.as_tensor(residuals))
            return (
                f"at a distance of {measures[0]:.3g} where the farthest of {self.count:,} is at "
                f"{self.farthest[0]:.3g} (standard deviations){unusual}"
            )
        relative = np.nan_to_num(np.abs(residuals) / self.extremes, nan=0.0)
        i = int(relative.argmax())
        return (
            f"{names[i]} is {residuals[i]:+.3g} standard deviations from what the other observables let expect, where "
            f"none of {self.count:,} is beyond {self.farthest[1] * self.extremes[i]:.3g}"
        )


def _numbers(x: Tensor) -> Array:
    return x.detach().reshape(len(x), -1).to("cpu", torch.float64).numpy()


def _parts(x: Tensor, packing: Packing | None) -> Rows:
    if packing is None:
        return x
    parts: Mapping[str, Tensor] = packing.unpack(x)
    return dict(parts)
