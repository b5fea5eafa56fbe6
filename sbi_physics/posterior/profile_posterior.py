r"""Nuisance parameters of a learned posterior: the profile of its density.

With parameters of interest $\psi$ and nuisance parameters $\lambda$ there are two ways to be rid of the latter,

$$ p(\psi|x) = \int p(\psi, \lambda|x)\,d\lambda, \qquad \max_\lambda \ln p(\psi, \lambda|x). $$

The first, the marginal posterior, is `Samples.select` of the draws of all parameters.  The second is here.  Where the
two differ much, the answer is made by the volume of the nuisance parameters rather than by the data, an effect of the
prior that is worth knowing of (Gomez-Valent 2022, arXiv:2203.16285).  As any density, the profile depends on the
parametrisation, and it makes no confidence set: for that take the profile of the likelihood.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.posterior.direct import DirectPosterior
from sbi_physics.posterior.likelihood import LikelihoodPosterior
from sbi_physics.posterior.posterior import Posterior
from sbi_physics.posterior.profile import profile_likelihood
from sbi_physics.posterior.profile_curve import Profile

__all__ = ["profile_posterior"]

_DRAWS = 4_000
_TAIL = 0.01
# Draws reach a bound that is nearer than this share of where they lie.
_NEAR = 0.05


def profile_posterior(
    posterior: Posterior, interest: str | Sequence[str], x_obs: Any = None, *, iid: bool = False, **search: Any
) -> Profile:
    """Maximise the density of a posterior over all parameters but one or two, at values of those.

    Args:
        posterior: of NPE, NLE, NRE or VI.
        interest: one or two names; all other parameters are nuisance parameters.
        x_obs: one observation, ``x_shape`` or ``(1, *x_shape)``; None where the posterior is for one only.
        iid: whether x_obs ``(k, *x_shape)`` holds k independent observations of one theta.
        **search: of `profile_likelihood`: points, ranges, starts, steps, seed, max_calls, max_seconds.

    Returns:
        A `Profile` whose `log_likelihood` is the log-density of the posterior, relative to its maximum.

    Raises:
        UsageError: a name or an option is not known, or x_obs holds several separate observations.
        ShapeError, NonFiniteError: x_obs does not fit.
    """
    # What the log-density is made of is differentiable, where `Posterior.log_prob` gives the number alone.
    given = posterior._observation(x_obs, iid=iid)
    if given.batched:
        raise UsageError(f"x_obs: expected one observation, got {len(given.x)} separate ones; profile them one by one")
    if isinstance(posterior, LikelihoodPosterior):

        def likelihood(theta: Tensor) -> Tensor:
            return posterior.log_likelihood(theta.float(), x_obs, iid=iid)

        return profile_likelihood(likelihood, posterior.parameters, interest, prior=True, **search)
    if not isinstance(posterior, DirectPosterior):
        raise UsageError(f"posterior: expected one of NPE, NLE, NRE or VI, got {type(posterior).__name__}")
    density, device = posterior.density, posterior.device
    context = given.x[0] if density.conditional else None

    def log_prob(theta: Tensor) -> Tensor:
        return density.log_prob(theta.float().to(device), context).to(theta)

    reach = _reach(posterior, x_obs)

    def kept(theta: Tensor) -> Tensor:
        """The same, where draws go up to a bound no higher than at the last of them."""
        value, at_last = log_prob(theta), log_prob(theta.clamp(*reach))
        return torch.where(value < at_last, value, at_last)

    touched = bool(torch.isfinite(reach).any())
    return profile_likelihood(kept if touched else log_prob, posterior.parameters, interest, **search)


def _reach(posterior: DirectPosterior, x_obs: Any) -> Tensor:
    """How far the density is known near bounds: lowest and highest values ``(2, P)``, infinite where no bound is near.

    A flow lives on the whole real line, and its density next to a bound is that of its tail times a Jacobian without
    limit: beyond the last draws it may rise without end, whatever the data say.
    """
    bounds, wraps = posterior.parameters.bounds.T.double(), torch.tensor(posterior.parameters.periodic)
    draws = posterior.sample(_DRAWS, x_obs).values.double()
    low, high = draws.quantile(draws.new_tensor([_TAIL, 1 - _TAIL]), dim=0)
    near = _NEAR * (high - low)
    return torch.stack([
        torch.where((low - bounds[0] < near) & ~wraps, low, -torch.inf),
        torch.where((bounds[1] - high < near) & ~wraps, high, torch.inf),
    ])  # fmt: skip
