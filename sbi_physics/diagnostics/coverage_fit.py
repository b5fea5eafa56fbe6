r"""Do sets cover everywhere?  Coverage as a function of the parameters.

A set of level c covers if it holds the truth in a share c of the experiments, *whatever* the truth is.  Coverage that
is right on the average over a prior may hide places where it is wrong.  Each of n simulated pairs says whether the set
of its x held its theta; a logistic regression of that on theta and its squares,

$$ P(\mathrm{covered}|\theta) = \sigma(\mathrm{logit}\,c + \beta_0 + \beta^T\theta + \theta^T B\,\theta), $$

is the map of the coverage (as in Dalmasso et al. 2021, arXiv:2107.03920), and the likelihood ratio between it and all
coefficients being zero tests that the coverage is c everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, same_length
from sbi_physics.core.errors import ShapeError, UsageError

__all__ = ["LocalCoverage", "local_coverage"]

_ROUNDS = 30
_RIDGE = 1e-6


@dataclass(frozen=True)
class LocalCoverage:
    """Coverage of sets over the parameters, from n simulated pairs, at M levels.

    Attributes:
        names: P names of the parameters.
        theta: ``(n, P)`` of the pairs.
        levels: ``(M,)``.
        covered: which sets hold the truth, boolean ``(M, n)``.
        coverage: share of all pairs, ``(M,)``.
        error: its binomial standard deviation, ``(M,)``.
        local: coverage at each theta by the regression, ``(M, n)``.
        local_error: its standard deviation, ``(M, n)``.
        p_values: of a coverage that is the level everywhere, ``(M,)``.
        level: the probability that sets which cover flunk, over all levels together.
    """

    names: tuple[str, ...]
    theta: Tensor
    levels: Tensor
    covered: Tensor
    coverage: Tensor
    error: Tensor
    local: Tensor
    local_error: Tensor
    p_values: Tensor
    level: float

    @property
    def passed(self) -> bool:
        """Whether the coverage is significantly off nowhere."""
        return bool((self.p_values >= self.level / len(self.levels)).all())

    def worst(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where the coverage is lowest: theta ``(M, P)``, the coverage there and its error ``(M,)``."""
        low, index = self.local.min(1)
        return self.theta[index], low, self.local_error.gather(1, index.unsqueeze(1)).squeeze(1)

    @property
    def verdict(self) -> str:
        """One plain sentence: the coverage of each level, and where it is worst if it is off."""
        texts = []
        where, low, low_error = self.worst()
        for i, at in enumerate(self.levels.tolist()):
            text = f"{at:.0%} sets cover {100 * self.coverage[i]:.1f} ± {100 * self.error[i]:.1f} %"
            if self.p_values[i] < self.level / len(self.levels):
                place = ", ".join(f"{n} = {v:.3g}" for n, v in zip(self.names, where[i].tolist(), strict=True))
                text += f", worst {100 * low[i]:.0f} ± {100 * low_error[i]:.0f} % at {place}"
            texts.append(text)
        if self.passed:
            return f"covers everywhere: {'; '.join(texts)}; smallest p-value {float(self.p_values.min()):.2g}"
        return f"does not cover everywhere: {'; '.join(texts)}"


