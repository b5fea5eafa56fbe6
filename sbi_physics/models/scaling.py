r"""Scaling of data before a network sees them, learned once from the training data.

`Standardise` brings each feature to mean zero and standard deviation one.  `Whiten` also removes the correlations,
$x_w = R^{-1/2}(x - \bar x)/\sigma$ with the correlation matrix R: where a few strong signals dominate the data, the
small residuals that carry the noise level come out at the scale of one, too.  The symmetric root keeps each feature
as close to itself as it can be (Kessy, Lewin and Strimmer 2018, arXiv:1512.00809).  `ParameterScaling` is for
parameters that a network is given: where one has a single bound, as a rate or a width, its logarithm is what counts.

Axes of an event whose entries are alike (time steps, members of a set, pixels) can share one mean and one scale.
`Standardise` takes NaN as a missing entry: it counts in no statistic and stays NaN.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import UsageError
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.store.row_parts import RowParts, Rows, row_parts

__all__ = ["IntoBox", "ParameterScaling", "Scaling", "Standardise", "Whiten", "scaled_rows"]

# Below this many events for each feature the correlations are too noisy to invert.
_EVENTS_PER_FEATURE = 20
_NEAR_EDGE = 2.0**-25
_STEEPNESS = 0.85
_SMALLEST_EIGENVALUE = 1e-8
_FEATURES_AT_ONCE = 32


class Scaling(nn.Module, ABC):
    """A map of data that keeps their shape, learned once from the training data."""

    @abstractmethod
    def fit(self, data: Rows) -> "Scaling":
        """Learn from data ``(n, *shape)``; returns itself."""

    @abstractmethod
    def forward(self, data: Tensor) -> Tensor:
        """Scale data ``(*, *shape)``."""


class Standardise(Scaling):
    """``(x - mean) / scale`` for each of the features of an event of any shape.

    A feature that is constant in the data, or never there, is shifted but not scaled.

    Args:
        shape: the shape of one event.
        shared: axes of the event, from 0, along which there is one mean and one scale.

    Raises:
        UsageError: there is no such axis.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: torch.Size | tuple[int, ...], shared: Sequence[int] = ()) -> None:
        super().__init__()
        self._shape, self.shared = torch.Size(shape), tuple(shared)
        if not all(0 <= axis < len(self._shape) for axis in self.shared):
            raise UsageError(f"shared: expected axes from 0 to {len(self._shape) - 1}, got {self.shared}")
        kept = [1 if axis in self.shared else size for axis, size in enumerate(self._shape)]
        self.register_buffer("mean", torch.zeros(kept))
        self.register_buffer("scale", torch.ones(kept))

    def fit(self, data: Rows) -> "Standardise":
        """Learn mean and scale from data ``(n, *shape)``; sums are in double precision, without what is missing."""
        parts = row_parts(data)
        if parts.count > 1:
            self._learn_in_parts(parts)
            return self
        (data,) = parts
        if len(self._shape) == 1 and not self.shared:
            # A few features after the other: all data in double precision take twice the memory of the data.
            for start in range(0, self._shape[0], _FEATURES_AT_ONCE):
                part = slice(start, start + _FEATURES_AT_ONCE)
                self._learn(data[:, part], self.mean[part], self.scale[part])
        else:
            self._learn(data, self.mean, self.scale)
        return self

    def _learn(self, data: Tensor, into_mean: Tensor, into_scale: Tensor) -> None:
        wide = data.double()
        axes = (0, *(axis + 1 for axis in self.shared))
        missing = torch.isnan(wide)
        if bool(missing.any()):
            mean, deviation = _moments(wide, ~missing, axes)
        else:
            mean, deviation = wide.mean(axes, keepdim=True)[0], wide.std(axes, correction=0, keepdim=True)[0]
        constant = deviation <= 1e-12 * mean.abs().clamp(min=1e-30)
        into_mean.copy_(mean)
        into_scale.copy_(torch.where(constant, 1.0, deviation))

    def _learn_in_parts(self, parts: RowParts) -> None:
        """As `_learn`, in two passes."""
        axes = (0, *(axis + 1 for axis in self.shared))

        def total(of: Callable[[Tensor], Tensor]) -> Tensor:
            # One sum, made beforehand: small tensors that stay, between large ones that go, would hold their memory.
            result = torch.zeros(1, *self.mean.shape, dtype=torch.float64)
            for part in parts:
                result += torch.nan_to_num(of(part.double())).sum(axes, keepdim=True).to(result.device)
            return result

        count = total(lambda wide: (~torch.isnan(wide)).double()).clamp(min=1)
        mean = total(lambda wide: wide) / count
        deviation = (total(lambda wide: (wide - mean) ** 2) / count).sqrt()[0]
        constant = deviation <= 1e-12 * mean[0].abs().clamp(min=1e-30)
        self.mean.copy_(mean[0])
        self.scale.copy_(torch.where(constant, 1.0, deviation))

    @property
    def ladj(self) -> Tensor:
        """ln|d(output)/d(input)|, a scalar."""
        return -self.scale.log().expand(self._shape).sum()

    def forward(self, data: Tensor) -> Tensor:
        """Standardise data ``(*, *shape)``; NaN stays NaN."""
        return (data - self.mean) / self.scale

    def inverse(self, data: Tensor) -> Tensor:
        """Undo `forward`."""
        return data * self.scale + self.mean


