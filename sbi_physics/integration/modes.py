"""Where an integrand is: a cloud of points of |f|, its clusters, and a mixture of grids that covers them."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Independent, Uniform

from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive
from sbi_physics.integration.channels import Channel, GridChannel, Map, Mixture
from sbi_physics.integration.evaluation import Evaluations
from sbi_physics.integration.grid import ProductGrid
from sbi_physics.integration.nets import scrambled_nets
from sbi_physics.sampling.smc import tempered_smc

__all__ = ["around", "channels_of", "cover", "explore", "joined", "refit", "search"]

_CLUSTERS = (1, 2, 3, 4, 6, 8)
_FOR_CLUSTERS = 4000
_STEPS = 3
_UNIFORM = 0.02
_LEAST_SHARE = 0.01
_BETTER = 2.0
_BLOCK = 1 << 14
_WALKERS, _WALK = 500, 60
_LENGTHS = math.log(1e-6)


def explore(function: Evaluations, *, seed: int, max_calls: int | None = None) -> Tensor:
    """Points ``(n, D)`` distributed as |f|, by tempered sequential Monte Carlo from the uniform distribution.

    Raises:
        ConvergenceError: f is zero wherever it was looked at.
        BudgetError: the budget ended before the end of the annealing.
    """
    dims = function.dims
    cube = Parameters.from_prior(Independent(Uniform(torch.zeros(dims), torch.ones(dims)), 1))
    particles = max(1000, 100 * dims)
    found = tempered_smc(
        lambda u: function(u).abs().log(), cube, particles, particles=particles, seed=seed, max_calls=max_calls
    )
    return torch.as_tensor(found.values).double().clamp(0, 1)


def search(function: Evaluations, wanted: int, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Uniform points at which f is not zero, ``(k, D)``, with |f| there ``(k,)``, until there are enough of them.

    Args:
        function: f.
        wanted: points to find.
        most: calls to spend.
        seed: of the points.
    """
    points, values = [torch.zeros(0, function.dims, dtype=torch.float64)], [torch.zeros(0, dtype=torch.float64)]
    found = spent = 0
    while found < wanted and spent + _BLOCK <= most:
        block = scrambled_nets(_BLOCK, function.dims, 1, derive(seed, spent))[0]
        sizes = function(block).abs()
        points.append(block[sizes > 0])
        values.append(sizes[sizes > 0])
        found, spent = found + len(points[-1]), spent + _BLOCK
    return torch.cat(points), torch.cat(values)


def around(function: Evaluations, start: Tensor, *, seed: int) -> Tensor:
    """Points ``(n, D)`` of |f| near a point ``(D,)``, by random walks whose steps have all lengths.

    The walks do not leave a peak that is far from others, and so tell where it ends.
    """
    random = torch.Generator().manual_seed(derive(seed, "around"))
    place = start.expand(_WALKERS, -1).clone()
    value = function(place[:1]).abs().expand(_WALKERS)
    for _ in range(_WALK):
        length = torch.exp(torch.rand((_WALKERS, 1), generator=random, dtype=torch.float64) * _LENGTHS)
        step = torch.randn(place.shape, generator=random, dtype=torch.float64) * length * 0.3
        trial = place + step
        inside = ((trial > 0) & (trial < 1)).all(1)
        there = torch.zeros_like(value)
        there[inside] = function(trial[inside]).abs()
        moved = torch.rand(_WALKERS, generator=random, dtype=torch.float64) * value < there
        place, value = torch.where(moved.unsqueeze(1), trial, place), torch.where(moved, there, value)
    return place


def joined(mixture: Mixture, points: Tensor, share: float) -> Mixture:
    """A mixture with one more grid, of a share, fitted to points ``(n, D)``; the uniform channel stays last."""
    flat = GridChannel(ProductGrid.uniform(mixture.dims))
    fresh = flat.fitted(points, torch.ones(len(points), dtype=torch.float64))
    shares = torch.cat(
        [mixture.shares[:-1] * (1 - share) / mixture.shares[:-1].sum(), mixture.shares.new_tensor([share])]
    )
    return _with_uniform((*mixture.maps[:-1], fresh), shares)


