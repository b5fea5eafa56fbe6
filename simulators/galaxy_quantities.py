"""Fields of dataclasses that carry a unit: plain numbers are in that unit, astropy quantities are converted to it.

The units of the galaxy are kpc, km/s, Gyr, solar masses and dex throughout; `units_of` lists those of a component.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from sbi_physics.core.errors import UsageError
from simulators.velocity_table import in_unit

__all__ = ["measured_in", "read_quantities", "units_of"]


def measured_in(
    unit: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    length: int | None = None,
    infinite: bool = False,
) -> dict[str, Any]:
    """Metadata of a dataclass field that is a number in `unit`, which `read_quantities` reads and checks.

    Args:
        unit: an astropy unit string, empty for a pure number.
        least: the values are at least this.
        above: the values are larger than this.
        below: the values are smaller than this.
        length: a vector of so many numbers rather than one number.
        infinite: whether plus infinity is allowed.
    """
    return {"unit": unit, "least": least, "above": above, "below": below, "length": length, "infinite": infinite}


def read_quantities(instance: Any) -> None:
    """Replace the quantities of a frozen dataclass by plain numbers, or by tuples of them; called in `__post_init__`.

    Raises:
        UsageError: a value has another dimension or length, is not finite, or is out of its range.
    """
    for field in dataclasses.fields(instance):
        if "unit" in field.metadata:
            name = f"{type(instance).__name__}: {field.name}"
            object.__setattr__(instance, field.name, _read(getattr(instance, field.name), name, **field.metadata))


def units_of(component: Any) -> dict[str, str]:
    """Return the unit string of each field of a dataclass, or of an instance, that carries one."""
    return {field.name: field.metadata["unit"] for field in dataclasses.fields(component) if "unit" in field.metadata}


def _read(
    value: Any, name: str, unit: str, least: float, above: float, below: float, length: int | None, infinite: bool
) -> float | tuple[float, ...]:
    wanted = "a number" if length is None else f"{length} numbers"
    try:
        numbers = np.asarray(in_unit(value, unit, name), dtype=np.float64)
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{name}: expected {wanted}{_in(unit)}, got {value!r}") from error
    if numbers.shape != (() if length is None else (length,)):
        raise UsageError(f"{name}: expected {wanted}{_in(unit)}, got shape {numbers.shape}")
    if np.isnan(numbers).any() or (np.isinf(numbers).any() and not infinite):
        raise UsageError(f"{name}: expected a finite value{_in(unit)}, got {value!r}")
    if not ((numbers >= least) & (numbers > above) & (numbers < below) | (infinite & np.isposinf(numbers))).all():
        limits = (
            [f"at least {least:g}"] * (least > -math.inf)
            + [f"above {above:g}"] * (above > -math.inf)
            + [f"below {below:g}"] * (below < math.inf)
        )
        raise UsageError(f"{name}: expected {' and '.join(limits)}{_in(unit)}, got {value!r}")
    return float(numbers) if length is None else tuple(numbers.tolist())


def _in(unit: str) -> str:
    return f" in {unit}" if unit else ""
