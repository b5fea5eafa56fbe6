"""Where annealing starts: draws of the prior at which the likelihood is above zero."""

from collections.abc import Callable

import torch
from torch import Tensor

from sbi_physics.core.errors import ConvergenceError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import derive
from sbi_physics.sampling.ensemble import Cloud

__all__ = ["prior_clouds"]

_ROUNDS = 10


def prior_clouds(
    evaluate: Callable[[Tensor, Tensor], Cloud],
    parameters: Parameters,
    observations: int,
    particles: int,
    seed: int,
    device: torch.device,
) -> tuple[Cloud, Tensor, Tensor, Tensor]:
    """Draw clouds of particles from the prior, again where the likelihood is zero.

    Args:
        evaluate: gives the densities at places ``(k, m, P)`` in the unbounded space for observations ``(k,)``.
        parameters: the prior.
        observations: how many clouds, B.
        particles: in each, N.
        seed: of the draws.
        device: of the clouds.

    Returns:
        The clouds, the family ``(B, N)`` of each particle (there are copies only where the likelihood is almost
        everywhere zero), the logarithm of the share ``(B,)`` of the prior where it is not, and its variance.

    Raises:
        ConvergenceError: the likelihood of an observation is zero at all draws, or at almost all.
    """
    short = torch.arange(observations, device=device)
    found = torch.zeros(observations, dtype=torch.int64, device=device)
    tried = torch.zeros_like(found)

    def draw(attempt: int) -> Cloud:
        theta = parameters.sample(len(short) * particles, seed=derive(seed, "prior", attempt)).double().to(device)
        z, _ = parameters.bijection.to_unbounded(theta.reshape(len(short), particles, -1))
        fresh = evaluate(z, short)
        found[short] += _possible(fresh).sum(-1)
        tried[short] += particles
        return fresh

    clouds = draw(0)
    for attempt in range(1, _ROUNDS):
        short = torch.nonzero(found < particles)[:, 0]
        if not len(short):
            break
        both = clouds.of(short).join(draw(attempt))
        possible_first = torch.sort(_possible(both).int(), dim=-1, descending=True, stable=True).indices
        clouds.put(short, both.take(possible_first[:, :particles]))
    _check_possible(found, tried, len(parameters) + 2)
    distinct = found.clamp(max=particles).unsqueeze(-1)
    families = torch.arange(particles, device=device) % distinct
    share = found.double() / tried
    return clouds.take(families), families, torch.log(share), (1 - share) / found


def _possible(clouds: Cloud) -> Tensor:
    return torch.isfinite(clouds.log_likelihood) & torch.isfinite(clouds.log_prior)


def _check_possible(found: Tensor, tried: Tensor, least: int) -> None:
    bad = torch.nonzero(found < least)[:, 0].tolist()
    if not bad:
        return
    first = bad[0]
    which = f"observation {first}" if len(bad) == 1 else f"observations {', '.join(map(str, bad[:8]))}"
    if len(bad) > 8:
        which += f" and {len(bad) - 8} more"
    if not int(found[first]):
        raise ConvergenceError(
            f"{which}: impossible under the prior: the likelihood is zero at all of {int(tried[first])} draws of it; "
            "check units, and that the prior holds the truth"
        )
    raise ConvergenceError(
        f"{which}: almost impossible under the prior: the likelihood is above zero at only {int(found[first])} of "
        f"{int(tried[first])} draws of it, expected at least {least}"
    )
