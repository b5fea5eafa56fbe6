r"""Importance weights: effective sample size, Pareto tail index and Pareto smoothing.

Draws from q stand for the target p with weights $w = p/q$.  Kish's effective sample size is
$(\sum w)^2 / \sum w^2$.  It says nothing about weights that were not drawn: the upper tail of the weights is fitted by
a generalised Pareto distribution, whose shape k tells how many moments they have.  Below 0.7 the estimates can be
trusted; above 1 the weights have no mean.  Pareto smoothing replaces the largest weights by the order statistics that
the fit expects, none above the largest seen (Vehtari et al. 2024, arXiv:1507.02646; the code is that of ArviZ).

Where there is no tail to fit: k is 0 if the largest weights are all equal (bounded weights), and infinite for fewer
than 25 weights that are not zero, too few to tell.  Zero weights (log-weight minus infinity) stay zero.
"""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor
from sbi_physics.core.errors import NonFiniteError, ShapeError

__all__ = ["effective_sample_size", "importance_efficiency", "pareto_k", "pareto_smooth"]

_FEWEST = 25
"""ArviZ fits the largest fifth of the weights, and five at least."""


def effective_sample_size(log_weights: Any) -> Tensor:
    """Kish's effective sample size ``(sum w)**2 / sum w**2``.

    Args:
        log_weights: ``(*, n)`` natural logarithms of weights, up to a constant.

    Returns:
        float64 ``(*,)``, from 1 to n.

    Raises:
        NonFiniteError: a log-weight is NaN or plus infinity, or all weights of a set are zero.
    """
    values = _checked(log_weights)
    return torch.exp(2 * torch.logsumexp(values, -1) - torch.logsumexp(2 * values, -1))


def importance_efficiency(log_weights: Any) -> Tensor:
    """Effective sample size per draw, float64 ``(*,)`` in (0, 1], for log-weights ``(*, n)``.

    Raises:
        NonFiniteError: a log-weight is NaN or plus infinity, or all weights of a set are zero.
    """
    values = _checked(log_weights)
    return effective_sample_size(values) / values.shape[-1]


def pareto_k(log_weights: Any) -> Tensor:
    """Shape k of the tail of the weights, float64 ``(*,)``, for log-weights ``(*, n)``; below 0.7 is good.

    Raises:
        NonFiniteError: a log-weight is NaN or plus infinity, or all weights of a set are zero.
    """
    return pareto_smooth(log_weights)[1]


def pareto_smooth(log_weights: Any) -> tuple[Tensor, Tensor]:
    """Smooth the largest weights by the Pareto distribution that fits them.

    Args:
        log_weights: ``(*, n)`` natural logarithms of weights, up to a constant.

    Returns:
        Smoothed log-weights ``(*, n)``, float64, normalised so that the weights sum to one; and k ``(*,)``, float64.

    Raises:
        NonFiniteError: a log-weight is NaN or plus infinity, or all weights of a set are zero.
    """
    values = _checked(log_weights)
    rows = values.reshape(-1, values.shape[-1]).numpy()
    smoothed, shapes = zip(*(_smooth_row(row) for row in rows), strict=True)
    result = torch.as_tensor(np.stack(smoothed)).reshape(values.shape)
    return result, torch.tensor(shapes, dtype=torch.float64).reshape(values.shape[:-1])


def _smooth_row(row: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float]:
    from arviz_stats.base.array import array_stats
    from scipy.special import logsumexp

    psislw: Any = array_stats.psislw
    alive = np.isfinite(row)
    plain = row - logsumexp(row[alive])
    weights = np.sort(plain[alive])
    if len(weights) < _FEWEST:
        return plain, math.inf
    tail = int(min(len(weights) / 5, 3 * math.sqrt(len(weights))))
    if weights[-1] - weights[-tail] < 1e-9:
        return plain, 0.0
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        smoothed, shape = psislw(-plain[alive])
    if not (np.isfinite(shape) and np.isfinite(smoothed).all()):
        return plain, math.inf
    result = plain.copy()
    result[alive] = smoothed
    return result, float(shape)


def _checked(log_weights: Any) -> Tensor:
    values = as_tensor(log_weights, "log_weights", dtype=torch.float64).cpu()
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ShapeError(f"log_weights: expected shape (*, n), got {tuple(values.shape)}")
    if bool((torch.isnan(values) | (values == torch.inf)).any()):
        bad = int((torch.isnan(values) | (values == torch.inf)).sum())
        raise NonFiniteError(f"log_weights: expected numbers or minus infinity, got {bad} NaN or plus infinity")
    if bool((values == -torch.inf).all(-1).any()):
        raise NonFiniteError("log_weights: expected a weight above zero, got minus infinity only")
    return values
