r"""Two linear Gaussian problems whose posteriors are known in closed form.

* `GaussianLinear`: $\theta \sim N(0, 0.1\,I)$, $x \sim N(\theta, 0.1\,I)$; the posterior is the conjugate Gaussian.
* `GaussianLinearUniform`: $\theta \sim U[-1, 1]^D$, $x \sim N(\theta, 0.1\,I)$; the posterior is a Gaussian about x cut
  by the edges of the prior, independently in each direction.

Both are tasks of Lueckmann et al. 2021 (arXiv:2101.04653, appendix T.1 and T.2) with D = 10.
"""

import math

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import seeded

__all__ = ["GaussianLinear", "GaussianLinearUniform"]


class _LinearGaussian:
    """x is theta plus Gaussian noise, the same in each of D directions."""

    name: str
    parameters: Parameters

    def __init__(self, dims: int, noise_variance: float) -> None:
        self.dims = positive_integer(dims, "dims")
        self.noise_variance = _positive(noise_variance, "noise_variance")
        self.x_shape = torch.Size([self.dims])

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, D)`` gives float32 x ``(n, D)``."""
        self.parameters.check_width(theta)
        with seeded(seed, theta.device):
            noise = torch.randn(theta.shape, dtype=torch.float32, device=theta.device)
        return theta.to(torch.float32) + math.sqrt(self.noise_variance) * noise

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats, float64: theta ``(*, D)`` broadcast with x ``(*, D)`` gives ``(*,)``."""
        self.parameters.check_width(theta)
        _check_event(x, self.dims)
        squares = ((x.to(theta.device, torch.float64) - theta.to(torch.float64)) ** 2).sum(-1)
        return -0.5 * (squares / self.noise_variance + self.dims * math.log(2 * math.pi * self.noise_variance))


class GaussianLinear(_LinearGaussian):
    """Gaussian prior and Gaussian noise about theta, each direction independent.

    Args:
        dims: number of parameters D, and of observables.
        prior_variance: variance of the prior in each direction.
        noise_variance: variance of x about theta in each direction.
    """

    name = "gaussian_linear"

    def __init__(self, dims: int = 10, prior_variance: float = 0.1, noise_variance: float = 0.1) -> None:
        super().__init__(dims, noise_variance)
        self.prior_variance = _positive(prior_variance, "prior_variance")
        scale = torch.full((self.dims,), math.sqrt(self.prior_variance))
        self.parameters = Parameters.from_prior(td.Independent(td.Normal(torch.zeros(self.dims), scale), 1))

    def posterior_mean_and_covariance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact posterior of one or more observations.

        Args:
            x: ``(*, D)``, each row an observation on its own.

        Returns:
            Mean ``(*, D)`` and covariance ``(D, D)``, float64, which does not depend on x.
        """
        _check_event(x, self.dims)
        variance = 1 / (1 / self.prior_variance + 1 / self.noise_variance)
        mean = x.to(torch.float64) * (variance / self.noise_variance)
        return mean, variance * torch.eye(self.dims, dtype=torch.float64, device=x.device)

    def sample_posterior(self, n: int, x: Tensor, *, seed: int = 0) -> Tensor:
        """Draw from the exact posterior of one observation x ``(D,)``: float32 ``(n, D)``."""
        mean, covariance = self.posterior_mean_and_covariance(x.reshape(self.dims))
        with seeded(seed):
            draws = td.MultivariateNormal(mean.cpu(), covariance.cpu()).sample(torch.Size([n]))
        return draws.to(torch.float32)


class GaussianLinearUniform(_LinearGaussian):
    """Uniform prior and Gaussian noise about theta, each direction independent.

    Args:
        dims: number of parameters D, and of observables.
        prior_bound: the prior is uniform on [-prior_bound, prior_bound] in each direction.
        noise_variance: variance of x about theta in each direction.
    """

    name = "gaussian_linear_uniform"

    def __init__(self, dims: int = 10, prior_bound: float = 1.0, noise_variance: float = 0.1) -> None:
        super().__init__(dims, noise_variance)
        self.prior_bound = _positive(prior_bound, "prior_bound")
        bound = torch.full((self.dims,), self.prior_bound)
        self.parameters = Parameters.from_prior(td.Independent(td.Uniform(-bound, bound), 1))

    def sample_posterior(self, n: int, x: Tensor, *, seed: int = 0) -> Tensor:
        """Draw from the exact posterior of one observation x ``(D,)``, a Gaussian cut by the prior: float32 ``(n, D)``.

        By inversion of the cumulative distribution, so that no observation makes it slow.
        """
        _check_event(x, self.dims)
        centre, scale = x.reshape(self.dims).to("cpu", torch.float64), math.sqrt(self.noise_variance)
        # In the lower tail of a Gaussian its cumulative distribution keeps full relative precision: mirror x > 0 there.
        sign = torch.where(centre > 0, 1.0, -1.0).to(torch.float64)
        mirrored = sign * centre
        low = torch.special.log_ndtr((-self.prior_bound - mirrored) / scale)
        high = torch.special.log_ndtr((self.prior_bound - mirrored) / scale)
        with seeded(seed):
            u = torch.rand((n, self.dims), dtype=torch.float64)
        log_cumulative = high + torch.log(u + (1 - u) * torch.exp(low - high))
        theta = mirrored + scale * _ndtri_of_exp(log_cumulative)
        return (sign * theta).clamp(-self.prior_bound, self.prior_bound).to(torch.float32)


def _ndtri_of_exp(log_p: Tensor) -> Tensor:
    """The Gaussian quantile of exp(log_p), also where exp(log_p) is too small for a double."""
    from scipy.special import ndtri_exp

    return torch.as_tensor(ndtri_exp(log_p.numpy()))


def _check_event(x: Tensor, dims: int) -> None:
    if x.ndim == 0 or x.shape[-1] != dims:
        raise ShapeError(f"x: expected shape (*, {dims}), got {tuple(x.shape)}")


def _positive(value: float, name: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name}: expected a positive number, got {value!r}")
    return float(value)
