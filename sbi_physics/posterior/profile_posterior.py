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

from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.posterior.direct import DirectPosterior
from sbi_physics.posterior.likelihood import LikelihoodPosterior
from sbi_physics.posterior.posterior import Posterior
from sbi_physics.posterior.profile import Profile, profile_likelihood

__all__ = ["profile_posterior"]


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

    return profile_likelihood(log_prob, posterior.parameters, interest, **search)
