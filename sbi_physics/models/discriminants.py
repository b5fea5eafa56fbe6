r"""Coordinates of an observation that its parameters move, as far as a linear map can find them.

Of a spectrum of hundreds of noisy numbers a few combinations tell of the parameters; in all others a network finds
nothing but accidents of its training set, and believes them.  With the features $f(x)$, each entry standardised and its
square, and functions $u(\theta)$ of the parameters, ridge regression of f on u gives the covariance of what theta
explains, B, and that of the rest, W.  The generalised eigenvectors

$$B d_k = \lambda_k W d_k$$

are Fisher's discriminants, for a continuum of classes: the directions of largest signal over noise.  Where the noise is
normal and of one covariance, those with $\lambda_k > 0$ hold all that x says of theta; squares add what it says by the
size of the noise.  Accidents reach $\lambda \approx (\sqrt F + \sqrt U)^2 / N$ for F features, U functions and N events
(the edge of the spectrum of random matrices; Marchenko and Pastur 1967); what is not four times above it is left out.

What no average of a feature shows is lost, as the frequency of a wave of random phase: whoever uses these coordinates
has to see that those held out are fitted better than with the whole observation.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import seeded
from sbi_physics.models.scaling import Scaling, Standardise
from sbi_physics.store.row_parts import Rows, row_parts

__all__ = ["MOST_COORDINATES", "MOST_ENTRIES", "Discriminants"]

MOST_COORDINATES = 48
"""How many coordinates there are at most."""

MOST_ENTRIES = 1024
"""Entries of an observation up to which they are looked for."""

# Of each scale: how fast they go, in standard deviations of a parameter.
_WAVES, _SCALES = 150, (1.0, 2.5)
_MOST_PRODUCTS = 300
_RIDGE = 1e-3
_ABOVE_CHANCE = 4.0
_LARGEST_SHRINKAGE = 0.5
# Entries beyond so many standard deviations count less and less, as their squares do.
_BEND, _THETA_BEND = 10.0, 3.0
_LOOKED_AT = 50_000


class Discriminants(Scaling):
    """The coordinates of signal over noise, in front, and zeros: the shape of the data stays.

    Args:
        shape: of one observation.

    Attributes:
        found: how many coordinates there are, 0 before `fit_given`.
    """

    centre: Tensor
    directions: Tensor
    found: Tensor

    def __init__(self, shape: torch.Size | tuple[int, ...]) -> None:
        super().__init__()
        self.standardise = Standardise(shape)
        entries = torch.Size(shape).numel()
        self.register_buffer("centre", torch.zeros(2 * entries))
        self.register_buffer("directions", torch.zeros(2 * entries, min(entries, MOST_COORDINATES)))
        self.register_buffer("found", torch.zeros((), dtype=torch.int64))

    def fit(self, data: Rows) -> "Discriminants":
        """Refuse data without their parameters.

        Raises:
            UsageError: always.
        """
        raise UsageError("embedding: 'discriminant' is for a posterior network of observations that are one array")

    def fit_given(self, data: Rows, theta: Tensor) -> "Discriminants":
        """Learn from data ``(n, *shape)`` and their parameters ``(n, P)``, in double precision; returns itself."""
        self.standardise.fit(data)
        functions = _functions(theta)
        events, width, kinds = len(functions), len(self.centre), functions.shape[1]
        total, square = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
        joint, start = torch.zeros(kinds, width, dtype=torch.float64), 0
        for part in row_parts(data):
            features = self._features(part).double().cpu()
            total += features.sum(0)
            square += features.T @ features
            joint += functions[start : start + len(part)].T @ features
            start += len(part)
        mean = total / events
        covariance = square / events - torch.outer(mean, mean)
        values, vectors = _signal_over_noise(
            covariance, joint / events, functions.T @ functions / events, width / events
        )
        chance = (math.sqrt(width) + math.sqrt(kinds)) ** 2 / events
        found = int((values > _ABOVE_CHANCE * chance).sum().clamp(1, self.directions.shape[1]))
        self.found.fill_(found)
        self.centre.copy_(mean)
        self.directions.zero_()
        self.directions[:, :found] = (vectors[:, :found] / (1 + values[:found]).sqrt()).to(self.directions)
        return self

    def forward(self, data: Tensor) -> Tensor:
        """Coordinates of data ``(*, *shape)``, of standard deviation one in the training data, and zeros."""
        shape = self.standardise.mean.shape
        batch = data.shape[: data.ndim - len(shape)]
        rows = data.reshape(-1, *shape)
        coordinates = (self._features(rows) - self.centre) @ self.directions
        spare = len(self.centre) // 2 - coordinates.shape[-1]
        return torch.nn.functional.pad(coordinates, (0, spare)).reshape(*batch, *shape)

    def _features(self, rows: Tensor) -> Tensor:
        """Entries and their squares, standardised: ``(n, 2 D)``."""
        flat = self.standardise(rows).flatten(1)
        return torch.cat([_BEND * torch.asinh(flat / _BEND), _BEND * torch.log1p(flat.square() / _BEND)], 1)


def _functions(theta: Tensor) -> Tensor:
    """Functions ``(n, U)`` of parameters ``(n, P)``, float64 of mean zero: powers and waves, bent far out."""
    dims = theta.shape[1]
    rows = theta.double().cpu()
    low, middle, high = rows[:_LOOKED_AT].quantile(torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64), 0)
    spread = torch.where(high > low, (high - low) / 2, 1.0)
    places = _THETA_BEND * torch.asinh((rows - middle) / (_THETA_BEND * spread))
    places = (places - places.mean(0)) / places.std(0).clamp(min=1e-12)
    first, second = _products(dims)
    with seeded(0):
        waves = torch.cat([scale * torch.randn(dims, _WAVES) for scale in _SCALES], 1).double()
        phases = 2 * math.pi * torch.rand(waves.shape[1]).double()
    found = torch.cat([places, places[:, first] * places[:, second], torch.cos(places @ waves + phases)], 1)
    return found - found.mean(0)


def _products(dims: int) -> tuple[Sequence[int], Sequence[int]]:
    """Pairs of parameters: all, or each with itself where these are too many."""
    first, second = torch.triu_indices(dims, dims).tolist()
    return (first, second) if len(first) <= _MOST_PRODUCTS else (range(dims), range(dims))


def _signal_over_noise(covariance: Tensor, joint: Tensor, functions: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues in falling order and vectors, with unit noise, of what functions explain of features.

    Args:
        covariance: of the features ``(F, F)``.
        joint: of functions and features ``(U, F)``.
        functions: covariance of the functions ``(U, U)``.
        share: of features in events, by which the correlations of the noise are shrunk.
    """
    ridge = _RIDGE * torch.eye(len(functions), dtype=torch.float64)
    slopes = torch.linalg.solve(functions + ridge, joint)
    explained = slopes.T @ functions @ slopes
    noise = covariance - slopes.T @ joint - joint.T @ slopes + explained
    variances = noise.diagonal().clamp(min=0)
    shrinkage = min(_LARGEST_SHRINKAGE, share)
    least = 1e-6 * float(variances.mean().clamp(min=1e-6))
    noise = (1 - shrinkage) * noise + torch.diag(shrinkage * variances + least)
    root = torch.linalg.cholesky(noise)
    half = torch.linalg.solve_triangular(root, explained, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.T, upper=False)
    values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    vectors = torch.linalg.solve_triangular(root.T, vectors.flip(1), upper=True)
    return values.flip(0).clamp(min=0), vectors