def cover(points: Tensor, weights: Tensor, *, seed: int = 0, clusters: tuple[int, ...] = _CLUSTERS) -> Mixture:
    """A mixture of product grids, and a little of the uniform density, fitted to weighted points.

    The number of grids is the smallest whose density of other points is not clearly worse than that of more.

    Args:
        points: ``(n, D)``.
        weights: not negative, ``(n,)``.
        seed: of the clusters.
        clusters: numbers of grids to try.
    """
    random = torch.Generator().manual_seed(derive(seed, "halves"))
    half = torch.rand(len(points), generator=random) < 0.5
    best, best_scores = None, None
    for count in clusters:
        labels = _labels(points, weights, count, seed)
        if labels is None:
            break
        found = _fitted(points[half], weights[half], labels[half], count)
        scores = found.log_prob(points[~half])
        if best_scores is not None and not _better(scores - best_scores, weights[~half]):
            continue
        best, best_scores = count, scores
    chosen = best or 1
    labels = _labels(points, weights, chosen, seed)
    return _fitted(points, weights, torch.zeros(len(points), dtype=torch.long) if labels is None else labels, chosen)


def refit(mixture: Mixture, points: Tensor, weights: Tensor, steps: int = 1) -> Mixture:
    """Fit the grids and the shares of a mixture, whose last channel is the uniform one, to weighted points."""
    for _ in range(steps):
        joint = mixture.log_joint(points)
        belongs = torch.exp(joint - joint.logsumexp(1, keepdim=True)) * weights.unsqueeze(1)
        maps = tuple(
            each.fitted(points, part) if isinstance(each, GridChannel) and float(part.sum()) > 0 else each
            for each, part in zip(mixture.maps[:-1], belongs.T, strict=False)
        )
        mixture = _with_uniform(maps, belongs.sum(0)[:-1])
    return mixture


def channels_of(channels: Sequence[Channel]) -> Mixture:
    """A mixture of a user's channels in equal shares, and a little of the uniform density."""
    maps = tuple(GridChannel(ProductGrid.uniform(each.dims), each) for each in channels)
    return _with_uniform(maps, torch.ones(len(maps), dtype=torch.float64))


def _with_uniform(maps: tuple[Map, ...], shares: Tensor) -> Mixture:
    shares = (shares / shares.sum()).clamp(min=_LEAST_SHARE)
    shares = (1 - _UNIFORM) * shares / shares.sum()
    flat = ProductGrid.uniform(maps[0].dims)
    return Mixture((*maps, flat), torch.cat([shares, shares.new_tensor([_UNIFORM])]))


def _fitted(points: Tensor, weights: Tensor, labels: Tensor, count: int) -> Mixture:
    flat = GridChannel(ProductGrid.uniform(points.shape[1]))
    parts = [weights * (labels == c) for c in range(count)]
    maps = tuple(flat.fitted(points, part) if float(part.sum()) > 0 else flat for part in parts)
    shares = torch.stack([part.sum() for part in parts])
    return refit(_with_uniform(maps, shares), points, weights, _STEPS if count > 1 else 0)


def _labels(points: Tensor, weights: Tensor, count: int, seed: int) -> Tensor | None:
    """Clusters of the points by a mixture of normals with diagonal covariances; None where there are too few points."""
    if count == 1:
        return torch.zeros(len(points), dtype=torch.long)
    effective = float(weights.sum().square() / weights.square().sum())
    if effective < 20 * count:
        return None
    random = np.random.default_rng(derive(seed, "clusters", count))
    share = (weights / weights.sum()).numpy()
    rows = random.choice(len(points), size=min(_FOR_CLUSTERS, math.ceil(effective)), p=share)
    normals = GaussianMixture(
        count, covariance_type="diag", reg_covar=1e-12, random_state=int(random.integers(1 << 31))
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            normals.fit(points[rows].numpy())
    except (ConvergenceWarning, ValueError):
        # Fewer different points than clusters, or clusters that no iteration settles.
        return None
    return torch.as_tensor(normals.predict(points.numpy())).long()


def _better(gain: Tensor, weights: Tensor) -> bool:
    """Whether the weighted mean of a gain in log-density is above zero by so many standard errors, and not tiny."""
    share = weights / weights.sum()
    mean = (share * gain).sum()
    error = (share.square() * (gain - mean).square()).sum().sqrt()
    return bool(mean > _BETTER * error) and float(mean) > 0.01
