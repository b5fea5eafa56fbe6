r"""Test statistics: one number that is large where theta disagrees with x, from what was learned.

Any function of theta and x gives confidence sets of the right coverage (`posterior.confidence`); a good one gives small
ones.  Ready-made are

=============================  ==================================================================================
`posterior_statistic`          $-\ln p(\theta|x)$ of a posterior, of high power where the prior is about right
                               (Dalmasso et al. 2021, arXiv:2107.03920)
`waldo_statistic`              $(\bar\theta-\theta)^T C^{-1} (\bar\theta-\theta)$ with mean and covariance of the
                               posterior given x (Masserano et al. 2023, arXiv:2205.15680)
`likelihood_ratio_statistic`   $2\,(\max_{\theta'} \ln p(x|\theta') - \ln p(x|\theta))$ of a learned likelihood or
                               ratio, which owes nothing to the prior and hardly depends on theta where data are many
                               (Dalmasso et al. 2021; Heinrich 2022, arXiv:2203.13079)
=============================  ==================================================================================

With parameters of interest, the last two can be of those alone: mean and covariance of their marginal, or the profile
likelihood ratio, $2\,(\max_{\theta'} \ln p(x|\theta') - \max_\lambda \ln p(x|\psi, \lambda))$.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import check_seed, derive
from sbi_physics.posterior.likelihood import LikelihoodPosterior
from sbi_physics.posterior.maximum import FreeCoordinates, Problems
from sbi_physics.posterior.posterior import Posterior

__all__ = [
    "Moments",
    "NaturalStatistic",
    "Statistic",
    "likelihood_ratio_statistic",
    "posterior_statistic",
    "waldo_statistic",
]

# Theta (n, P) and x (n, *x_shape) to (n,).
Statistic = Callable[[Tensor, Tensor], Tensor]
# X (n, *x_shape) to means (n, P) and covariances (n, P, P).
Moments = Callable[[Tensor], tuple[Tensor, Tensor]]

_ROWS_AT_ONCE = 1 << 16
_OBSERVATIONS_AT_ONCE = 2048
_CANDIDATES = 64


class NaturalStatistic:
    """The likelihood ratio of a posterior of NLE or NRE, minus the log-density of any other.

    Attributes:
        posterior: of which it is made, and with which it goes to a file.
    """

    def __init__(self, posterior: Posterior) -> None:
        self.posterior = posterior
        if isinstance(posterior, LikelihoodPosterior):
            self._statistic = likelihood_ratio_statistic(posterior)
        else:
            self._statistic = posterior_statistic(posterior)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """The statistic of theta ``(n, P)`` and x ``(n, *x_shape)``: ``(n,)``."""
        return self._statistic(theta, x)


def posterior_statistic(posterior: Posterior) -> Statistic:
    """Minus the log-density of a posterior.

    A `LikelihoodPosterior` of a ratio gives it as well as a network of the posterior does; one of a likelihood knows
    its density only up to a constant of each observation, which spoils the power: take the likelihood ratio there.
    """

    def statistic(theta: Tensor, x: Tensor) -> Tensor:
        parts = zip(theta.split(_ROWS_AT_ONCE), x.split(_ROWS_AT_ONCE), strict=True)
        return torch.cat([-posterior.log_prob(*part).reshape(-1) for part in parts])

    return statistic


def waldo_statistic(
    posterior: Posterior | Moments,
    parameters: Parameters | None = None,
    *,
    interest: Sequence[str] | None = None,
    draws: int = 256,
    seed: int = 0,
) -> Statistic:
    """The squared distance of theta from the posterior mean, in units of the posterior covariance.

    Args:
        posterior: gives draws; or any function from x ``(n, *x_shape)`` to means ``(n, P)`` and covariances
            ``(n, P, P)``, such as an estimator of your own with its errors.
        parameters: of theta; those of the posterior where None.
        interest: the parameters that the distance is of, all of them where None.
        draws: of the posterior for each observation.
        seed: of the draws.

    Raises:
        UsageError: a name is not known, or the draws are too few for a covariance.
    """
    known = posterior.parameters if isinstance(posterior, Posterior) else parameters
    columns = _columns(known, interest)
    moments = _drawn_moments(posterior, draws, check_seed(seed)) if isinstance(posterior, Posterior) else posterior

    def statistic(theta: Tensor, x: Tensor) -> Tensor:
        distinct, which = _distinct(x)
        mean, covariance = moments(distinct)
        at = theta.double().to(mean.device)
        if columns is not None:
            mean, covariance, at = mean[:, columns], covariance[:, columns][:, :, columns], at[:, columns]
        root = torch.linalg.cholesky(covariance.double())[which]
        away = (mean.double()[which] - at).unsqueeze(-1)
        return torch.linalg.solve_triangular(root, away, upper=False).square().sum((1, 2))

    return statistic


def _drawn_moments(posterior: Posterior, draws: int, seed: int) -> Moments:
    dims = len(posterior.parameters)
    if positive_integer(draws, "draws") < dims + 2:
        raise UsageError(f"draws: expected at least P + 2 = {dims + 2} for a covariance, got {draws}")

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        means, covariances = [], []
        for i, part in enumerate(x.split(max(1, _ROWS_AT_ONCE // draws))):
            values = posterior.sample(draws, part, seed=derive(seed, "waldo", i)).values.double()
            values = values.reshape(len(part), draws, dims)
            mean = values.mean(1)
            away = values - mean.unsqueeze(1)
            covariance = away.mT @ away / (draws - 1)
            floor = 1e-12 * covariance.diagonal(dim1=1, dim2=2) + torch.finfo(torch.float32).tiny
            means.append(mean)
            covariances.append(covariance + torch.diag_embed(floor))
        return torch.cat(means), torch.cat(covariances)

    return moments


def likelihood_ratio_statistic(
    posterior: LikelihoodPosterior,
    *,
    interest: Sequence[str] | None = None,
    starts: int = 4,
    steps: int = 40,
    seed: int = 0,
) -> Statistic:
    """Twice the log of the largest likelihood over that of theta, of a learned likelihood or ratio.

    The maximum is searched once for each observation, for all of them side by side, from the best of some draws of
    the prior; theta itself counts as found.

    Args:
        posterior: of NLE or NRE.
        interest: the parameters that are held at theta, the likelihood being maximised over the others; all of them
            where None.
        starts: climbs for each observation.
        steps: of Adam in each, before BFGS.
        seed: of the starts.

    Raises:
        UsageError: the posterior is no `LikelihoodPosterior`, or a name is not known.
    """
    if not isinstance(posterior, LikelihoodPosterior):
        raise UsageError(f"posterior: expected one of NLE or NRE, got {type(posterior).__name__}")
    columns = _columns(posterior.parameters, interest)
    whole = _Highest(posterior, [], starts, steps, check_seed(seed))
    profile = None if columns is None else _Highest(posterior, columns, starts, steps, seed)

    def statistic(theta: Tensor, x: Tensor) -> Tensor:
        at = theta.double().cpu()
        distinct, which = _distinct(x)
        best = whole(distinct, at.new_zeros(len(distinct), 0))[which]
        with torch.no_grad():
            parts = zip(at.split(_ROWS_AT_ONCE), x.split(_ROWS_AT_ONCE), strict=True)
            here = torch.cat([_log_likelihood(posterior, *part) for part in parts])
        if profile is not None and columns is not None:
            here = torch.maximum(here, profile(x, at[:, columns]))
        return 2 * (best - here).clamp(min=0.0)

    return statistic


class _Highest:
    """The largest log-likelihood of each observation, some parameters being held."""

    def __init__(self, posterior: LikelihoodPosterior, held: list[int], starts: int, steps: int, seed: int) -> None:
        self.posterior = posterior
        self.starts, self.steps = positive_integer(starts, "starts"), positive_integer(steps, "steps")
        self.coordinates = FreeCoordinates(posterior.parameters, held, seed)
        self.candidates = self.coordinates.draws(_CANDIDATES, derive(seed, "candidates"))

    def __call__(self, x: Tensor, held: Tensor) -> Tensor:
        """X ``(n, *x_shape)`` and the values that are held ``(n, k)`` to ``(n,)``."""
        parts = zip(x.split(_OBSERVATIONS_AT_ONCE), held.split(_OBSERVATIONS_AT_ONCE), strict=True)
        return torch.cat([self._part(*part) for part in parts])

    def _part(self, x: Tensor, held: Tensor) -> Tensor:
        problems = Problems(lambda theta, rows: _log_likelihood(self.posterior, theta, x[rows]), self.coordinates, held)
        if self.coordinates.dims == 0:
            return problems.at(held.new_zeros(len(x), 0)).value
        starts = problems.screen(self.candidates, self.starts)
        return problems.climb(starts, steps=self.steps, polish=self.steps // 2).value


def _log_likelihood(posterior: LikelihoodPosterior, theta: Tensor, x: Tensor) -> Tensor:
    return posterior.log_likelihood(theta, x, iid=False).reshape(-1).double().cpu()


def _distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """The observations that differ, and which of them each row is: a set of theta tried at one x needs it once."""
    if len(x) > 1 and bool((x == x[:1]).all()):
        return x[:1], torch.zeros(len(x), dtype=torch.long)
    flat, which = torch.unique(x.reshape(len(x), -1), dim=0, return_inverse=True)
    return flat.reshape(-1, *x.shape[1:]), which


def _columns(parameters: Parameters | None, interest: Sequence[str] | None) -> list[int] | None:
    if interest is None:
        return None
    if parameters is None:
        raise UsageError("parameters: expected those of theta, where some of them are of interest, got None")
    names = [interest] if isinstance(interest, str) else list(interest)
    if not names or len(set(names)) < len(names):
        raise UsageError(f"interest: expected one or more different parameters, got {names}")
    return [parameters.index(name) for name in names]
