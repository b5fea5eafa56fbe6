"""The density that exact samplers aim at: prior times likelihood, at a fixed observation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor
from sbi_physics.core.errors import NonFiniteError, ShapeError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.protocols import LogDensity

__all__ = ["checked_log_density", "posterior_target"]


def checked_log_density(
    value: Any, theta: Tensor, name: str = "log_density", observations: Tensor | None = None
) -> Tensor:
    """Return the log-densities `value` of rows theta ``(*, P)`` if they can be sampled from.

    Args:
        value: what the log-density gave: a tensor, or an array.
        theta: where.
        name: of the log-density, for the message.
        observations: numbers, for the message, of the observations along the first axis.

    Raises:
        ShapeError: they are not ``(*,)``.
        NonFiniteError: one is NaN or plus infinity; the message gives its theta.
    """
    if not isinstance(value, Tensor):
        # A likelihood in NumPy is as good as one in torch.
        value = as_tensor(value, name, dtype=theta.dtype).to(theta.device)
    if value.shape != theta.shape[:-1]:
        raise ShapeError(f"{name}: expected shape {tuple(theta.shape[:-1])}, got {tuple(value.shape)}")
    bad = torch.isnan(value) | (value == torch.inf)
    if bool(bad.any()):
        row = tuple(int(i) for i in torch.nonzero(bad)[0])
        got = "NaN" if bool(torch.isnan(value[row])) else "plus infinity"
        of = "" if observations is None else f" of observation {int(observations[row[0]])}"
        raise NonFiniteError(
            f"{name}: expected numbers or minus infinity, got {got} at theta = {theta[row].tolist()}{of}"
        )
    return value


def posterior_target(
    parameters: Parameters, log_likelihood: Callable[[Tensor, Tensor], Tensor], x_obs: Tensor
) -> LogDensity:
    """The unnormalised log-posterior ``ln p(theta) + ln p(x_obs | theta)``, in double precision.

    The likelihood is called only with rows inside the prior; minus infinity is a value it may return, NaN and plus
    infinity are not.

    Args:
        parameters: the prior.
        log_likelihood: ``(theta (n, P), x)`` to ``(n,)``, as `TractableSimulator.log_likelihood`.
        x_obs: the observation, handed on as it is.

    Returns:
        A function from theta ``(n, P)`` to float64 ``(n,)``; it raises `ShapeError` and `NonFiniteError` where the
        likelihood returns something else.
    """

    def log_density(theta: Tensor, /) -> Tensor:
        rows = theta.double()
        result = parameters.log_prob(rows).double()
        inside = torch.isfinite(result)
        if not bool(inside.any()):
            return result
        value = checked_log_density(log_likelihood(rows[inside], x_obs), rows[inside], "log_likelihood")
        result = result.clone()
        result[inside] += value.double()
        return result

    return log_density
