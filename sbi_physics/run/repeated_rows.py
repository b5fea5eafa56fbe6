"""Rows of a table that were written more than once: what is learned from one is no news in the other."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_physics.core.errors import UsageError
from sbi_physics.store.simulations import Simulations

__all__ = ["repeated_rows", "unlearned_rows"]


def repeated_rows(simulations: Simulations) -> int:
    """How many rows are the same as another before them, parameters and data."""
    keys = _keys(simulations)
    return len(keys) - len(np.unique(keys))


def unlearned_rows(rows: Simulations, learned: Simulations, least: int) -> tuple[Simulations, int]:
    """The rows that are not among those that were learned, and how many are.

    Raises:
        UsageError: fewer than the least number are left.
    """
    fresh = ~np.isin(_keys(rows), _keys(learned))
    if bool(fresh.all()):
        return rows, 0
    if int(fresh.sum()) < least:
        raise UsageError(
            f"expected at least {least} rows to check with that are not among those that were learned, got "
            f"{int(fresh.sum())} of {len(rows)}; say diagnostics.calibration = false to go without"
        )
    theta, x = rows.theta[fresh], rows.x
    kept: Any = {name: value[fresh] for name, value in x.items()} if isinstance(x, dict) else x[fresh]
    return Simulations.from_arrays(theta, kept, rows.parameters), int((~fresh).sum())


def _keys(simulations: Simulations) -> NDArray[Any]:
    """One number of many bytes for each row."""
    x: Any = simulations.x
    columns = [simulations.theta, *(x.values() if isinstance(x, dict) else [x])]
    rows = np.ascontiguousarray(np.concatenate([each.numpy().reshape(len(each), -1) for each in columns], 1))
    return rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))[:, 0]
