"""Stars of a galaxy as Gaia would see them, without errors, and back.

The Sun is where, and moves as, the Galactocentric frame of astropy says in its fixed set of parameters "v4.0", whatever
the default of the session is: 8.122 kpc from the centre (GRAVITY collaboration 2018, arXiv:1807.09409), 20.8 pc above
the plane (Bennett & Bovy 2019, arXiv:1809.03507), at (12.9, 245.6, 7.78) km/s (Drimmel & Poggio 2018).  Distance is the
inverse of the parallax, exact here since neither has an error.  `QTable.write(path, format="fits")` keeps the units.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy import units
from astropy.coordinates import (
    ICRS,
    CartesianDifferential,
    CartesianRepresentation,
    Galactic,
    Galactocentric,
    SphericalCosLatDifferential,
    SphericalRepresentation,
    galactocentric_frame_defaults,
)
from astropy.table import QTable, Table
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, same_length
from sbi_physics.core.errors import StoreError, UsageError

__all__ = ["GAIA_UNITS", "from_gaia", "to_gaia"]

GAIA_UNITS = {
    "ra": "deg",
    "dec": "deg",
    "parallax": "mas",
    "pmra": "mas / yr",
    "pmdec": "mas / yr",
    "radial_velocity": "km / s",
    "l": "deg",
    "b": "deg",
    "distance": "kpc",
}
"""The columns of `to_gaia`, named as in the Gaia archive, and their units; `distance` is not one of Gaia's."""

_NEEDED = ("ra", "dec", "parallax", "pmra", "pmdec", "radial_velocity")
_CLOSEST = 1e-9
_FRAME = "v4.0"


def to_gaia(positions: Any, velocities: Any, *, columns: Mapping[str, Any] | None = None) -> QTable:
    """Observe stars from the Sun.

    Args:
        positions: Galactocentric, ``(n, 3)`` in kpc.
        velocities: ``(n, 3)`` in km/s.
        columns: further columns of the table, n rows each, such as ``{"age": stars.ages * units.Gyr}``.

    Returns:
        A table with the columns and units of `GAIA_UNITS`; `pmra` is the proper motion with the cosine of dec.

    Raises:
        ShapeError, NonFiniteError: an array has another shape or number of rows, or is not finite.
        UsageError: a star is at the Sun, where it has no direction and no parallax, or a further column has the name
            of one of those here.
    """
    x, v = (
        finite(batch_of(as_tensor(values, name, dtype=torch.float64).cpu(), (3,), name), name).numpy()
        for values, name in ((positions, "positions"), (velocities, "velocities"))
    )
    same_length(positions=torch.from_numpy(x), velocities=torch.from_numpy(v))
    further = dict(columns or {})
    for name in further:
        if name in GAIA_UNITS:
            raise UsageError(f"columns: {name!r} is one of the columns that are computed: {', '.join(GAIA_UNITS)}")
    _away_from_the_sun(x)
    seen = _frame(x, v).transform_to(ICRS())
    spherical = seen.represent_as(SphericalRepresentation, SphericalCosLatDifferential)
    distance = spherical.distance.to("kpc")
    galactic = seen.transform_to(Galactic())
    motion = spherical.differentials["s"]
    found = {
        "ra": spherical.lon,
        "dec": spherical.lat,
        "parallax": distance.to("mas", units.parallax()),
        "pmra": motion.d_lon_coslat,
        "pmdec": motion.d_lat,
        "radial_velocity": motion.d_distance,
        "l": galactic.l,
        "b": galactic.b,
        "distance": distance,
    }
    table = QTable({name: units.Quantity(found[name], unit) for name, unit in GAIA_UNITS.items()})
    for name, values in further.items():
        table[name] = values.numpy() if isinstance(values, Tensor) else values
    table.meta["GALCEN"] = _FRAME
    return table


def from_gaia(table: Table | str | Path) -> tuple[Tensor, Tensor]:
    """Place stars in the galaxy from what Gaia sees: the inverse of `to_gaia`, for parallaxes without errors.

    Args:
        table: with columns ra, dec, parallax, pmra, pmdec and radial_velocity, with or without units (those of
            `GAIA_UNITS` then), or the path of a FITS file of such a table.

    Returns:
        Galactocentric positions ``(n, 3)`` in kpc and velocities ``(n, 3)`` in km/s, float64.

    Raises:
        StoreError: the file is missing or holds no table.
        UsageError: a column is missing or has another dimension, or a parallax is not positive.
        NonFiniteError: a value is missing or not finite.
    """
    rows = table if isinstance(table, Table) else _open(Path(table))
    missing = [name for name in _NEEDED if name not in rows.colnames]
    if missing:
        raise UsageError(f"table: expected the columns {', '.join(_NEEDED)}; missing: {', '.join(missing)}")
    ra, dec, parallax, pmra, pmdec, radial_velocity = (_column(rows, name) for name in _NEEDED)
    if not (parallax > 0).all():
        row = int(np.flatnonzero(~(parallax > 0))[0])
        raise UsageError(f"parallax: expected positive values, got {parallax[row]} in row {row}")
    seen = ICRS(
        ra=ra,
        dec=dec,
        distance=parallax.to("kpc", units.parallax()),
        pm_ra_cosdec=pmra,
        pm_dec=pmdec,
        radial_velocity=radial_velocity,
    )
    placed = seen.transform_to(_frame())
    x = placed.cartesian.xyz.to_value("kpc").T
    v = placed.velocity.d_xyz.to_value("km / s").T
    return torch.from_numpy(np.array(x)), torch.from_numpy(np.array(v))


def _frame(positions: np.ndarray | None = None, velocities: np.ndarray | None = None) -> Galactocentric:
    parameters = galactocentric_frame_defaults.get_from_registry(_FRAME)["parameters"]
    if positions is None:
        return Galactocentric(**parameters)
    differentials = None if velocities is None else CartesianDifferential(velocities.T * units.km / units.s)
    return Galactocentric(CartesianRepresentation(positions.T * units.kpc, differentials=differentials), **parameters)


def _away_from_the_sun(positions: np.ndarray) -> None:
    distances = _frame(positions).transform_to(ICRS()).cartesian.norm().to_value("kpc")
    row = int(np.argmin(distances))
    if distances[row] < _CLOSEST:
        raise UsageError(
            f"positions: expected stars away from the Sun, got one at {distances[row]:.2g} kpc in row {row}"
        )


def _open(path: Path) -> QTable:
    if not path.is_file():
        raise StoreError(f"{path}: there is no such file")
    try:
        return QTable.read(path, format="fits")
    except Exception as error:  # the readers of astropy share no class of errors for damaged files
        raise StoreError(f"{path}: expected a FITS file with a table, got {type(error).__name__}: {error}") from error


def _column(rows: Table, name: str) -> units.Quantity:
    column, unit = rows[name], GAIA_UNITS[name]
    values = np.ma.filled(np.ma.asarray(getattr(column, "value", column), dtype=np.float64), np.nan)
    try:
        quantity = units.Quantity(values, getattr(column, "unit", None) or unit).to(unit)
    except units.UnitConversionError as error:
        raise UsageError(f"{name}: expected a column in {unit}, got one in {column.unit}") from error
    finite(torch.from_numpy(np.atleast_1d(quantity.value)), name)
    return quantity
