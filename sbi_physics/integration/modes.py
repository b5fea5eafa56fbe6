"""Where an integrand is: a cloud of points of |f|, its clusters, and a mixture of grids that covers them."""

import math
from collections.abc import Callable

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Independent, Uniform

from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive
from sbi_physics.integration.channels import Mixture
from sbi_physics.integration.grid import ProductGrid
from sbi_physics.sampling.smc import tempered_smc

__all__ = ["cover", "explore", "refit"]

_CLUSTERS = (1, 2, 3, 4, 6, 8)
_FOR_CLUSTERS = 4000
_STEPS = 3
_UNIFORM = 0.02
_LEAST_SHARE = 0.01
_BETTER = 2.0


def explore(function: Callable[[Tensor], Tensor], dims: int, *, seed: int, max_calls: int | None = None) -> Tensor:
    """Points ``(n, D)`` distributed as |f|, by tempered sequential Monte Carlo from the uniform distribution.

    Raises:
        ConvergenceError: f is zero wherever it was looked at.
        BudgetError: the budget ended before the end of the annealing.
    """
    cube = Parameters.from_prior(Independent(Uniform(torch.zeros(dims), torch.ones(dims)), 1))
    particles = max(1000, 100 * dims)
    found = tempered_smc(
        lambda u: function(u).abs().log(), cube, particles, particles=particles, seed=seed, max_calls=max_calls
    )
    return torch.as_tensor(found.values).double().clamp(0, 1)


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
            each.fitted(points, part) if isinstance(each, ProductGrid) and float(part.sum()) > 0 else each
            for each, part in zip(mixture.maps[:-1], belongs.T, strict=False)
        )
        mixture = _with_uniform(maps, belongs.sum(0)[:-1])
    return mixture


def _with_uniform(maps: tuple[ProductGrid, ...], shares: Tensor) -> Mixture:
    shares = (shares / shares.sum()).clamp(min=_LEAST_SHARE)
    shares = (1 - _UNIFORM) * shares / shares.sum()
    flat = ProductGrid.uniform(maps[0].dims)
    return Mixture((*maps, flat), torch.cat([shares, shares.new_tensor([_UNIFORM])]))


def _fitted(points: Tensor, weights: Tensor, labels: Tensor, count: int) -> Mixture:
    flat = ProductGrid.uniform(points.shape[1])
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
    normals = GaussianMixture(count, covariance_type="diag", reg_covar=1e-12, random_state=int(random.integers(1 << 31)))
    normals.fit(points[rows].numpy())
    return torch.as_tensor(normals.predict(points.numpy())).long()


def _better(gain: Tensor, weights: Tensor) -> bool:
    """Whether the weighted mean of a gain in log-density is above zero by so many standard errors, and not tiny."""
    share = weights / weights.sum()
    mean = (share * gain).sum()
    error = (share.square() * (gain - mean).square()).sum().sqrt()
    return bool(mean > _BETTER * error) and float(mean) > 0.01
