"""The density that exact samplers aim at: prior times likelihood, at a fixed observation."""

from collections.abc import Callable

import torch
from torch import Tensor

from sbi_physics.core.errors import NonFiniteError, ShapeError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.protocols import LogDensity

__all__ = ["posterior_target"]


def posterior_target(
    parameters: Parameters, log_likelihood: Callable[[Tensor, Tensor], Tensor], x_obs: Tensor
) -> LogDensity:
    """The unnormalised log-posterior ``ln p(theta) + ln p(x_obs | theta)``, in double precision.

    The likelihood is called only with rows inside the prior; minus infinity is a value it may return, NaN is not.

    Args:
        parameters: the prior.
        log_likelihood: ``(theta (n, P), x)`` to ``(n,)``, as `TractableSimulator.log_likelihood`.
        x_obs: the observation, handed on as it is.

    Returns:
        A function from theta ``(n, P)`` to float64 ``(n,)``.
    """

    def log_density(theta: Tensor, /) -> Tensor:
        rows = theta.double()
        result = parameters.log_prob(rows).double()
        inside = torch.isfinite(result)
        if not bool(inside.any()):
            return result
        value = log_likelihood(rows[inside], x_obs).double()
        if value.shape != (int(inside.sum()),):
            raise ShapeError(f"log_likelihood: expected shape ({int(inside.sum())},), got {tuple(value.shape)}")
        if bool(torch.isnan(value).any()):
            row = rows[inside][torch.nonzero(torch.isnan(value))[0, 0]]
            raise NonFiniteError(
                f"log_likelihood: expected numbers or minus infinity, got NaN at theta = {row.tolist()}"
            )
        result = result.clone()
        result[inside] += value
        return result

    return log_density
