"""Reading a table of radial velocities: times, velocities, errors and, where there are several, instruments.

Any table that astropy reads will do (CSV, ECSV, FITS, ...).  A column that carries a unit is converted from it; a plain
column is taken to be in the unit that the caller names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy import units
from astropy.table import Table
from torch import Tensor

from sbi_physics.core.checks import finite
from sbi_physics.core.errors import NonFiniteError, StoreError, UsageError

__all__ = ["VelocityTable", "in_unit", "read_velocities"]


@dataclass(frozen=True)
class VelocityTable:
    """N velocities of one star.

    Attributes:
        times: days, float64 ``(N,)``.
        velocities: m/s, float64 ``(N,)``.
        errors: one standard deviation of each velocity, m/s, float64 ``(N,)``.
        instruments: N names; None where the table has a single instrument.
    """

    times: Tensor
    velocities: Tensor
    errors: Tensor
    instruments: tuple[str, ...] | None


def in_unit(value: Any, unit: str, name: str) -> Any:
    """Return the plain number or array of an astropy quantity in `unit`; plain values pass through.

    Raises:
        UsageError: the quantity has another dimension.
    """
    if not isinstance(value, units.Quantity):
        return value
    try:
        number = value.to_value(unit)
    except units.UnitConversionError as error:
        raise UsageError(f"{name}: expected a quantity in {unit}, got one in {value.unit}") from error
    return float(number) if np.ndim(number) == 0 else number


def read_velocities(
    table: str | Path | Table,
    *,
    time: str = "time",
    velocity: str = "velocity",
    error: str = "error",
    instrument: str | None = None,
    time_unit: str = "d",
    velocity_unit: str = "m / s",
) -> VelocityTable:
    """Read and check a table of velocities.

    Args:
        table: an astropy table, or the path of one.
        time: name of the column of times.
        velocity: name of the column of velocities.
        error: name of the column of standard deviations.
        instrument: name of the column of instrument names; None for a single instrument.
        time_unit: unit of the times where their column states none.
        velocity_unit: unit of the velocities and errors where their columns state none.

    Raises:
        StoreError: the file is missing or is no table.
        UsageError: a column is missing or holds no numbers.
        NonFiniteError: a number is missing, NaN or infinite.
    """
    rows, origin = (table, "table") if isinstance(table, Table) else (_open(Path(table)), str(table))
    wanted = [time, velocity, error] + ([instrument] if instrument is not None else [])
    missing = [name for name in wanted if name not in rows.colnames]
    if missing:
        raise UsageError(
            f"{origin}: expected columns {', '.join(wanted)}; {', '.join(missing)} not among those there: "
            f"{', '.join(rows.colnames)}"
        )
    if len(rows) == 0:
        raise UsageError(f"{origin}: expected at least one row, got an empty table")
    columns = [(time, time_unit, "d"), (velocity, velocity_unit, "m / s"), (error, velocity_unit, "m / s")]
    times, velocities, errors = (
        _numbers(rows[name], given, unit, f"{origin}: column {name}") for name, given, unit in columns
    )
    names = None if instrument is None else tuple(_words(rows[instrument], f"{origin}: column {instrument}"))
    return VelocityTable(times, velocities, errors, names)


def _open(path: Path) -> Table:
    if not path.is_file():
        raise StoreError(f"{path}: there is no such file")
    formats = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".txt": "ascii", ".dat": "ascii"}
    try:
        return Table.read(path, format=formats.get(path.suffix.lower()))
    except Exception as error:  # the readers of astropy share no class of errors for damaged files
        reason = str(error).strip().splitlines()
        raise StoreError(
            f"{path}: not a table that astropy reads ({reason[0] if reason else type(error).__name__})"
        ) from (error)


def _numbers(column: Any, given: str, unit: str, name: str) -> Tensor:
    mask = np.ma.getmaskarray(np.ma.asarray(column)) if hasattr(column, "mask") else np.zeros(len(column), bool)
    if np.any(mask):
        raise NonFiniteError(f"{name}: expected a number in each row, got none in row {int(np.flatnonzero(mask)[0])}")
    try:
        values = np.asarray(column.value if isinstance(column, units.Quantity) else column, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: expected numbers, got {column.dtype}") from error
    if values.ndim != 1:
        raise UsageError(f"{name}: expected one number in each row, got shape {values.shape[1:]}")
    stated = getattr(column, "unit", None) or given
    try:
        converted = (values * units.Unit(stated)).to_value(unit)
    except (units.UnitConversionError, ValueError) as error:
        raise UsageError(f"{name}: expected a unit that converts to {unit}, got {stated!s}") from error
    return finite(torch.as_tensor(np.array(converted, dtype=np.float64)), name)


def _words(column: Any, name: str) -> Sequence[str]:
    if np.any(np.ma.getmaskarray(np.ma.asarray(column)) if hasattr(column, "mask") else False):
        raise UsageError(f"{name}: expected an instrument in each row, got an empty one")
    return [str(word).strip() for word in column]
