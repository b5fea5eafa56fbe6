r"""Expected coverage: how often do credible regions hold the truth?

Over pairs of theta from the prior and x from the simulator, the credibility at which a region of a calibrated posterior
just takes in the truth is uniform on [0, 1]:

* for the central interval of one parameter it is $|2u - 1|$, u the rank of the truth among the draws
  (`diagnostics.calibration`);
* for the region of highest density it is the share of draws with a density above that of the truth.

Coverage at level c is the share of pairs whose credibility is at most c (Hermans et al. 2022, arXiv:2110.06581).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.random import derive
from sbi_physics.core.validity import Failed
from sbi_physics.diagnostics.calibration import sbc_ranks
from sbi_physics.diagnostics.draws import posterior_draws
from sbi_physics.diagnostics.uniformity import (
    LEVELS,
    ONE_SIGMA,
    binomial_error,
    checked_level,
    checked_levels,
    checked_pairs,
    kolmogorov_smirnov,
    left_out,
    parameter_names,
    spread_ranks,
)

__all__ = ["Coverage", "coverage", "expected_coverage", "highest_density_coverage"]


@dataclass(frozen=True)
class Coverage:
    """Expected coverage of credible regions over N pairs, for K kinds of regions (parameters, or one joint region).

    Attributes:
        names: K names: of parameters, or ``joint``.
        levels: M credibility levels, ``(M,)``.
        coverage: share of pairs whose region of that level holds the truth, ``(M, K)``.
        error: binomial standard deviation of the coverage, ``(M, K)``.
        credibility: level at which the region just takes in the truth, ``(N, K)``; uniform where calibrated.
        p_values: of uniform credibilities, ``(K,)``.
        level: the probability that a calibrated posterior flunks, over all K together.
        failed: simulations that were left out.
    """

    names: tuple[str, ...]
    levels: Tensor
    coverage: Tensor
    error: Tensor
    credibility: Tensor
    p_values: Tensor
    level: float
    failed: int = 0

    @property
    def passed(self) -> bool:
        """Whether no coverage is significantly off."""
        return bool((self.p_values >= self.level / len(self.names)).all())

    @property
    def verdict(self) -> str:
        """One plain sentence: which regions are over- or under-confident, or that none is."""
        n = len(self.credibility)
        if self.passed:
            text = f"calibrated: smallest p-value {float(self.p_values.min()):.2g} over {n} simulations"
        else:
            text = "; ".join(self._sentence(i) for i, kind in enumerate(self.kinds) if kind != "calibrated")
        return text + left_out(self.failed)

    @property
    def kinds(self) -> tuple[str, ...]:
        """For each of the K ``calibrated``, ``over-confident`` or ``under-confident``."""
        wrong = self.p_values < self.level / len(self.names)
        sides = ["over-confident" if mean > 0.5 else "under-confident" for mean in self.credibility.mean(0).tolist()]
        return tuple(side if wrong[i] else "calibrated" for i, side in enumerate(sides))

    def _sentence(self, i: int) -> str:
        inside = (self.credibility[:, i] <= ONE_SIGMA).double().mean()
        error = 100 * float(binomial_error(inside, len(self.credibility)))
        return f"{self.kinds[i]} in {self.names[i]}: 68 % regions cover {100 * float(inside):.0f} ± {error:.0f} %"


def expected_coverage(
    samples: Any,
    theta: Any,
    names: Sequence[str] | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    level: float = 0.01,
    seed: int = 0,
) -> Coverage:
    """Expected coverage of the central interval of each parameter.

    Args:
        samples: ``(N, L, P)`` posterior draws, L for each pair.
        theta: ``(N, P)`` true parameters.
        names: P names; theta_0, ... where None.
        levels: credibility levels in (0, 1).
        level: the probability that a calibrated posterior flunks, over all parameters together.
        seed: of the random part of the ranks.
    """
    draws, truth = checked_pairs(samples, theta)
    ranks = sbc_ranks(draws, truth, seed=derive(seed, "ties"))
    central = (2 * spread_ranks(ranks, draws.shape[1], derive(seed, "spread")) - 1).abs()
    return _coverage(central, parameter_names(names, truth.shape[1]), levels, level)


def highest_density_coverage(
    log_prob_samples: Any,
    log_prob_theta: Any,
    *,
    levels: Sequence[float] = LEVELS,
    level: float = 0.01,
    seed: int = 0,
) -> Coverage:
    """Expected coverage of the joint region of highest posterior density.

    Args:
        log_prob_samples: ``(N, L)`` posterior log-densities of L draws for each pair.
        log_prob_theta: ``(N,)`` posterior log-densities of the true parameters; minus infinity outside its support.
        levels: credibility levels in (0, 1).
        level: the probability that a calibrated posterior flunks.
        seed: of the random part of the ranks.
    """
    drawn = as_tensor(log_prob_samples, "log_prob_samples", dtype=torch.float64).cpu()
    truth = as_tensor(log_prob_theta, "log_prob_theta", dtype=torch.float64).cpu()
    outside = torch.full_like(truth, -1e300)
    truth = torch.where(truth == -torch.inf, outside, truth)
    if drawn.ndim != 2:
        raise ShapeError(f"log_prob_samples: expected shape (N, L), got {tuple(drawn.shape)}")
    ranks = sbc_ranks(-drawn.unsqueeze(-1), -truth.unsqueeze(-1), seed=derive(seed, "ties"))
    credibility = spread_ranks(ranks, drawn.shape[1], derive(seed, "spread"))
    return _coverage(credibility, ("joint",), levels, level)


def coverage(
    posterior: Any,
    theta: Any,
    x: Any,
    *,
    draws: int = 256,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    level: float = 0.01,
    chunk: int | None = None,
    failed: Failed = "refuse",
    missing: bool = False,
    progress: bool = False,
) -> Coverage:
    """Expected coverage of the central intervals of a posterior, as `sbc` with the arguments of `expected_coverage`."""
    checked_level(level)
    checked_levels(levels)
    made = posterior_draws(
        posterior, theta, x, draws=draws, seed=seed, chunk=chunk, failed=failed, missing=missing, progress=progress
    )
    result = expected_coverage(made.samples, made.theta, made.names, levels=levels, level=level, seed=seed)
    return replace(result, failed=made.failed)


def _coverage(credibility: Tensor, names: tuple[str, ...], levels: Sequence[float], level: float) -> Coverage:
    at = checked_levels(levels)
    share = (credibility.unsqueeze(0) <= at[:, None, None]).double().mean(1)
    error = binomial_error(share, len(credibility))
    p_values = kolmogorov_smirnov(credibility)[1]
    return Coverage(names, at, share, error, credibility, p_values, checked_level(level))
