r"""The log-uniform distribution: every factor is as likely as any other of the same size.

$$ p(x) = \frac{1}{x \ln(b/a)}, \qquad a \le x \le b, $$

so that $\ln x$ is uniform; the usual prior of a scale, such as an energy that spans decades.
"""

from typing import Any

import torch
import torch.distributions as td
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

__all__ = ["LogUniform"]


class LogUniform(td.Distribution):
    """Uniform in the logarithm between two positive bounds.

    Args:
        low: lower bound, positive.
        high: upper bound, above `low`.
        validate_args: False leaves the bounds unchecked; packages that switch the checks of torch off for the whole
            process do not.

    Raises:
        ValueError: a bound is not positive, or they are out of order.
    """

    arg_constraints: dict[str, Any] = {  # noqa: RUF012  torch.distributions declares it so
        "low": constraints.dependent(is_discrete=False, event_dim=0),
        "high": constraints.dependent(is_discrete=False, event_dim=0),
    }
    has_rsample = False

    def __init__(self, low: float | Tensor, high: float | Tensor, validate_args: bool | None = None) -> None:
        self.low, self.high = broadcast_all(low, high)
        super().__init__(self.low.shape, validate_args=validate_args)
        if validate_args is not False and not bool(((self.low > 0) & (self.low < self.high)).all()):
            raise ValueError(f"LogUniform: expected 0 < low < high, got low {self.low} and high {self.high}")

    @property
    def support(self) -> Any:
        """The closed interval between the bounds."""
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LogUniform":
        """The same distribution, repeated to a batch shape."""
        shape = torch.Size(batch_shape)
        return LogUniform(self.low.expand(shape), self.high.expand(shape), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch_shape)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.icdf(torch.rand(shape, dtype=self.low.dtype, device=self.low.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats at value ``(*, *batch_shape)``; minus infinity outside the bounds."""
        inside = (value >= self.low) & (value <= self.high)
        density = -torch.log(torch.where(inside, value, self.low)) - torch.log(torch.log(self.high / self.low))
        return torch.where(inside, density, -torch.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability below value ``(*, *batch_shape)``."""
        return (torch.log(value / self.low) / torch.log(self.high / self.low)).clamp(0, 1)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile of a probability ``(*, *batch_shape)``, within the bounds."""
        quantile = self.low * torch.exp(value * torch.log(self.high / self.low))
        return torch.minimum(torch.maximum(quantile, self.low), self.high)
