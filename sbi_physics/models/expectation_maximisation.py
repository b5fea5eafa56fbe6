r"""Fit a mixture of Gaussians by expectation maximisation, without gradients.

With $r_{ik}$ the probability that event i came from component k, one iteration is

$$ N_k = \sum_i w_i r_{ik}, \quad \pi_k = N_k / N, \quad m_k = \frac1{N_k} \sum_i w_i r_{ik} z_i, \quad
   \Sigma_k = \frac1{N_k} \Big( \lambda I + \sum_i w_i r_{ik} (z_i - m_k)(z_i - m_k)^T \Big), $$

and none of them lowers the penalised log-likelihood
$\frac1N \big( \sum_i w_i \ln q(z_i) - \frac\lambda2 \sum_k \mathrm{tr}\, \Sigma_k^{-1} \big)$ (Dempster, Laird and
Rubin 1977, doi:10.1111/j.2517-6161.1977.tb01600.x; the penalty, which keeps a component from closing in on one event:
Chen and Tan 2009, doi:10.1016/j.jmva.2008.12.005).  The result depends on the start: several are made by k-means++
(Arthur and Vassilvitskii 2007), each goes a few iterations, and the best one goes on.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sbi_physics.core.checks import as_tensor, finite, positive_integer
from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.mixture import Components, MixtureDensity

__all__ = ["MixtureFit", "fit_mixture"]

_STARTS = 5
_ITERATIONS_OF_A_START = 10
_ROWS_AT_ONCE = 1 << 16
# Of the variance of the events, added to that of a component of average weight.
_REGULARISATION = 1e-6
_SMALLEST_SHARE = 1e-12


@dataclass(frozen=True)
class MixtureFit:
    """A fitted mixture.

    Attributes:
        density: the mixture, unconditional.
        objective: the penalised mean log-likelihood before each iteration, of standardised unbounded events; the last
            is that of the density.
        converged: whether the last iteration gained less than the tolerance.
    """

    density: MixtureDensity
    objective: tuple[float, ...]
    converged: bool


@torch.no_grad()
def fit_mixture(
    events: Any,
    components: int,
    *,
    weights: Any = None,
    bounds: Tensor | None = None,
    seed: int = 0,
    iterations: int = 500,
    tolerance: float = 1e-6,
) -> MixtureFit:
    """Fit a mixture of Gaussians with full covariances to events, in double precision.

    Args:
        events: ``(N, D)`` with N at least the number of components, inside the bounds.
        components: K.
        weights: ``(N,)``, none negative, with a positive sum; None for equal weights.
        bounds: ``(D, 2)`` support; None for the whole real space.
        seed: of the starts.
        iterations: at most so many from the best start on.
        tolerance: gain of the objective, in nats for each event, below which the fit has converged.

    Returns:
        The mixture on its support, and how the fit went.

    Raises:
        ShapeError, NonFiniteError: the events or weights have another shape, or hold NaN or infinity.
        SupportError: an event lies outside the bounds.
        UsageError: a weight is negative, fewer events than components have one, or a setting is out of range.
    """
    rows = finite(as_tensor(events, "events", dtype=torch.float64), "events")
    count = positive_integer(components, "components")
    if rows.ndim != 2 or not rows.shape[1]:
        raise ShapeError(f"events: expected shape (N, D), got {tuple(rows.shape)}")
    mass = _checked_weights(weights, len(rows), count)
    if not tolerance >= 0:
        raise UsageError(f"tolerance: expected a number of at least 0, got {tolerance!r}")
    budget = positive_integer(iterations, "iterations")
    with seeded(derive(seed, "density")):
        density = MixtureDensity((rows.shape[1],), bounds=bounds, components=count).double()
    outside = ~density.bijection.within(rows)
    if bool(outside.any()):
        first = int(torch.nonzero(outside)[0, 0])
        raise SupportError(f"events: expected all inside the bounds, got {rows[first].tolist()} in row {first}")
    problem = _Problem(density.fit_scaling(rows).encode(rows)[0], mass / mass.sum(), _REGULARISATION / count)
    starts = [problem.start(count, derive(seed, "start", i)) for i in range(_STARTS)]
    runs = [problem.run(start, _ITERATIONS_OF_A_START, tolerance) for start in starts]
    best = max(runs, key=lambda run: run.objective[-1])
    found = problem.run(best.components, budget, tolerance)
    density.set_components(found.components)
    return MixtureFit(density.float().eval(), (*best.objective, *found.objective[1:]), found.converged)


def _checked_weights(weights: Any, events: int, components: int) -> Tensor:
    if weights is None:
        mass = torch.ones(events, dtype=torch.float64)
    else:
        mass = finite(as_tensor(weights, "weights", dtype=torch.float64), "weights")
    if mass.shape != (events,):
        raise ShapeError(f"weights: expected shape ({events},), got {tuple(mass.shape)}")
    if bool((mass < 0).any()):
        first = int(torch.nonzero(mass < 0)[0, 0])
        raise UsageError(
            f"weights: expected none below 0, got {float(mass[first]):g} in row {first}; expectation maximisation "
            "takes no negative weights, training by gradients does"
        )
    if int((mass > 0).sum()) < components:
        raise UsageError(
            f"components: expected at most one for each event, got {components} for {int((mass > 0).sum())} events "
            "of positive weight"
        )
    return mass


class _Run(NamedTuple):
    components: Components
    objective: list[float]
    converged: bool


class _Problem(NamedTuple):
    """Events ``(N, D)``, their shares ``(N,)`` of the weight, and lambda / N."""

    events: Tensor
    shares: Tensor
    penalty: float

    def start(self, components: int, seed: int) -> Components:
        """Centres by k-means++, and each event given to the nearest."""
        with seeded(seed):
            chosen = torch.multinomial(self.shares, 1)
            nearest = torch.full_like(self.shares, torch.inf)
            for _ in range(components - 1):
                nearest = torch.minimum(nearest, self._squared_distance(chosen[-1:])[:, 0])
                chance = self.shares * nearest
                # Events that all lie on the centres so far: any of them will do.
                chance = chance if float(chance.sum()) > 0 else self.shares
                chosen = torch.cat([chosen, torch.multinomial(chance, 1)])
        return self._maximise(one_hot(self._squared_distance(chosen).argmin(1), components).double())

    def run(self, components: Components, iterations: int, tolerance: float) -> _Run:
        """Iterate until the gain falls below the tolerance, at most so many times."""
        responsibilities, value = self._expect(components)
        objective = [value]
        for _ in range(iterations):
            components = self._maximise(responsibilities)
            responsibilities, value = self._expect(components)
            objective.append(value)
            if objective[-1] - objective[-2] < tolerance:
                return _Run(components, objective, True)
        return _Run(components, objective, False)

    def _squared_distance(self, chosen: Tensor) -> Tensor:
        """From each event to the chosen ones: ``(N, len(chosen))``."""
        return torch.cdist(self.events, self.events[chosen]).square()

    def _expect(self, components: Components) -> tuple[Tensor, float]:
        """The probability ``(N, K)`` of each component for each event, and the objective."""
        log_joint = torch.cat([components.log_joint(part) for part in self.events.split(_ROWS_AT_ONCE)])
        log_density = log_joint.logsumexp(-1)
        squares = components.factors.square().sum()
        objective = self.shares @ log_density - 0.5 * self.penalty * squares
        return (log_joint - log_density.unsqueeze(-1)).exp(), float(objective)

    def _maximise(self, responsibilities: Tensor) -> Components:
        mass = responsibilities * self.shares.unsqueeze(-1)
        share = mass.sum(0).clamp(min=_SMALLEST_SHARE)
        means = mass.T @ self.events / share.unsqueeze(-1)
        identity = torch.eye(self.events.shape[1], dtype=torch.float64)
        factors = []
        for k in range(len(share)):
            centred = self.events - means[k]
            covariance = (self.penalty * identity + (mass[:, k, None] * centred).T @ centred) / share[k]
            root = torch.linalg.cholesky(covariance)
            factors.append(torch.linalg.solve_triangular(root, identity, upper=False))
        whole = torch.stack(factors).unsqueeze(0)
        diagonal = whole.diagonal(dim1=-2, dim2=-1)
        return Components(share.log().unsqueeze(0), means.unsqueeze(0), whole.tril(-1), diagonal.log())
