"""Chains that learned posteriors are compared with: emcee from the best of many draws of the prior, thinned."""

import math
import time
from typing import Any

import torch
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import DEVICE
from sbi_physics.core.random import derive
from sbi_physics.sampling.target import posterior_target

__all__ = ["best_start", "emcee", "shuffled"]

_WIDE = 20_000


def best_start(simulator: Any, count: int, seed: int) -> tuple[Any, Tensor]:
    """The target of a simulator with `observed` and `log_likelihood`, and the best of many draws of its prior."""
    target = posterior_target(simulator.parameters, simulator.log_likelihood, simulator.observed)
    wide = simulator.parameters.sample(_WIDE, seed=derive(seed, "start")).double()
    return target, wide[target(wide).topk(count).indices]


def emcee(simulator: Any, walkers: int, steps: int, seed: int) -> tuple[sp.Samples, Tensor, float]:
    """All draws of a run, one of each autocorrelation time of each walker, and its seconds."""
    began = time.monotonic()
    target, start = best_start(simulator, walkers, seed)
    samples = sp.mcmc(
        target,
        start,
        steps=steps,
        walkers=walkers,
        parameters=simulator.parameters,
        seed=seed,
        device=DEVICE,
        progress=False,
    )
    seconds = time.monotonic() - began
    stride = math.ceil(samples.diagnostics["autocorrelation_time"])
    by_walker = samples.values.reshape(walkers, -1, len(simulator.parameters))
    return samples, by_walker[:, ::stride].flatten(0, 1), seconds


def shuffled(draws: Tensor, n: int, seed: int) -> Tensor:
    """N of the draws, in another order."""
    return draws[torch.randperm(len(draws), generator=torch.Generator().manual_seed(seed))][:n]