def local_coverage(
    credibility: Any,
    theta: Any,
    names: Sequence[str] | None = None,
    *,
    levels: Sequence[float] = (0.68, 0.9),
    level: float = 0.01,
) -> LocalCoverage:
    """Measure the coverage of confidence or credible sets as a function of the parameters.

    Args:
        credibility: ``(n,)`` for each pair the level at which the set just takes in the truth: one minus the p-value of
            a confidence set, or the credibility of the highest-density region.
        theta: ``(n, P)`` the truth, drawn from any distribution over the parameter space.
        names: P names; theta_0, ... where None.
        levels: M levels of the sets.
        level: the probability that sets which cover flunk, over all levels together.

    Raises:
        ShapeError: the shapes do not fit, or there are fewer pairs than ten for each coefficient.
        NonFiniteError: a number is NaN or infinite.
        UsageError: a level is not in (0, 1), or the number of names is wrong.
    """
    at = finite(as_tensor(credibility, "credibility", dtype=torch.float64), "credibility").cpu()
    truth = finite(as_tensor(theta, "theta", dtype=torch.float64), "theta").cpu()
    if at.ndim != 1 or truth.ndim != 2:
        raise ShapeError(f"expected credibility (n,) and theta (n, P), got {tuple(at.shape)} and {tuple(truth.shape)}")
    same_length(credibility=at, theta=truth)
    n, dims = truth.shape
    labels = tuple(names) if names is not None else tuple(f"theta_{i}" for i in range(dims))
    if len(labels) != dims:
        raise UsageError(f"names: expected {dims}, one for each parameter, got {len(labels)}")
    wanted = torch.as_tensor(np.asarray(levels, dtype=np.float64)).reshape(-1)
    if not len(wanted) or not bool(((wanted > 0) & (wanted < 1)).all()) or not 0 < level < 1:
        raise UsageError(f"levels: expected probabilities in (0, 1), got {list(levels)} and {level!r}")
    features = _features(truth)
    if n < 10 * features.shape[1]:
        raise ShapeError(f"theta: expected at least {10 * features.shape[1]} pairs for {dims} parameters, got {n}")
    covered = at.unsqueeze(0) <= wanted.unsqueeze(1)
    fits = [_regression(features, rows, float(c)) for rows, c in zip(covered, wanted, strict=True)]
    local, local_error, p_values = (torch.stack(column) for column in zip(*fits, strict=True))
    coverage = covered.double().mean(1)
    smoothed = (coverage * n + 1) / (n + 2)
    error = torch.sqrt(smoothed * (1 - smoothed) / n)
    return LocalCoverage(labels, truth, wanted, covered, coverage, error, local, local_error, p_values, level)


def _features(theta: Tensor) -> Tensor:
    """One, theta and its products, standardised and without those that are combinations of others."""
    scaled = (theta - theta.mean(0)) / theta.std(0).clamp(min=1e-300)
    first, second = torch.triu_indices(theta.shape[1], theta.shape[1])
    columns = torch.cat([torch.ones(len(theta), 1, dtype=theta.dtype), scaled, scaled[:, first] * scaled[:, second]], 1)
    values, vectors = torch.linalg.eigh(columns.T @ columns / len(theta))
    alive = values > 1e-9 * values.max()
    return columns @ (vectors[:, alive] / values[alive].sqrt())


def _regression(features: Tensor, covered: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """Coverage by logistic regression ``(n,)``, its error ``(n,)``, and the p-value of the level everywhere."""
    from scipy.stats import chi2

    k = features.shape[1]
    hit = covered.double()
    offset = float(np.log(level / (1 - level)))
    coefficients = torch.zeros(k, dtype=torch.float64)
    ridge = _RIDGE * len(hit) * torch.eye(k, dtype=torch.float64)
    for _ in range(_ROUNDS):
        share = torch.sigmoid(offset + features @ coefficients)
        curvature = (features * (share * (1 - share)).unsqueeze(1)).T @ features + ridge
        step = torch.linalg.solve(curvature, features.T @ (hit - share) - ridge @ coefficients)
        # Far from the maximum Newton's step overshoots: where all rows agree there is none, and the ridge holds.
        coefficients = coefficients + step * (1.0 / step.norm().clamp(min=1.0))
        if float(step.norm()) < 1e-8:
            break
    logit = offset + features @ coefficients
    gained = 2 * (_log_likelihood(logit, hit) - _log_likelihood(torch.full_like(logit, offset), hit))
    share = torch.sigmoid(logit)
    covariance = torch.linalg.inv(curvature)
    spread = ((features @ covariance) * features).sum(1).sqrt()
    return share, share * (1 - share) * spread, torch.tensor(float(chi2.sf(float(gained), k)), dtype=torch.float64)


def _log_likelihood(logit: Tensor, hit: Tensor) -> Tensor:
    return (hit * torch.nn.functional.logsigmoid(logit) + (1 - hit) * torch.nn.functional.logsigmoid(-logit)).sum()