def _moments(data: Tensor, present: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what is present along the axes, the first of which goes."""
    count = present.sum(axes, keepdim=True).clamp(min=1)
    mean = torch.where(present, data, 0.0).sum(axes, keepdim=True) / count
    variance = torch.where(present, (data - mean) ** 2, 0.0).sum(axes, keepdim=True) / count
    return mean[0], variance.sqrt()[0]


class IntoBox(nn.Module):
    r"""Squeeze some dimensions of standardised data into [-B, B]: $v = B\,\tanh(0.85\,z)$; the others stay.

    What is uniform on the box is logistic in z, with about the width of a standard normal; its exponential tails keep
    what lies up to ten standard deviations out apart in single precision.

    Args:
        bound: B.
        squeezed: which of the D dimensions, boolean ``(D,)``.
    """

    open: Tensor

    def __init__(self, bound: float, squeezed: Tensor) -> None:
        super().__init__()
        self.bound = bound
        self.register_buffer("open", squeezed.clone(), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """V ``(n, D)``, and the log-determinant ``(n,)``."""
        wide = _STEEPNESS * z.double()
        squeezed = (self.bound * torch.tanh(wide)).to(z)
        return torch.where(self.open, squeezed, z), self._ladj(wide).to(z)

    def inverse(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `forward`: z ``(n, D)``, and the log-determinant of that ``(n,)``."""
        # The edge of the box is infinitely far away: what rounds to it stands for the last number before.
        inside = (torch.where(self.open, v, 0.0).double() / self.bound).clamp(_NEAR_EDGE - 1, 1 - _NEAR_EDGE)
        wide = torch.atanh(inside)
        return torch.where(self.open, (wide / _STEEPNESS).to(v), v), -self._ladj(wide).to(v)

    def _ladj(self, wide: Tensor) -> Tensor:
        slope = math.log(4 * self.bound * _STEEPNESS) - 2 * wide.abs() - 2 * torch.log1p(torch.exp(-2 * wide.abs()))
        return torch.where(self.open, slope, 0.0).sum(-1)


class Whiten(Scaling):
    """Standardise, then remove the correlations between all entries of a context.

    With fewer than 20 events for each feature it only standardises.

    Args:
        shape: the shape of one context; it is whitened as a flat vector.
    """

    rotation: Tensor

    def __init__(self, shape: torch.Size | tuple[int, ...]) -> None:
        super().__init__()
        self.standardise = Standardise(shape)
        self.register_buffer("rotation", torch.eye(torch.Size(shape).numel()))

    def fit(self, data: Rows) -> "Whiten":
        """Learn means, scales and correlations from data ``(n, *shape)``, in double precision."""
        self.standardise.fit(data)
        if len(data) < _EVENTS_PER_FEATURE * len(self.rotation):
            return self
        mean, scale = self.standardise.mean.double(), self.standardise.scale.double()
        product = torch.zeros(2 * (len(self.rotation),), dtype=torch.float64)
        for part in row_parts(data):
            flat = ((part.double() - mean) / scale).flatten(1)
            product += (flat.T @ flat).to(product.device)
        eigenvalues, vectors = torch.linalg.eigh(product / len(data))
        # A constant feature has no variance, and a linear combination may have none: those stay as they are.
        alive = eigenvalues > _SMALLEST_EIGENVALUE * eigenvalues.max()
        root = torch.where(alive, eigenvalues, 1.0).rsqrt()
        self.rotation.copy_((vectors * root) @ vectors.T)
        return self

    def forward(self, data: Tensor) -> Tensor:
        """Whiten data ``(*, *shape)``."""
        shape = self.standardise.mean.shape
        flat = self.standardise(data).reshape(*data.shape[: data.ndim - len(shape)], len(self.rotation))
        return (flat @ self.rotation).reshape(data.shape)


class ParameterScaling(Scaling):
    """Standardise parameters, those with a single finite bound after the logarithm of their distance from it.

    Args:
        bounds: ``(P, 2)`` of the parameters; infinite where there is none.
    """

    origin: Tensor
    sign: Tensor
    half_bounded: Tensor

    def __init__(self, bounds: Tensor) -> None:
        super().__init__()
        low, high = bounds.unbind(-1)
        half = low.isfinite() != high.isfinite()
        self.register_buffer("half_bounded", half)
        self.register_buffer("origin", torch.where(half, torch.where(low.isfinite(), low, high), 0.0).float())
        self.register_buffer("sign", torch.where(half & high.isfinite(), -1.0, 1.0).float())
        self.standardise = Standardise((len(bounds),))

    def fit(self, data: Rows) -> "ParameterScaling":
        """Learn means and scales from parameters ``(n, P)``."""
        self.standardise.fit(row_parts(data).map(self._unbounded, self.origin.shape))
        return self

    def forward(self, data: Tensor) -> Tensor:
        """Scale parameters ``(*, P)``."""
        return self.standardise(self._unbounded(data).to(self.origin.dtype))

    def _unbounded(self, data: Tensor) -> Tensor:
        distance = self.sign * (data - self.origin)
        tiny = torch.finfo(data.dtype).tiny
        return torch.where(self.half_bounded, distance.clamp(min=tiny).log(), data)


def scaled_rows(scaling: Scaling, data: Tensor | DiskRows, device: torch.device) -> Tensor | DiskRows:
    """Scale rows ``(n, *shape)``, in the same parts whether they are in memory or on the disk, where they stay."""
    return row_parts(data).map(lambda part: scaling(part.to(device)), data.shape[1:]).stored(device)
