r"""A planet on a Keplerian orbit, each element of which is fixed or free, and the mass that its orbit implies.

The semi-amplitude of the star's velocity gives the mass of the planet up to the inclination,

$$ K \sqrt{1 - e^2} = \left(\frac{2\pi G}{P}\right)^{1/3} \frac{m \sin i}{(M + m)^{2/3}}, $$

the radial velocity equation of Lovis & Fischer 2010 (in "Exoplanets", ed. Seager, p. 27).
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributions as td
from astropy import constants, units

from sbi_physics.core.errors import UsageError
from sbi_physics.core.priors import bounds_of
from simulators.velocity_table import in_unit

__all__ = ["ELEMENTS", "Element", "Planet", "fixed_or_free", "minimum_mass", "tex"]

Element: TypeAlias = td.Distribution | float
"""A free element, with its prior, or a fixed one; astropy quantities are converted to plain numbers."""

ELEMENTS = (
    ("period", "P", "d", "P"),
    ("transit_time", "T", "d", "T"),
    ("periastron_time", "Tp", "d", r"T_{\mathrm{peri}}"),
    ("semi_amplitude", "K", "m / s", "K"),
    ("eccentricity", "e", "", "e"),
    ("omega", "omega", "rad", r"\omega"),
)
"""Field of `Planet`, symbol that begins the name of its parameter, unit and LaTeX of each element."""


@dataclass(frozen=True)
class Planet:
    """A planet: each element is fixed (a number or an astropy quantity) or free (a one-dimensional prior).

    Attributes:
        name: a short name, which ends the names of its parameters: ``K_b`` for planet ``b``.
        period: orbital period in days; free as ``P_b``.
        semi_amplitude: K of the star's velocity in m/s; free as ``K_b``.
        transit_time: a time of inferior conjunction in days; free as ``T_b``.
        periastron_time: a time of periastron passage in days, instead of the transit time; free as ``Tp_b``.
        eccentricity: e in [0, 1); free as ``e_b``.
        omega: argument of periastron of the star's orbit in radians; free as ``omega_b``.

    Raises:
        UsageError: both times or none are given, or an element is no number in its range.
    """

    name: str
    period: Element
    semi_amplitude: Element
    transit_time: Element | None = None
    periastron_time: Element | None = None
    eccentricity: Element = 0.0
    omega: Element = 0.0

    def __post_init__(self) -> None:
        if (self.transit_time is None) == (self.periastron_time is None):
            raise UsageError(f"planet {self.name}: expected a transit_time or a periastron_time, one of the two")
        for field, _, unit, _ in ELEMENTS:
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, fixed_or_free(value, unit, f"planet {self.name}: {field}"))
        low, high = _range(self.eccentricity)
        if not (low >= 0 and high < 1):
            raise UsageError(f"planet {self.name}: eccentricity: expected within [0, 1), got [{low:g}, {high:g}]")
        if _range(self.period)[0] < 0 or self.period == 0:
            raise UsageError(f"planet {self.name}: period: expected positive, got {self.period}")

    @property
    def elements(self) -> dict[str, Element]:
        """The elements that are given, by the name that each would have as a parameter."""
        named = {f"{symbol}_{self.name}": getattr(self, field) for field, symbol, _, _ in ELEMENTS}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def labels(self) -> dict[str, tuple[str, str]]:
        """Unit and LaTeX label of each element, by the name that it would have as a parameter."""
        return {f"{symbol}_{self.name}": (unit, f"${_below(latex, self.name)}$") for _, symbol, unit, latex in ELEMENTS}


def fixed_or_free(value: Any, unit: str, name: str) -> Element:
    """Return a prior as it is, and a fixed value as a plain number in `unit`.

    Raises:
        UsageError: the value is neither a prior nor a finite number of that dimension.
    """
    if isinstance(value, td.Distribution):
        return value
    number = in_unit(value, unit, name)
    if isinstance(number, bool) or not isinstance(number, float | int | np.number) or not math.isfinite(number):
        raise UsageError(f"{name}: expected a finite number or a prior, got {value!r}")
    return float(number)


def minimum_mass(semi_amplitude: Any, period: Any, eccentricity: Any, stellar_mass: Any) -> Any:
    """Minimum mass m sin i of a planet, with sin i = 1 in the total mass, and without assuming that it is light.

    By a fixed point in m / M, whose error shrinks by more than 2/3 in each step.

    Args:
        semi_amplitude: K in m/s.
        period: P in days.
        eccentricity: e.
        stellar_mass: M in solar masses, or an astropy quantity.  All four broadcast.

    Returns:
        An `astropy.units.Quantity` in Earth masses.

    Raises:
        UsageError: the stellar mass is a quantity, but not a mass.
    """
    mass = np.asarray(in_unit(stellar_mass, "M_sun", "stellar_mass")) * units.M_sun
    orbit = (np.asarray(period) * units.d / (2 * np.pi * constants.G * mass)) ** (1 / 3)
    velocity = np.asarray(semi_amplitude) * np.sqrt(1 - np.asarray(eccentricity) ** 2) * units.m / units.s
    strength = (velocity * orbit).to_value(units.dimensionless_unscaled)
    ratio = np.zeros_like(strength)
    for _ in range(100):
        ratio = strength * (1 + ratio) ** (2 / 3)
    return (ratio * mass).to(units.M_earth)


def tex(word: str) -> str:
    """Write a name upright in LaTeX."""
    return r"\mathrm{" + word.replace("_", r"\_") + "}"


def _below(latex: str, name: str) -> str:
    """Add a name as an index to a symbol, which may have one already."""
    return f"{latex[:-1]},\\,{tex(name)}}}" if latex.endswith("}") else f"{latex}_{{{tex(name)}}}"


def _range(element: Element) -> tuple[float, float]:
    if isinstance(element, td.Distribution):
        low, high = bounds_of(td.Independent(element.expand(torch.Size([1])), 1))[0].tolist()
        return low, high
    return float(element), float(element)
