"""How long an event takes, in batches of a size, with its standard error."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

__all__ = ["Timing", "largest_batch", "time_events"]

_ENOUGH_SECONDS = 1.0
_LONG_SECONDS = 5.0
_FEWEST_REPEATS = 3
_MOST_REPEATS = 20


class Timing(NamedTuple):
    """Seconds for each event, and the standard error of this mean; NaN where one batch was all that there was time for.

    `batch` is the number of events that were asked for at once.
    """

    batch: int
    seconds: float
    error: float


def time_events(simulator: Callable[..., object], theta: Tensor, batch: int) -> Timing:
    """Time batches with parameters from ``(n, P)``.

    The first one, which may load or compile something, counts only if it takes more than five seconds; then it is the
    only one.
    """
    rows = theta.repeat(-(-batch // len(theta)), 1)[:batch]
    found = [_once(simulator, rows, 0)]
    if found[0] > _LONG_SECONDS:
        return Timing(batch, found[0] / batch, math.nan)
    found = []
    while len(found) < _MOST_REPEATS and (len(found) < _FEWEST_REPEATS or sum(found) < _ENOUGH_SECONDS):
        found.append(_once(simulator, rows, 1 + len(found)))
    mean = sum(found) / len(found)
    variance = sum((seconds - mean) ** 2 for seconds in found) / (len(found) - 1)
    return Timing(batch, mean / batch, math.sqrt(variance / len(found)) / batch)


def largest_batch(simulator: Callable[..., object], theta: Tensor, batches: tuple[int, ...]) -> Timing:
    """The timing of the largest of rising batches for which there is time."""
    found = time_events(simulator, theta, batches[0])
    for batch in batches[1:]:
        # As long as a batch costs what its events do; most cost less.
        if found.seconds * batch > 2 * _LONG_SECONDS:
            break
        found = time_events(simulator, theta, batch)
    return found


def _once(simulator: Callable[..., object], rows: Tensor, seed: int) -> float:
    began = time.perf_counter()
    simulator(rows, seed=seed)
    return time.perf_counter() - began
