r"""Thermodynamic integration: differences of free energies from Hamiltonian Monte Carlo alone.

Between two Boltzmann distributions, $e^{-S_0}/Z_0$ and $e^{-S_1}/Z_1$, the path $S_t = (1-t)\,S_0 + t\,S_1$ gives with
$F = -\ln Z$

$$ F_1 - F_0 = \int_0^1 \langle S_1 - S_0\rangle_t\, dt, $$

(Kirkwood 1935, doi:10.1063/1.1749657), here by the rule of Gauss and Legendre, all of its nodes in one batch of chains.
It needs no flow, and so is a reference for one; the chains must find all modes at each node.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite, positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.protocols import LogDensity
from sbi_physics.sampling.hmc import hmc
from sbi_physics.sampling.target import checked_log_density

__all__ = ["FreeEnergyDifference", "thermodynamic_integration"]

_FEWEST_CHAINS = 4
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class FreeEnergyDifference:
    """What thermodynamic integration gives.

    Attributes:
        value: F_1 - F_0.
        error: its standard error, of the chains; not that of the rule.
        nodes: t of each node.
        integrand: the mean of S_1 - S_0 at each node.
        likelihood_calls: rows at which the gradients were evaluated.
        converged: whether the chains of all nodes are.
        verdict: of the first node that is not, or of the last.
    """

    value: float
    error: float
    nodes: tuple[float, ...]
    integrand: tuple[float, ...]
    likelihood_calls: int
    converged: bool
    verdict: str


def thermodynamic_integration(
    log_density_0: LogDensity, log_density_1: LogDensity, initial: Any, *, nodes: int = 8, **settings: Any
) -> FreeEnergyDifference:
    """Integrate the difference of two actions between their distributions.

    Args:
        log_density_0: -S_0 of rows ``(n, P)``, float64: ``(n,)``; differentiable by torch.
        log_density_1: -S_1, likewise.
        initial: where the C chains of each node start, ``(C, P)``: wide enough to fall into all modes.
        nodes: of the rule; its error falls geometrically with their number where the integrand is smooth.
        **settings: of `sampling.hmc.hmc`.

    Raises:
        ShapeError, NonFiniteError: `initial` or a log-density is not as it should be.
        UsageError, SupportError, BudgetError: as `hmc` raises them.
    """
    start = finite(as_tensor(initial, "initial", dtype=torch.float64), "initial")
    if start.ndim != 2 or len(start) < _FEWEST_CHAINS:
        raise ShapeError(
            f"initial: expected shape (C, P) with at least {_FEWEST_CHAINS} chains, got {tuple(start.shape)}"
        )
    if "parameters" in settings:
        raise UsageError("parameters: thermodynamic integration is over all of the real space, expected none")
    count, (chains, dims) = positive_integer(nodes, "nodes"), start.shape
    x, w = np.polynomial.legendre.leggauss(count)
    t, weights = torch.as_tensor((x + 1) / 2), torch.as_tensor(w / 2)

    def log_prob(theta: Tensor) -> Tensor:
        rows, share = theta.reshape(-1, dims), t.to(theta.device).unsqueeze(-1)
        # Not checked here: far out, where trajectories are lost, one may be no number, which `hmc` takes as zero.
        first, second = (log_density(rows).reshape(theta.shape[:-1]) for log_density in (log_density_0, log_density_1))
        return (1 - share) * first + share * second

    found = hmc(log_prob, start.expand(count, chains, dims), **settings)
    gaps = []
    with torch.no_grad():
        for rows in found.values.reshape(-1, dims).split(_ROWS_AT_ONCE):
            first = checked_log_density(log_density_0(rows), rows, "log_density_0")
            gaps.append((first - checked_log_density(log_density_1(rows), rows, "log_density_1")).cpu())
    # Chains are independent of each other, their steps are not.
    means = torch.cat(gaps).reshape(count, chains, -1).mean(2)
    variances = means.var(1) / chains
    good = found.diagnostics["converged"]
    worst = good.index(False) if False in good else count - 1
    return FreeEnergyDifference(
        float(weights @ means.mean(1)),
        math.sqrt(float(weights.square() @ variances)),
        tuple(t.tolist()),
        tuple(means.mean(1).tolist()),
        int(found.diagnostics["likelihood_calls"]),
        all(good),
        found.diagnostics["verdict"][worst],
    )
