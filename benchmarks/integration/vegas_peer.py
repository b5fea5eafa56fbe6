"""VEGAS as it is (Lepage 2021, arXiv:2009.05112; package vegas 6.4), run to a wanted relative error.

All settings are its own, except the calls of an iteration: several are tried and the run that took the fewest calls is
reported, the others for nothing.  Iterations go on until the weighted mean of all of them, the first ones included, has
the wanted error by vegas's own account, or the budget ends.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["integrated", "vectorised"]

_SIZES = (10_000, 30_000, 100_000)


def vectorised(f: Callable[[Tensor], Tensor]) -> Any:
    """A function of tensors as vegas takes it: batches of NumPy points to values."""
    import vegas

    def batch(x: Any) -> Any:
        return f(torch.from_numpy(np.ascontiguousarray(x))).numpy()

    return vegas.lbatchintegrand(batch)


def integrated(
    f: Callable[[Tensor], Tensor], dims: int, rel_error: float, seed: int, max_calls: int = 50_000_000
) -> dict[str, Any]:
    """Calls, value, error and seconds of the best of the runs; calls are None where none reached the error."""
    runs = []
    for size in _SIZES:
        best = min(each["calls"] or max_calls for each in runs) if runs else max_calls
        runs.append(_run(f, dims, rel_error, size, seed, best))
    return min(runs, key=lambda each: each["calls"] or math.inf)


def _run(
    f: Callable[[Tensor], Tensor], dims: int, rel_error: float, size: int, seed: int, max_calls: int
) -> dict[str, Any]:
    import gvar
    import vegas

    gvar.ranseed(seed)
    began = time.monotonic()
    integrator = vegas.Integrator([[0, 1]] * dims)
    result = integrator(vectorised(f), nitn=max(2, max_calls // size), neval=size, rtol=rel_error)
    reached = result.sdev <= rel_error * abs(result.mean)
    return {
        "calls": int(result.sum_neval) if reached else None,
        "calls_of_iteration": size,
        "value": float(result.mean),
        "error": float(result.sdev),
        "seconds": time.monotonic() - began,
    }
