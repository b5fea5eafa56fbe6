"""`TruncatedPrior`: the prior, cut to where the posterior of one observation can be.

The region is where the learned posterior density is above a threshold, the eps-quantile of its values at its own draws:
it holds a share 1 - eps of the posterior, and often a tiny share of the prior.  It is drawn from by rejection from the
prior; where that is hopeless, draws of the learned posterior inside the region are taken in proportion to prior over
posterior (sampling-importance-resampling), and moved within the region along the differences of one another
(differential evolution: ter Braak and Vrugt 2008) until its edges, where the posterior seldom draws, are full, too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ConvergenceError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive, numpy_generator, seeded
from sbi_physics.posterior.posterior import Posterior

__all__ = ["TruncatedPrior"]

_DRAWS = 10_000
_MOST_PRIOR_DRAWS = 4_000_000
_ROWS = 100_000
_OVERSAMPLING = 50
_MOVES = 30


@dataclass(frozen=True)
class TruncatedPrior:
    """Regions of learned posteriors, one inside the other, for one observation.

    Attributes:
        parameters: the prior.
        x_obs: ``(1, *x_shape)``; None as long as there is no region.
        regions: posteriors and their thresholds; a point of the truncated prior is above all of them.
    """

    parameters: Parameters
    x_obs: Tensor | None = None
    regions: tuple[tuple[Posterior, float], ...] = ()

    def cut(self, posterior: Posterior, epsilon: float, seed: int) -> "TruncatedPrior":
        """The part of this prior that holds a share 1 - epsilon of a learned posterior."""
        draws = posterior.sample(_DRAWS, self.x_obs, seed=derive(seed, "threshold")).values
        density = posterior.log_prob(draws, self.x_obs).double()
        threshold = float(torch.quantile(density, epsilon))
        return TruncatedPrior(self.parameters, self.x_obs, (*self.regions, (posterior, threshold)))

    def within(self, theta: Tensor) -> Tensor:
        """Whether each row of theta ``(n, P)`` is in all regions: boolean ``(n,)``."""
        inside = self.parameters.within(theta)
        # The newest region is the smallest: most rows are out at once.
        for posterior, threshold in reversed(self.regions):
            rows = torch.nonzero(inside)[:, 0]
            if len(rows):
                inside[rows] = (posterior.log_prob(theta[rows], self.x_obs) >= threshold).to(inside.device)
        return inside

    def sample(self, n: int, *, seed: int) -> tuple[Tensor, float]:
        """Draw n rows ``(n, P)``; the second result is the share of the prior that the region holds, NaN if unknown.

        Raises:
            ConvergenceError: the region cannot be found.
        """
        positive_integer(n, "n")
        if not self.regions:
            return self.parameters.sample(n, seed=derive(seed, "prior")), 1.0
        kept: list[Tensor] = []
        found = done = 0
        while found < n and done < _MOST_PRIOR_DRAWS:
            theta = self.parameters.sample(_ROWS, seed=derive(seed, "prior", done))
            kept.append(theta[self.within(theta)])
            found, done = found + len(kept[-1]), done + len(theta)
            if found * _MOST_PRIOR_DRAWS < n * done and done >= 4 * _ROWS:  # it would not be enough
                return self._resampled(n, seed), found / done if found else math.nan
        if found < n:
            return self._resampled(n, seed), found / done
        return torch.cat(kept)[:n], found / done

    def _resampled(self, n: int, seed: int) -> Tensor:
        posterior = self.regions[-1][0]
        theta = posterior.sample(_OVERSAMPLING * n, self.x_obs, seed=derive(seed, "resample")).values.cpu()
        log_q = posterior.log_prob(theta, self.x_obs).double().cpu()
        log_weights = self.parameters.log_prob(theta.double()).double() - log_q
        weights = torch.where(self.within(theta).cpu(), (log_weights - log_weights.max()).exp(), 0.0)
        if int(torch.count_nonzero(weights)) < n:
            raise ConvergenceError(
                f"only {int(torch.count_nonzero(weights))} of {len(theta)} draws of the posterior lie in the region "
                f"that it was to be cut to, expected at least {n}: posteriors of successive rounds disagree; use more "
                "simulations in each round"
            )
        share = (weights / weights.sum()).numpy()
        rows = numpy_generator(derive(seed, "choice")).choice(len(theta), n, replace=False, p=share)
        return self._moved(theta[torch.as_tensor(rows)], derive(seed, "move"))

    def _moved(self, theta: Tensor, seed: int) -> Tensor:
        """Metropolis steps of all rows ``(n, P)`` that leave the truncated prior as it is."""
        n, dims = theta.shape
        density = self.parameters.log_prob(theta.double())
        with seeded(seed):
            for step in range(_MOVES):
                # A full difference now and then leads from one mode to another.
                scale = 1.0 if step % 5 == 4 else 2.38 / math.sqrt(2 * dims)
                difference = theta[torch.randint(n, (n,))] - theta[torch.randint(n, (n,))]
                candidate = theta + scale * difference * (1 + 0.05 * torch.randn(n, 1))
                new = self.parameters.log_prob(candidate.double())
                accept = (torch.rand(n).double().log() < new - density) & self.within(candidate).cpu()
                theta = torch.where(accept.unsqueeze(-1), candidate, theta)
                density = torch.where(accept, new, density)
        return theta
