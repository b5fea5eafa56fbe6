r"""Tests of accuracy with random points (TARP): a joint check of all parameters that needs no density.

For a pair (theta, x) and a reference point r, chosen without a look at theta, the ball about r that just takes in theta
is a credible region of the posterior; its credibility u is the share of posterior draws inside it.  If the posterior is
right, u is uniform on [0, 1] wherever r lies (Lemos et al. 2023, arXiv:2302.03026), and the coverage at c, the share of
u at or below c, is c.  Here

* distances are measured in the whitened coordinates of each pair (mean and covariance of draws and truth together), so
  that narrow directions count as much as wide ones;
* several reference points are drawn for each pair, from a Gaussian twice as wide as the posterior;
* the p-values are exact although the u of one pair belong together: if the posterior is right, the truth is one more
  draw, and any draw may stand in for it.  Statistics of the truths are compared with those of such stand-ins.

Two statistics are tested.  The largest distance between coverage and c sees widths and shapes that are wrong.  A bias
pushes u down for reference points on one side and up on the other, which cancels in that curve; it is seen by the mean
of $(1/2 - u)\,e_p$, where e is the direction from the centre to r, in standard deviations of each parameter p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import derive, numpy_generator
from sbi_physics.core.validity import Failed
from sbi_physics.diagnostics.draws import posterior_draws
from sbi_physics.diagnostics.uniformity import (
    LEVELS,
    ONE_SIGMA,
    checked_level,
    checked_levels,
    checked_pairs,
    left_out,
    parameter_names,
)
from sbi_physics.diagnostics.whitening import whiten, whitening

__all__ = ["RandomPointCoverage", "tarp", "tarp_from_samples"]

Array = np.ndarray[Any, Any]

_REFERENCES = 16
_REFERENCE_WIDTH = 2.0
_FEWEST_STAND_INS = 999
_SMALLEST_LEVEL = 1e-4
_PAIRS_AT_ONCE = 256
_NOTICEABLE = 2.0


@dataclass(frozen=True)
class RandomPointCoverage:
    """Coverage of credible regions about random points, over N pairs of theta and x.

    Attributes:
        names: P names.
        levels: M credibility levels, ``(M,)``.
        coverage: share of regions of that level that hold the truth, ``(M,)``.
        error: its standard deviation, ``(M,)``; pairs are independent, the regions of one pair are not.
        credibility: level at which the region just takes in the truth, ``(N, R)`` for R reference points.
        statistic: the largest distance between coverage and level.
        band: how large that distance may be before a posterior flunks.
        curve_p_value: of that distance.
        bias: significance of a bias of each parameter in standard deviations, ``(P,)``; positive where the truth lies
            above the posterior.
        bias_p_value: of the largest of them.
        level: the probability that a calibrated posterior flunks.
        kind: ``calibrated``, ``over-confident``, ``under-confident``, ``biased``, or ``miscalibrated`` where it is none
            of these.
        failed: simulations that were left out.
    """

    names: tuple[str, ...]
    levels: Tensor
    coverage: Tensor
    error: Tensor
    credibility: Tensor
    statistic: float
    band: float
    curve_p_value: float
    bias: Tensor
    bias_p_value: float
    level: float
    kind: str
    failed: int = 0

    @property
    def p_value(self) -> float:
        """Probability of credibilities as far from uniform as these."""
        return min(1.0, 2 * min(self.curve_p_value, self.bias_p_value))

    @property
    def passed(self) -> bool:
        """Whether the posterior is not significantly miscalibrated."""
        return self.kind == "calibrated"

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        return self._sentence() + left_out(self.failed)

    def _sentence(self) -> str:
        if self.passed:
            return (
                f"calibrated about random points: p-value {self.p_value:.2g} over {len(self.credibility)} simulations"
            )
        if self.kind == "biased":
            return "biased: the posterior lies " + " and ".join(self._sides())
        inside, error = (100 * float(v) for v in _share(self.credibility, torch.tensor([ONE_SIGMA]).double()))
        return f"{self.kind}: 68 % regions about random points cover {inside:.0f} ± {error:.0f} %"

    def _sides(self) -> list[str]:
        # The bias of one parameter shows, more weakly, in those that are correlated with it.
        large = self.bias.abs() >= max(0.5 * float(self.bias.abs().max()), _NOTICEABLE)
        sides = []
        for side, there in (("above", self.bias < 0), ("below", self.bias > 0)):
            found = (large & there).nonzero()[:, 0].tolist()
            names = ", ".join(f"{self.names[i]} ({float(self.bias[i].abs()):.1f} sigma)" for i in found)
            sides += [f"{side} the truth in {names}"] if found else []
        return sides


def tarp(
    posterior: Any,
    theta: Any,
    x: Any,
    *,
    draws: int = 256,
    references: Any = _REFERENCES,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    level: float = 0.01,
    chunk: int | None = None,
    failed: Failed = "refuse",
    missing: bool = False,
    progress: bool = False,
) -> RandomPointCoverage:
    """Test a posterior with random points, as `sbc` with the arguments of `tarp_from_samples`."""
    _stand_ins(level)
    made = posterior_draws(
        posterior, theta, x, draws=draws, seed=seed, chunk=chunk, failed=failed, missing=missing, progress=progress
    )
    result = tarp_from_samples(
        made.samples, made.theta, made.names, references=references, levels=levels, level=level, seed=seed
    )
    return replace(result, failed=made.failed)


def tarp_from_samples(
    samples: Any,
    theta: Any,
    names: Sequence[str] | None = None,
    *,
    references: Any = _REFERENCES,
    levels: Sequence[float] = LEVELS,
    level: float = 0.01,
    seed: int = 0,
) -> RandomPointCoverage:
    """Test posterior draws with random points.

    Args:
        samples: ``(N, L, P)`` posterior draws, L for each pair.
        theta: ``(N, P)`` true parameters.
        names: P names; theta_0, ... where None.
        references: how many points are drawn for each pair, R; or the points, ``(R, P)`` for all pairs alike or
            ``(N, R, P)``, which must not depend on the truths.
        levels: credibility levels in (0, 1).
        level: the probability that a calibrated posterior flunks, at least 0.0001.
        seed: of the reference points, of ties and of the stand-ins.

    Raises:
        ShapeError: the shapes do not fit, or N is below 10.
        NonFiniteError: a number is NaN or infinite.
        UsageError: an argument is out of range.
    """
    draws, truth = checked_pairs(samples, theta)
    labels = parameter_names(names, truth.shape[1])
    at, stand_ins = checked_levels(levels), _stand_ins(level)
    regions = _regions(draws, truth, references, seed)
    n, members, _ = regions.ranks.shape
    random = numpy_generator(derive(seed, "stand-ins"))
    picked = (random.integers(0, members, n) for _ in range(stand_ins))
    null = np.stack([_statistics(regions, index) for index in picked])
    found = _statistics(regions, np.zeros(n, dtype=int))
    scatter = np.maximum(null.std(0), 1e-300)
    scores, null_scores = (found - null.mean(0)) / scatter, (null - null.mean(0)) / scatter
    curve_p = _p_value(found[0], null[:, 0])
    bias_p = _p_value(np.abs(scores[3:]).max(), np.abs(null_scores[:, 3:]).max(1))
    spread = numpy_generator(derive(seed, "spread")).random((n, regions.ranks.shape[2]))
    credibility = torch.as_tensor((regions.ranks[:, 0] + spread) / members)
    coverage, error = _share(credibility, at)
    return RandomPointCoverage(
        labels,
        at,
        coverage,
        error,
        credibility,
        float(found[0]),
        float(np.quantile(null[:, 0], 1 - level / 2, method="higher")),
        curve_p,
        torch.as_tensor(scores[3:]),
        bias_p,
        level,
        _kind(curve_p, bias_p, scores, level),
    )


class _Regions(NamedTuple):
    """How near truth and draws are to the reference points.

    Attributes:
        ranks: number of other members nearer to the point, ``(N, L + 1, R)``; member 0 is the truth.
        directions: from the centre to the points, ``(N * R, P)`` unit vectors in standard deviations.
    """

    ranks: Array
    directions: Array


def _regions(draws: Tensor, truth: Tensor, references: Any, seed: int) -> _Regions:
    given = None if isinstance(references, int | np.integer) else _checked_references(references, *truth.shape)
    count = positive_integer(references, "references") if given is None else given.shape[-2]
    n, dims = truth.shape
    members = draws.shape[1] + 1
    ranks = np.empty((n, members, count), dtype=np.uint16 if members <= np.iinfo(np.uint16).max else np.int32)
    directions = np.empty((n, count, dims))
    for i, start in enumerate(range(0, n, _PAIRS_AT_ONCE)):
        block = slice(start, start + _PAIRS_AT_ONCE)
        random = numpy_generator(derive(seed, "references", i))
        together = torch.cat([truth[block].unsqueeze(1), draws[block]], 1).numpy()
        factor, mean = whitening(together)
        white = whiten(together, factor, mean)
        if given is None:
            points = _REFERENCE_WIDTH * random.standard_normal((len(together), count, dims))
        else:
            points = whiten(given[block] if given.ndim == 3 else given[None], factor, mean)
        ranks[block] = _ranks(white, points, random)
        offset = np.einsum("npq,nrq->nrp", factor, points) / np.linalg.norm(factor, axis=2)[:, None]
        directions[block] = offset / np.maximum(np.linalg.norm(offset, axis=2, keepdims=True), 1e-300)
    return _Regions(ranks, directions.reshape(n * count, dims))


def _ranks(white: Array, points: Array, random: np.random.Generator) -> Array:
    """Number of other members nearer to each point, ``(n, L + 1, R)``; ties are broken at random."""
    distance = np.square(white).sum(2)[:, :, None] - 2 * np.einsum("nlp,nrp->nlr", white, points)
    shuffled = random.random(white.shape[:2]).argsort(1)[:, :, None]
    order = np.take_along_axis(distance, shuffled, 1).argsort(1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, np.take_along_axis(np.broadcast_to(shuffled, order.shape), order, 1), _counting(order), 1)
    return ranks


def _counting(order: Array) -> Array:
    return np.broadcast_to(np.arange(order.shape[1])[None, :, None], order.shape)


def _statistics(regions: _Regions, index: Array) -> Array:
    """Statistics ``(3 + P,)`` where member `index` ``(N,)`` of each pair stands for the truth.

    The distance between coverage and credibility; how far out the truth is; how near the ends; the bias of each
    parameter.
    """
    ranks = regions.ranks[np.arange(len(index)), index].ravel().astype(np.int64)
    members = regions.ranks.shape[1]
    counts = np.bincount(ranks, minlength=members)
    distance = np.abs(counts.cumsum() / len(ranks) - np.arange(1, members + 1) / members).max()
    middle = (ranks + 0.5) / members - 0.5
    return np.array([distance, middle.mean(), np.abs(middle).mean(), *(-middle @ regions.directions / len(ranks))])


def _p_value(found: float, null: Array) -> float:
    # The truths are one of the equally likely choices, hence the ones.
    return float((1 + (null >= found - 1e-12).sum()) / (1 + len(null)))


def _kind(curve_p: float, bias_p: float, scores: Array, level: float) -> str:
    if 2 * min(curve_p, bias_p) >= level:
        return "calibrated"
    outwards = scores[1] if abs(scores[1]) > abs(scores[2]) else scores[2]
    if (bias_p, -np.abs(scores[3:]).max()) < (curve_p, -abs(outwards)):
        return "biased"
    if abs(outwards) < _NOTICEABLE:
        return "miscalibrated"
    return "over-confident" if outwards > 0 else "under-confident"


def _share(credibility: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage ``(M,)`` and its standard deviation, for regions of which those of one pair belong together."""
    inside = (credibility.unsqueeze(0) <= levels[:, None, None]).double().mean(2)
    n = inside.shape[1]
    # Never zero, as for a binomial share: as if one more pair were half in.
    return inside.mean(1), torch.sqrt((inside.var(1) * (n - 1) + 0.25) / n / n)


def _stand_ins(level: float) -> int:
    if checked_level(level) < _SMALLEST_LEVEL:
        raise UsageError(f"level: expected at least {_SMALLEST_LEVEL:g} in a test by resampling, got {level!r}")
    return max(_FEWEST_STAND_INS, math.ceil(4 / level) - 1)


def _checked_references(references: Any, n: int, dims: int) -> Array:
    points = finite(as_tensor(references, "references", dtype=torch.float64).cpu(), "references").numpy()
    if points.shape[-1:] != (dims,) or points.ndim not in (2, 3) or (points.ndim == 3 and len(points) != n):
        raise ShapeError(f"references: expected a number, (R, {dims}) or ({n}, R, {dims}), got {points.shape}")
    if not points.size:
        raise ShapeError(f"references: expected at least one point, got {points.shape}")
    return points
