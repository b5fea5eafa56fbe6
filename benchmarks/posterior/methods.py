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


def _amortised(
    estimator: Callable[..., Any], check: Callable[[Any], None] = lambda simulator: None, **settings: Any
) -> Method:
    def fit(simulator: Any, simulations: int, seed: int, progress: bool) -> Sampler:
        check(simulator)
        theta, x = sp.simulate(simulator, simulations, seed=seed, progress=progress).training_set()
        began = time.monotonic()
        posterior = estimator(simulator.parameters, **settings).fit(theta, x, seed=seed, progress=progress)
        seconds = time.monotonic() - began
        # The density of a likelihood or a ratio is known up to the evidence.
        held_out = _held_out(posterior, simulator, seed, progress) if estimator is sp.NPE else None
        return _Amortised(posterior, seconds, simulations, held_out)

    return fit


def _held_out(posterior: sp.Posterior, simulator: Any, seed: int, progress: bool) -> float:
    fresh = sp.simulate(simulator, HELD_OUT, seed=seed + 1000, progress=progress).training_set()
    return float(posterior.log_prob(*fresh).double().mean())


@dataclass
class _Points(_Amortised):
    """A likelihood of single points, of which an observation holds several."""

    points: int = 1

    def sample(self, x_obs: Tensor, n: int, seed: int) -> Tensor:
        return self.posterior.sample(n, x_obs.reshape(self.points, -1), iid=True, seed=seed).values


def _points(points: dict[str, int], **settings: Any) -> Method:
    def fit(simulator: Any, simulations: int, seed: int, progress: bool) -> Sampler:
        k = points.get(simulator.name)
        if k is None:
            raise NotForThisTaskError("its observations are not several points")
        theta, x = sp.simulate(simulator, simulations, seed=seed, progress=progress).training_set()
        began = time.monotonic()
        pairs = theta.repeat_interleave(k, 0), x.reshape(len(x) * k, -1)
        posterior = sp.NLE(simulator.parameters, **settings).fit(*pairs, seed=seed, progress=progress)
        return _Points(posterior, time.monotonic() - began, simulations, None, points=k)

    return fit


@dataclass
class _Sequential:
    """Truncated sequential estimation, anew for each observation."""

    simulator: Any
    simulations: int
    settings: dict[str, Any]
    seed: int
    progress: bool
    training_seconds: float = 0.0
    simulator_calls: int = 0
    held_out: float | None = None
    amortised: bool = False

    def sample(self, x_obs: Tensor, n: int, seed: int) -> Tensor:
        began = time.monotonic()
        posterior = sp.TSNPE(self.simulator.parameters, **self.settings).fit(
            self.simulator, x_obs, simulations=self.simulations, seed=self.seed, progress=self.progress
        )
        self.training_seconds += time.monotonic() - began
        self.simulator_calls += self.simulations
        return posterior.sample(n, seed=seed).values


def _sequential(**settings: Any) -> Method:
    def fit(simulator: Any, simulations: int, seed: int, progress: bool) -> Sampler:
        return _Sequential(simulator, simulations, settings, seed, progress)

    return fit


def _needs_bounds(simulator: Any) -> None:
    if not all(map(math.isfinite, simulator.parameters.bounds.flatten().tolist())):
        raise NotForThisTaskError("it needs finite bounds of all parameters")


METHODS: dict[str, Method] = {
    "npe": _amortised(sp.NPE),
    "npe-plain": _amortised(sp.NPE, augment=False),
    "npe-ensemble": _amortised(sp.NPE, ensemble=8),
    "npe-box": _amortised(sp.NPE, _needs_bounds, model="nsf-box"),
    "npe-maf": _amortised(sp.NPE, model="maf"),
    "npe-mixture": _amortised(sp.NPE, model="mixture"),
    "npe-flow-matching": _amortised(sp.NPE, model="flow-matching"),
    "npe-score": _amortised(sp.NPE, model="score"),
    "nle": _amortised(sp.NLE),
    "nle-maf": _amortised(sp.NLE, model="maf"),
    "nle-points": _points({"slcp": 4}),
    "nre": _amortised(sp.NRE),
    "tsnpe": _sequential(),
}
