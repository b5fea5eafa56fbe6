r"""The Lotka-Volterra equations, solved for many sets of rates at once; no simulator, but what two of them stand on.

With prey X and predators Y,

$$ \dot X = \alpha X - \beta X Y, \qquad \dot Y = -\gamma Y + \delta X Y. $$

An epidemic is the same: the susceptible are prey that does not grow (alpha = 0), the infected are predators.

The solution is followed in ln X and ln Y, which stay of order ten while the populations sink to 1e-10.  A step uses the
Taylor series of X and Y, whose coefficients come from one another by a single Cauchy product for X Y, integrated term
by term, and is as long as the last two terms allow (Jorba & Zou 2005, Experimental Mathematics 14, 99).  Each row has
its own steps, so a row gives the same whatever stands beside it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["log_populations"]

_ORDER = 12
# Of ln X and ln Y, in one step.
_TOLERANCE = 1e-11
# Between two times; what needs more is not a number.
_MAX_STEPS = 2_000
# As many rows as stay in the cache of a processor.
_BLOCK = 8_192
_MANY = 1_000


def log_populations(rates: Tensor, start: Tensor, times: Sequence[float]) -> Tensor:
    """Follow the logarithms of both populations: differentiable in the rates, float64.

    Args:
        rates: alpha, beta, gamma, delta ``(*, 4)`` in inverse units of time, none negative.
        start: ln X and ln Y at time zero, ``(2,)``.
        times: T times, increasing, from zero on.

    Returns:
        ln X and ln Y at each time ``(*, T, 2)``; NaN from where 2,000 steps are not enough to reach the next time.
    """
    rows = rates.to(torch.float64).reshape(-1, 4)
    start = start.to(rows.device, torch.float64)
    blocks = [_follow(block.T, start, times) for block in rows.split(_BLOCK)]
    return torch.cat(blocks).reshape(*rates.shape[:-1], len(times), 2)


def _follow(rates: Tensor, start: Tensor, times: Sequence[float]) -> Tensor:
    """The states ``(n, T, 2)`` of one block of rates ``(4, n)``."""
    state = start.unsqueeze(-1).expand(2, rates.shape[-1])
    states, now = [], 0.0
    for time in times:
        state = _advance(state, rates, time - now) if time > now else state
        states.append(state)
        now = time
    return torch.stack(states).permute(2, 0, 1)


def _advance(state: Tensor, rates: Tensor, duration: float) -> Tensor:
    """The states ``(2, n)`` after a duration; rows that have arrived wait outside for the others."""
    arrived = state
    rows = torch.arange(state.shape[-1], device=state.device)
    remaining = torch.full_like(state[0], duration)
    for _ in range(_MAX_STEPS):
        if len(rows) >= _MANY and torch.is_grad_enabled() and rates.requires_grad:
            # Each step is computed once more on the way back: what autograd keeps of all of them would fill the memory.
            state, remaining = checkpoint(_step, state, rates, remaining, use_reentrant=False, preserve_rng_state=False)
        else:
            state, remaining = _step(state, rates, remaining)
        if state.device.type == "meta":
            return state
        under_way = remaining > 0
        if not bool(under_way.all()):
            arrived = arrived.index_copy(1, rows, state)
            state, rates, remaining, rows = (t[..., under_way] for t in (state, rates, remaining, rows))
        if len(rows) == 0:
            return arrived
    return arrived.index_fill(1, rows, torch.nan)


def _step(state: Tensor, rates: Tensor, remaining: Tensor) -> tuple[Tensor, Tensor]:
    """One step of each row, no further than the time that remains."""
    alpha, beta, gamma, delta = rates
    alone, together = torch.stack([alpha, -gamma]), torch.stack([-beta, delta])
    series = _taylor_series(torch.exp(state), alone, together)
    with torch.no_grad():
        step = torch.minimum(_reach(series, together), remaining)
    integral = series[-1] / _ORDER
    for k in range(_ORDER - 1, 0, -1):
        integral = torch.add(step * integral, series[k - 1], alpha=1 / k)
    # d ln X / dt = alpha - beta Y and d ln Y / dt = -gamma + delta X: each grows by the integral of the other.
    return state + step * torch.addcmul(alone, together, integral.flip(0)), remaining - step


def _taylor_series(populations: Tensor, alone: Tensor, together: Tensor) -> list[Tensor]:
    """The coefficients, each ``(2, n)``, of 1, t, t^2, ... in the Taylor series of X and Y."""
    series = [populations]
    x, y = [populations[0]], [populations[1]]
    for k in range(1, _ORDER):
        encounters = x[0] * y[-1]
        for j in range(1, k):
            encounters = torch.addcmul(encounters, x[j], y[k - 1 - j])
        series.append(torch.addcmul(alone * series[-1], together, encounters) / k)
        prey, predators = series[-1].unbind()
        x.append(prey)
        y.append(predators)
    return series


def _reach(series: list[Tensor], together: Tensor) -> Tensor:
    """The step ``(n,)`` at which either of the last two terms of ln X and ln Y is as large as the tolerance."""
    reaches = []
    for order in (_ORDER - 1, _ORDER):
        term = (together.flip(0) * series[order - 1]).abs().amax(0) / order
        reaches.append((_TOLERANCE / term) ** (1 / order))
    return torch.minimum(*reaches)
