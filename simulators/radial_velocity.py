r"""Radial velocities of a star with any number of Keplerian planets.

$$ v(t) = \sum_p K_p \left[\cos(\nu_p(t) + \omega_p) + e_p \cos\omega_p\right] + \gamma_{\rm inst}
   + \dot\gamma\,(t - t_0) + \ddot\gamma\,(t - t_0)^2, \qquad
   x_i \sim N\!\left(v(t_i),\; \sigma_i^2 + e^{2 \ln s_{\rm inst}}\right), $$

with the true anomaly nu from Kepler's equation, the errors sigma_i as given, and a jitter s for each instrument.
Velocities are positive away from the observer; omega is that of the star.  For a circular orbit with transit at T this
is $v = -K \sin(2\pi (t - T) / P)$: the star recedes before the transit and approaches after it.

Each orbital element is a fixed number (or an astropy quantity), or free, with a prior.
Eccentric orbits are free in e and omega, rather than in sqrt(e) cos(omega) and sqrt(e) sin(omega): those fill a disc,
which is no product of intervals, and a prior flat in the disc is the prior flat in e and omega anyway.
Sources: Lovis & Fischer 2010 (in "Exoplanets", ed. Seager, p. 27); Fulton et al. 2018 (RadVel, arXiv:1801.01947).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.checks import as_tensor, finite
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.random import seeded
from sbi_physics.core.resources import shipped
from simulators.kepler import mean_anomaly_at_conjunction, unit_velocity
from simulators.planet import Element, Planet, fixed_or_free, minimum_mass, tex
from simulators.velocity_table import in_unit, read_velocities

__all__ = ["K2_24_STELLAR_MASS", "Planet", "RadialVelocity", "k2_24"]

K2_24_STELLAR_MASS = (1.12, 0.05)
"""Mass of K2-24 and its standard deviation in solar masses (Petigura et al. 2016, arXiv:1511.04497)."""

_TWO_PI = 2 * math.pi


class RadialVelocity:
    """A simulator of N radial velocities at given times, with an exact likelihood.

    The parameters are the free elements of each planet in turn (in the order P, T or Tp, K, e, omega), then ``gamma``,
    ``trend``, ``curvature``, ``log_jitter``.  With several instruments there is a ``gamma_<instrument>`` and a
    ``log_jitter_<instrument>`` for each.

    Args:
        times: ``(N,)`` in days, or an astropy quantity.
        errors: ``(N,)`` standard deviations in m/s, or an astropy quantity.
        planets: the planets.
        gamma: velocity of the star for each instrument in m/s, fixed or a prior; a dictionary by
            instrument, or one for all.
        trend: linear acceleration in m/s/d, fixed or a prior.
        curvature: coefficient of ``(t - reference_time)**2`` in m/s/d^2, fixed or a prior.
        log_jitter: natural logarithm of the jitter in m/s, fixed or a prior, as `gamma`; None for no jitter.
        instruments: N instrument names; None for a single instrument.
        observed: ``(N,)`` velocities that were measured, m/s or an astropy quantity; None where there are none.
        reference_time: t_0 of trend and curvature in days; the mean of the times where None.
        stellar_mass: mass of the star and its standard deviation in solar masses, for the minimum masses; or None.
        name: name of the simulator.

    Attributes:
        parameters: names, units, labels and prior of the free parameters.
        x_shape: ``(N,)``.
        observed: float32 ``(N,)``, or None.

    Raises:
        ShapeError: lengths differ.
        NonFiniteError: a number is NaN or infinite.
        UsageError: an error is not positive, nothing is free, or an argument is of the wrong kind.
    """

    def __init__(
        self,
        times: Any,
        errors: Any,
        *,
        planets: Sequence[Planet] = (),
        gamma: Element | Mapping[str, Element],
        trend: Element = 0.0,
        curvature: Element = 0.0,
        log_jitter: Element | Mapping[str, Element] | None = None,
        instruments: Sequence[str] | None = None,
        observed: Any = None,
        reference_time: Any = None,
        stellar_mass: tuple[float, float] | None = None,
        name: str = "radial_velocity",
    ) -> None:
        self.name = name
        self.stellar_mass = stellar_mass
        self.times = _column(times, "d", "times")
        self.errors = _column(errors, "m / s", "errors", length=len(self.times))
        if not bool((self.errors > 0).all()):
            raise UsageError(f"errors: expected positive numbers, got {float(self.errors.min()):g}")
        self.observed = None
        if observed is not None:
            self.observed = _column(observed, "m / s", "observed", length=len(self.times)).to(torch.float32)
        self.x_shape = torch.Size([len(self.times)])
        self.planets = tuple(planets)
        self.instruments, self._instrument_of = _instruments(instruments, len(self.times))
        self.reference_time = float(
            self.times.mean() if reference_time is None else in_unit(reference_time, "d", "reference_time")
        )
        self.has_jitter = log_jitter is not None
        self._elements = self._named_elements(gamma, trend, curvature, log_jitter)
        self.parameters = _free_parameters(self._elements, self.planets)

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        time: str = "time",
        velocity: str = "velocity",
        error: str = "error",
        instrument: str | None = None,
        time_unit: str = "d",
        velocity_unit: str = "m / s",
        **model: Any,
    ) -> "RadialVelocity":
        """Build the simulator from a table of measurements; its velocities become `observed`.

        Args:
            table: the path of a CSV, ECSV or other file that astropy reads, or an `astropy.table.Table`.
            time: name of the column of times.
            velocity: name of the column of velocities.
            error: name of the column of standard deviations.
            instrument: name of the column of instruments; None for a single one.
            time_unit: unit of the times where the column states none.
            velocity_unit: unit of velocities and errors where the columns state none.
            **model: `planets`, `gamma`, `trend`, `curvature`, `log_jitter`, `reference_time`, `stellar_mass`, `name`.

        Raises:
            StoreError: the file is missing or is no table.
            UsageError: a column is missing or holds no numbers.
            NonFiniteError: a number is missing, NaN or infinite.
        """
        rows = read_velocities(
            table,
            time=time,
            velocity=velocity,
            error=error,
            instrument=instrument,
            time_unit=time_unit,
            velocity_unit=velocity_unit,
        )
        return cls(rows.times, rows.errors, observed=rows.velocities, instruments=rows.instruments, **model)

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, P)`` gives float32 velocities ``(n, N)`` in m/s."""
        mean, variance = self.model(theta), self._variance(theta)
        with seeded(seed, theta.device):
            noise = torch.randn(mean.shape, dtype=torch.float64, device=theta.device)
        return (mean + torch.sqrt(variance) * noise).to(torch.float32)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats, float64: theta ``(*, P)`` broadcast with x ``(*, N)`` in m/s gives ``(*,)``."""
        if x.ndim == 0 or x.shape[-1] != len(self.times):
            raise ShapeError(f"x: expected shape (*, {len(self.times)}), got {tuple(x.shape)}")
        variance = self._variance(theta)
        squares = (x.to(theta.device, torch.float64) - self.model(theta)) ** 2
        return -0.5 * (squares / variance + torch.log(_TWO_PI * variance)).sum(-1)

    def model(self, theta: Tensor, times: Any = None, *, instrument: str | None = None) -> Tensor:
        """Velocities without noise.

        Args:
            theta: ``(*, P)``.
            times: ``(M,)`` in days, or an astropy quantity; the observed times where None.
            instrument: whose offset to add at `times`; needed where there are several.

        Returns:
            m/s, float64 ``(*, N)``, or ``(*, M)``; differentiable in theta.

        Raises:
            UsageError: the instrument is not known, or not given where there are several.
        """
        value = self._values(theta)
        if times is None:
            at, which = self.times.to(theta.device), self._instrument_of.to(theta.device)
        else:
            at = _column(times, "d", "times").to(theta.device)
            which = torch.full((len(at),), self._instrument_index(instrument), device=theta.device)
        since = at - self.reference_time
        result: Tensor = _by_instrument(value, [f"gamma{tag}" for tag in self._tags], which)
        result = result + value["trend"] * since + value["curvature"] * since**2
        for planet in self.planets:
            result = result + self._planet_velocity(planet, value, at)
        return result.expand(*theta.shape[:-1], len(at))

    def _planet_velocity(self, planet: Planet, value: Mapping[str, Any], times: Tensor) -> Tensor:
        ecc, omega = value[f"e_{planet.name}"], value[f"omega_{planet.name}"]
        if planet.periastron_time is not None:
            mean_anomaly = _TWO_PI * (times - value[f"Tp_{planet.name}"]) / value[f"P_{planet.name}"]
        else:
            mean_anomaly = _TWO_PI * (times - value[f"T_{planet.name}"]) / value[f"P_{planet.name}"]
            mean_anomaly = mean_anomaly + mean_anomaly_at_conjunction(ecc, omega)
        velocity: Tensor = value[f"K_{planet.name}"] * unit_velocity(mean_anomaly, ecc, omega)
        return velocity

    def minimum_mass(self, theta: Any, planet: str, stellar_mass: Any) -> Any:
        """Minimum mass m sin i of a planet (see `simulators.planet.minimum_mass`).

        Args:
            theta: ``(*, P)``.
            planet: name of the planet.
            stellar_mass: M in solar masses or as an astropy quantity, one number or ``(*,)`` draws of it.

        Returns:
            An `astropy.units.Quantity` in Earth masses, ``(*,)``.

        Raises:
            UsageError: there is no such planet, or the stellar mass is a quantity, but not a mass.
        """
        if planet not in [p.name for p in self.planets]:
            raise UsageError(f"planet: expected one of {', '.join(p.name for p in self.planets)}; got {planet!r}")
        value = self._values(as_tensor(theta, "theta", dtype=torch.float64))
        k, period, ecc = (_flat(value[f"{symbol}_{planet}"]) for symbol in ("K", "P", "e"))
        return minimum_mass(k, period, ecc, stellar_mass)

    def _values(self, theta: Tensor) -> dict[str, Any]:
        """Each element by name: a number where fixed, a float64 column ``(*, 1)`` of theta where free."""
        self.parameters.check_width(theta)
        free = dict(zip(self.parameters.names, theta.to(torch.float64).unsqueeze(-1).unbind(-2), strict=True))
        return {name: free.get(name, element) for name, element in self._elements.items()}

    def _variance(self, theta: Tensor) -> Tensor:
        """Variance of each velocity in m^2/s^2, float64, which broadcasts with ``(*, N)``."""
        variance = self.errors.to(theta.device) ** 2
        if not self.has_jitter:
            return variance
        names, which = [f"log_jitter{tag}" for tag in self._tags], self._instrument_of.to(theta.device)
        log_jitter = _by_instrument(self._values(theta), names, which)
        return variance + torch.exp(2 * torch.as_tensor(log_jitter, dtype=torch.float64))

    @property
    def _tags(self) -> list[str]:
        """What ends the names of the parameters of each instrument."""
        if len(self.instruments) == 1:
            return [""]
        return ["_" + "".join(c if c.isalnum() and c.isascii() else "_" for c in name) for name in self.instruments]

    def _instrument_index(self, instrument: str | None) -> int:
        if instrument is None and len(self.instruments) == 1:
            return 0
        if instrument not in self.instruments:
            raise UsageError(f"instrument: expected one of {', '.join(self.instruments)}; got {instrument!r}")
        return self.instruments.index(instrument)

    def _named_elements(self, gamma: Any, trend: Any, curvature: Any, log_jitter: Any) -> dict[str, Element]:
        """Every element of the model, fixed or free, by name, in the order of the parameters."""
        named: list[tuple[str, Any]] = [pair for planet in self.planets for pair in planet.elements.items()]
        named += self._per_instrument("gamma", gamma, "m / s")
        named += [("trend", fixed_or_free(trend, "m / (s d)", "trend"))]
        named += [("curvature", fixed_or_free(curvature, "m / (s d2)", "curvature"))]
        named += self._per_instrument("log_jitter", log_jitter, "") if self.has_jitter else []
        if len(dict(named)) < len(named):
            raise UsageError(f"planets and instruments: expected distinct names, got {[name for name, _ in named]}")
        return dict(named)

    def _per_instrument(self, name: str, given: Any, unit: str) -> list[tuple[str, Any]]:
        elements = given if isinstance(given, Mapping) else dict.fromkeys(self.instruments, given)
        if set(elements) != set(self.instruments):
            raise UsageError(f"{name}: expected one for each of {', '.join(self.instruments)}; got {sorted(elements)}")
        pairs = zip(self._tags, self.instruments, strict=True)
        return [(name + tag, fixed_or_free(elements[instrument], unit, name)) for tag, instrument in pairs]


def k2_24(table: str | Path | None = None) -> RadialVelocity:
    """Build the two planets of K2-24 (EPIC 203771098), from 32 velocities of Keck/HIRES.

    Circular orbits at the periods and transit times that Kepler measured (BJD - 2454833); free are the semi-amplitudes
    (0 to 15 m/s), the offset (-20 to 20 m/s), a linear trend about t = 2420 d (-0.2 to 0.2 m/s/d) and the logarithm of
    the jitter (0.1 to 20 m/s), all uniform.

    Args:
        table: path of the velocities; the shipped table of Petigura et al. 2016 (arXiv:1511.04497) where None.
    """
    return RadialVelocity.from_table(
        table if table is not None else shipped("radial_velocity/epic203771098.csv"),
        time="t",
        velocity="vel",
        error="errvel",
        planets=[
            Planet("b", period=20.885258, semi_amplitude=td.Uniform(0.0, 15.0), transit_time=2072.79438),
            Planet("c", period=42.363011, semi_amplitude=td.Uniform(0.0, 15.0), transit_time=2082.62516),
        ],
        gamma=td.Uniform(-20.0, 20.0),
        trend=td.Uniform(-0.2, 0.2),
        log_jitter=td.Uniform(math.log(0.1), math.log(20.0)),
        reference_time=2420.0,
        stellar_mass=K2_24_STELLAR_MASS,
    )


def _free_parameters(elements: Mapping[str, Element], planets: Sequence[Planet]) -> Parameters:
    known = {name: label for planet in planets for name, label in planet.labels.items()}
    known |= {"trend": ("m / (s d)", r"$\dot\gamma$"), "curvature": ("m / (s d2)", r"$\ddot\gamma$")}
    free = []
    for name, element in elements.items():
        if not isinstance(element, td.Distribution):
            continue
        unit, label = known.get(name) or _instrument_label(name)
        free.append(Parameter(name, element, unit, label))
    if not free:
        raise UsageError("radial velocity: expected at least one free parameter (a prior), got fixed numbers only")
    return Parameters(free)


def _instrument_label(name: str) -> tuple[str, str]:
    kind = "gamma" if name.startswith("gamma") else "log_jitter"
    unit, symbol = ("m / s", r"\gamma") if kind == "gamma" else ("", r"\ln s")
    tag = name[len(kind) + 1 :]
    return unit, f"${symbol}_{{{tex(tag)}}}$" if tag else f"${symbol}$"


def _column(values: Any, unit: str, name: str, length: int | None = None) -> Tensor:
    column = finite(as_tensor(in_unit(values, unit, name), name, dtype=torch.float64), name)
    if column.ndim != 1 or len(column) == 0:
        raise ShapeError(f"{name}: expected shape (N,), got {tuple(column.shape)}")
    if length is not None and len(column) != length:
        raise ShapeError(f"{name}: expected {length} numbers, one for each time, got {len(column)}")
    return column


def _instruments(given: Sequence[str] | None, n: int) -> tuple[tuple[str, ...], Tensor]:
    """The distinct instruments in the order in which they appear, and the number of each row's instrument ``(N,)``."""
    if given is None:
        return ("",), torch.zeros(n, dtype=torch.long)
    if len(given) != n:
        raise ShapeError(f"instruments: expected {n} names, one for each time, got {len(given)}")
    distinct = tuple(dict.fromkeys(map(str, given)))
    return distinct, torch.tensor([distinct.index(str(name)) for name in given])


def _by_instrument(value: Mapping[str, Any], names: Sequence[str], which: Tensor) -> Any:
    """For each row the element of its instrument: a number, a column ``(*, 1)``, or ``(*, N)``."""
    if len(names) == 1:
        return value[names[0]]
    return sum(value[name] * (which == i).to(torch.float64) for i, name in enumerate(names))


def _flat(value: Any) -> Any:
    return value.squeeze(-1).detach().cpu().numpy() if isinstance(value, Tensor) else value
