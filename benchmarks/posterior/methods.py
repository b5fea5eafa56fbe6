"""The methods that are compared on the tasks of sbibm, each behind the same two calls.

A method is a function ``fit(simulator, simulations, seed, progress)`` that returns a `Sampler`.  An amortised method
trains in `fit` and serves every observation; a method that trains anew for each observation does so in `sample`, with
the whole budget of simulations each time, and says so by ``amortised = False``.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

import sbi_physics as sp

__all__ = ["HELD_OUT", "METHODS", "Method", "NotForThisTaskError", "Sampler"]

HELD_OUT = 2_000


class NotForThisTaskError(Exception):
    """The method cannot do this task; the message says why."""


class Sampler(Protocol):
    """What a method gives.

    Attributes:
        amortised: whether one training serves all observations.
        training_seconds: spent on training so far.
        simulator_calls: made so far, those of the held-out simulations left out.
        held_out: mean log-density in nats of the true parameters of fresh simulations, where the method has one.
    """

    amortised: bool
    training_seconds: float
    simulator_calls: int
    held_out: float | None

    def sample(self, x_obs: Tensor, n: int, seed: int) -> Tensor:
        """Draws ``(n, P)`` of the posterior of one observation ``(x_dims,)``."""


class Method(Protocol):
    """A method."""

    def __call__(self, simulator: Any, simulations: int, seed: int, progress: bool, /) -> Sampler:
        """Train, if it is amortised, on so many simulations."""


@dataclass
class _Amortised:
    """A posterior of the package."""

    posterior: sp.Posterior
    training_seconds: float
    simulator_calls: int
    held_out: float | None
    amortised: bool = True

    def sample(self, x_obs: Tensor, n: int, seed: int) -> Tensor:
        return self.posterior.sample(n, x_obs, seed=seed).values


def _npe(check: Callable[[Any], None] = lambda simulator: None, **settings: Any) -> Method:
    def fit(simulator: Any, simulations: int, seed: int, progress: bool) -> Sampler:
        check(simulator)
        theta, x = sp.simulate(simulator, simulations, seed=seed, progress=progress).training_set()
        began = time.monotonic()
        posterior = sp.NPE(simulator.parameters, **settings).fit(theta, x, seed=seed, progress=progress)
        seconds = time.monotonic() - began
        fresh = sp.simulate(simulator, HELD_OUT, seed=seed + 1000, progress=progress).training_set()
        held_out = float(posterior.log_prob(*fresh).double().mean())
        return _Amortised(posterior, seconds, simulations, held_out)

    return fit


def _needs_bounds(simulator: Any) -> None:
    if not all(map(math.isfinite, simulator.parameters.bounds.flatten().tolist())):
        raise NotForThisTaskError("it needs finite bounds of all parameters")


METHODS: dict[str, Method] = {
    "npe": _npe(),
    "npe-ensemble": _npe(ensemble=8),
    "npe-box": _npe(_needs_bounds, model="nsf-box"),
    "npe-maf": _npe(model="maf"),
}
