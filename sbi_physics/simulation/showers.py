"""`simulate_showers`: a run of a simulator of showers, into a file of the CaloChallenge.

The run goes into a file of simulations beside the file to be, ``<out>.simulations``, block by block and resumable; that
one is then converted, a few megabytes at a time, and goes.  The file that is left says which run it holds.
"""

import json
import logging
from pathlib import Path
from typing import Any

from sbi_physics.core.errors import ShapeError, StoreError
from sbi_physics.core.protocols import Simulator
from sbi_physics.simulation.run import run_identity, simulate
from sbi_physics.store.calochallenge import convert_simulations, origin_of

__all__ = ["simulate_showers"]

_log = logging.getLogger(__name__)


def simulate_showers(
    simulator: Simulator,
    n: int,
    out: str | Path,
    *,
    seed: int = 0,
    workers: int | None = None,
    theta: Any = None,
    progress: bool = True,
) -> None:
    """Draw n showers as `simulate` does; a run that was killed is taken up, and one that is finished is left as it is.

    Args:
        simulator: of showers ``(voxels,)`` in MeV, whose one parameter is the incident energy in MeV.
        n: number of showers.
        out: HDF5 file to write, in the format of `store.calochallenge`.
        seed: integer that decides every random number.
        workers: as of `simulate`.
        theta: ``(n, 1)`` incident energies, instead of draws from the prior.
        progress: whether to show bars where standard error is a terminal.

    Raises:
        UsageError, SupportError: as of `simulate`.
        ShapeError: the simulator has another parameter, or gives no showers.
        StoreError: `out` holds something else, or cannot be written.
    """
    shape = getattr(simulator, "x_shape", None)
    if len(simulator.parameters) != 1 or isinstance(shape, dict) or (shape is not None and len(shape) != 1):
        raise ShapeError(
            f"simulator: expected an incident energy and a shower (voxels,), got {simulator.parameters.names} and "
            f"{shape if isinstance(shape, dict) else tuple(shape or ())}"
        )
    out = Path(out)
    native = out.with_name(f"{out.name}.simulations")
    origin = json.dumps(run_identity(simulator, n, seed=seed, theta=theta), sort_keys=True)
    if not out.exists():
        made = simulate(simulator, n, out=native, seed=seed, workers=workers, theta=theta, progress=progress)
        written = convert_simulations(made, out, origin=origin, progress=progress)
        if written < n:
            _log.warning("%s: %d of %d showers failed and are left out", out, n - written, n)
    elif origin_of(out) != origin:
        raise StoreError(f"{out}: holds other events; choose another name or remove it")
    native.unlink(missing_ok=True)
