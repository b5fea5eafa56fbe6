r"""Has a Markov chain run long enough?

* the integrated autocorrelation time $\tau = 1 + 2\sum_t \rho_t$ of each parameter, averaged over walkers, by the
  window of Sokal (Goodman & Weare 2010; Foreman-Mackey et al. 2013, arXiv:1202.3665; the code is that of emcee): its
  estimate is trusted once the chain is longer than 50 of it;
* the rank-normalised split R-hat and the bulk effective sample size (Vehtari et al. 2021, arXiv:1903.08008; the code is
  that of ArviZ).

The first looks at each walker about its own mean, and so does not notice walkers that are stuck in different modes;
the second does.  The verdict needs both.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite
from sbi_physics.core.errors import ShapeError, UsageError

__all__ = ["ChainReport", "autocorrelation_time", "bulk_effective_sample_size", "chain_report", "split_r_hat"]


@dataclass(frozen=True)
class ChainReport:
    """How far a set of chains has converged.

    Attributes:
        names: P names.
        steps: length of each chain.
        walkers: number of chains.
        autocorrelation_time: in steps, ``(P,)``; infinite where a walker never moved.
        r_hat: ``(P,)``.
        effective_sample_size: bulk, of all chains together, ``(P,)``.
        required_lengths: how many autocorrelation times the chain must be longer than.
        max_r_hat: the largest R-hat that counts as converged.
    """

    names: tuple[str, ...]
    steps: int
    walkers: int
    autocorrelation_time: Tensor
    r_hat: Tensor
    effective_sample_size: Tensor
    required_lengths: float
    max_r_hat: float

    @property
    def lengths(self) -> float:
        """Length of the chain in autocorrelation times of the slowest parameter."""
        return float(self.steps / self.autocorrelation_time.max())

    @property
    def converged(self) -> bool:
        """Whether the chain is long enough, and the walkers agree."""
        return self.lengths > self.required_lengths and bool((self.r_hat < self.max_r_hat).all())

    @property
    def verdict(self) -> str:
        """One sentence that says whether to trust the chain, and what to do if not."""
        slowest = self.names[int(self.autocorrelation_time.argmax())]
        length = f"{self.steps} steps are {self.lengths:.0f} autocorrelation times of {slowest}"
        if not self.lengths > self.required_lengths:
            return f"not converged: {length}, expected more than {self.required_lengths:g}; run longer"
        if not self.converged:
            worst = int(self.r_hat.nan_to_num(nan=math.inf).argmax())
            return (
                f"not converged: R-hat of {self.names[worst]} is {float(self.r_hat[worst]):.3f}, expected below "
                f"{self.max_r_hat:g}: walkers disagree, perhaps in separate modes; run longer or start elsewhere"
            )
        return f"converged: {length}, R-hat at most {float(self.r_hat.max()):.3f}"


def chain_report(
    chains: Any, names: Sequence[str] | None = None, *, required_lengths: float = 50.0, max_r_hat: float = 1.05
) -> ChainReport:
    """Judge chains ``(steps, walkers, P)``, after burn-in.

    Args:
        chains: ``(steps, walkers, P)``, at least 4 steps.
        names: P names; theta_0, ... where None.
        required_lengths: how many autocorrelation times the chain must be longer than.
        max_r_hat: the largest R-hat that counts as converged.

    Raises:
        ShapeError: chains are not ``(steps, walkers, P)``.
        NonFiniteError: a value is NaN or infinite.
    """
    values = _checked(chains)
    steps, walkers, dims = values.shape
    labels = tuple(names) if names is not None else tuple(f"theta_{i}" for i in range(dims))
    if len(labels) != dims:
        raise UsageError(f"names: expected {dims}, one for each parameter, got {len(labels)}")
    return ChainReport(
        labels,
        steps,
        walkers,
        autocorrelation_time(values),
        split_r_hat(values),
        bulk_effective_sample_size(values),
        required_lengths,
        max_r_hat,
    )


def autocorrelation_time(chains: Any) -> Tensor:
    """Integrated autocorrelation time in steps, float64 ``(P,)``, of chains ``(steps, walkers, P)``.

    Infinite for a parameter for which some walker never moved.
    """
    from emcee.autocorr import integrated_time

    values = _checked(chains).numpy()
    moved = (np.ptp(values, axis=0) > 0).all(0)
    result = np.full(values.shape[-1], math.inf)
    if moved.any():
        result[moved] = integrated_time(values[..., moved], tol=0)
    return torch.as_tensor(result)


def split_r_hat(chains: Any) -> Tensor:
    """Rank-normalised split R-hat, float64 ``(P,)``, of chains ``(steps, walkers, P)``; NaN where nothing moved."""
    return _arviz("rhat", chains, "rank")


def bulk_effective_sample_size(chains: Any) -> Tensor:
    """Effective number of independent draws in the bulk, float64 ``(P,)``, of chains ``(steps, walkers, P)``."""
    return _arviz("ess", chains, "bulk")


def _arviz(statistic: str, chains: Any, method: str) -> Tensor:
    from arviz_stats.base.array import array_stats

    values = np.moveaxis(_checked(chains).numpy(), -1, 0)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = getattr(array_stats, statistic)(values, chain_axis=2, draw_axis=1, method=method)
    return torch.as_tensor(np.asarray(result, dtype=np.float64))


def _checked(chains: Any) -> Tensor:
    values = as_tensor(chains, "chains", dtype=torch.float64).cpu()
    if values.ndim != 3 or values.shape[0] < 4 or 0 in values.shape:
        raise ShapeError(f"chains: expected shape (steps, walkers, P) with at least 4 steps, got {tuple(values.shape)}")
    return finite(values, "chains")
