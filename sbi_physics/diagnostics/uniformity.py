"""What the checks of calibration share: numbers that are uniform on [0, 1] if a posterior is right, and their test."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.random import seeded

__all__ = [
    "LEAST_PAIRS",
    "LEVELS",
    "ONE_SIGMA",
    "binomial_error",
    "checked_level",
    "checked_levels",
    "checked_pairs",
    "kolmogorov_smirnov",
    "left_out",
    "parameter_names",
    "spread_ranks",
]

LEAST_PAIRS = 10
ONE_SIGMA = 0.6826894921370859
LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))


def checked_pairs(samples: Any, theta: Any) -> tuple[Tensor, Tensor]:
    """Posterior draws ``(N, L, P)`` and truths ``(N, P)``, finite float64 on the CPU, for at least 10 pairs.

    Raises:
        ShapeError: the shapes do not fit, or N is below 10.
        NonFiniteError: a number is NaN or infinite.
    """
    draws = as_tensor(samples, "samples", dtype=torch.float64).cpu()
    truth = as_tensor(theta, "theta", dtype=torch.float64).cpu()
    if draws.ndim != 3 or truth.ndim != 2 or (len(draws), draws.shape[2]) != tuple(truth.shape) or 0 in draws.shape:
        raise ShapeError(
            f"expected samples (N, L, P) and theta (N, P), got {tuple(draws.shape)} and {tuple(truth.shape)}"
        )
    if len(truth) < LEAST_PAIRS:
        raise ShapeError(f"theta: expected at least {LEAST_PAIRS} pairs to judge calibration, got {len(truth)}")
    return finite(draws, "samples"), finite(truth, "theta")


def parameter_names(names: Sequence[str] | None, dims: int) -> tuple[str, ...]:
    """The names given, or theta_0, ... where None; raises `UsageError` unless there are `dims`."""
    labels = tuple(names) if names is not None else tuple(f"theta_{i}" for i in range(dims))
    if len(labels) != dims:
        raise UsageError(f"names: expected {dims}, one for each parameter, got {len(labels)}")
    return labels


def spread_ranks(ranks: Tensor, draws: int, seed: int) -> Tensor:
    """Ranks from 0 to `draws` as float64 numbers in [0, 1), exactly uniform where the ranks are."""
    with seeded(seed):
        return (ranks + torch.rand(ranks.shape, dtype=torch.float64)) / (draws + 1)


def kolmogorov_smirnov(uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Statistic and p-value ``(K,)`` of the test of Kolmogorov and Smirnov, for columns ``(N, K)`` in [0, 1]."""
    from scipy.stats import kstest

    results = [kstest(column.numpy(), "uniform") for column in uniform.unbind(-1)]
    statistic = torch.tensor([float(result.statistic) for result in results], dtype=torch.float64)
    return statistic, torch.tensor([float(result.pvalue) for result in results], dtype=torch.float64)


def binomial_error(share: Tensor, n: int) -> Tensor:
    """Standard deviation of a share of n, from (k + 1) / (n + 2), so that it is not zero at 0 and 1."""
    smoothed = (share * n + 1) / (n + 2)
    return torch.sqrt(smoothed * (1 - smoothed) / n)


def checked_level(level: float) -> float:
    """Return `level` if it is a probability in (0, 1), else raise `UsageError`."""
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability in (0, 1), got {level!r}")
    return level


def checked_levels(levels: Sequence[float]) -> Tensor:
    """Credibility levels in (0, 1) as float64 ``(M,)``, else raise `UsageError`."""
    at = torch.as_tensor(np.asarray(levels, dtype=np.float64)).reshape(-1)
    if len(at) == 0 or not bool(((at > 0) & (at < 1)).all()):
        raise UsageError(f"levels: expected credibilities in (0, 1), got {list(levels)}")
    return at


def left_out(failed: int) -> str:
    """How a verdict ends where failed simulations were left out."""
    return f" ({failed} failed {'simulation' if failed == 1 else 'simulations'} left out)" if failed else ""
