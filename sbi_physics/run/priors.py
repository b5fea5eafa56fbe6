"""Priors in an analysis file: those of a simulator with some replaced, or all that there are.

A number in the file is in the unit that stands beside it, and becomes one in the unit in which the simulator takes the
parameter; where no unit stands beside it, it is in that unit already.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch.distributions as td

from sbi_physics.core.errors import UsageError
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.priors import ProductPrior
from sbi_physics.core.protocols import Simulator
from sbi_physics.run.analysis import Analysis
from sbi_physics.run.configuration import SimulatedConfig
from sbi_physics.simulation.resolve import simulator_name

__all__ = ["WithPrior", "parameters_of", "with_prior"]

# Said outright: importing zuko switches the checks of torch's distributions off.
_CHECKED = {"validate_args": True}
_BUILD: dict[str, Callable[[Any, float], td.Distribution]] = {
    "uniform": lambda p, f: td.Uniform(p.low * f, p.high * f, **_CHECKED),
    "log-uniform": lambda p, f: LogUniform(p.low * f, p.high * f),
    "normal": lambda p, f: td.Normal(p.mean * f, p.sigma * f, **_CHECKED),
    "log-normal": lambda p, f: td.LogNormal(math.log(p.median * f), p.sigma, **_CHECKED),
    "half-normal": lambda p, f: td.HalfNormal(p.sigma * f, **_CHECKED),
    "exponential": lambda p, f: td.Exponential(1 / (p.mean * f), **_CHECKED),
    "gamma": lambda p, f: td.Gamma(p.shape, 1 / (p.scale * f), **_CHECKED),
}


def with_prior(analysis: Analysis, simulator: Simulator) -> Simulator:
    """The simulator, with the priors that the file states in place of its own.

    Raises:
        UsageError: a parameter is unknown, a unit does not fit, or a prior is none.
    """
    parameters = parameters_of(analysis, simulator.parameters)
    return simulator if parameters is simulator.parameters else WithPrior(simulator, parameters)


def parameters_of(analysis: Analysis, known: Parameters | None) -> Parameters:
    """The parameters of an analysis.

    Args:
        analysis: its file.
        known: those of the simulator; None where the file must state all.

    Raises:
        UsageError: as of `with_prior`; or there are no parameters at all.
    """
    stated: Mapping[str, Any] = cast(SimulatedConfig, analysis.config).prior
    if known is None:
        if not stated:
            raise analysis.error(["prior"], "expected [prior.NAME] for each parameter, as there is no simulator")
        return Parameters([_parameter(analysis, name, part, "") for name, part in stated.items()])
    if not stated:
        return known
    for name in stated:
        if name not in known.names:
            raise analysis.error(["prior", name], f"expected one of {', '.join(known.names)}")
    own = {} if set(stated) == set(known.names) else _components(analysis, known)
    return Parameters(
        [
            _parameter(analysis, name, stated[name], unit, label, periodic)
            if name in stated
            else Parameter(name, own[name], unit, label, periodic)
            for name, unit, label, periodic in zip(known.names, known.units, known.labels, known.periodic, strict=True)
        ]
    )


def _parameter(
    analysis: Analysis, name: str, part: Any, unit: str, label: str = "", periodic: bool = False
) -> Parameter:
    keys = ("prior", name)
    factor = 1.0
    if part.unit is not None and unit:
        with analysis.blaming(*keys, "unit"):
            factor = _factor(part.unit, unit)
    try:
        distribution = _BUILD[part.distribution](part, factor)
    except ValueError as error:
        what = f"low {part.low:g} and high {part.high:g}" if hasattr(part, "low") else part.distribution
        raise analysis.error(keys, f"expected a {part.distribution} prior with low < high, got {what}") from error
    with analysis.blaming(*keys):
        made = Parameter(
            name,
            distribution,
            unit or part.unit or "",
            part.label or label,
            periodic if part.periodic is None else part.periodic,
        )
        Parameters([made])
    return made


def _factor(given: str, wanted: str) -> float:
    """How many of one unit are in another."""
    from astropy.units import Unit, UnitConversionError  # deferred: half a second that others need not pay

    try:
        return float(Unit(given).to(Unit(wanted)))
    except UnitConversionError as error:
        raise UsageError(f"expected a unit that can be converted to {wanted!r}, got {given!r}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"expected an astropy unit string such as 'm / s', got {given!r}") from error


def _components(analysis: Analysis, known: Parameters) -> dict[str, td.Distribution]:
    """The one-dimensional priors of a simulator."""
    prior = known.prior
    if isinstance(prior, ProductPrior):
        return dict(zip(known.names, prior.components, strict=True))
    base = prior.base_dist if isinstance(prior, td.Independent) and prior.reinterpreted_batch_ndims == 1 else None
    if base is None or len(base.batch_shape) != 1 or not base.arg_constraints:
        raise analysis.error(
            ["prior"], "the prior of the simulator is no product of priors of single parameters; state all of them"
        )
    build: Any = type(base)
    arguments = {name: getattr(base, name) for name in base.arg_constraints}
    if {"probs", "logits"} <= set(arguments):
        arguments.pop("logits")
    return {
        name: build(**{argument: value[i] for argument, value in arguments.items()})
        for i, name in enumerate(known.names)
    }


class WithPrior:
    """A simulator with another prior; all else is as it was.

    Args:
        simulator: the simulator.
        parameters: with the names and units of its own, and another prior.
    """

    def __init__(self, simulator: Simulator, parameters: Parameters) -> None:
        self.simulator, self.parameters, self.name = simulator, parameters, simulator_name(simulator)

    def __call__(self, theta: Any, *, seed: int) -> Any:
        """Simulate at theta ``(n, P)``."""
        return self.simulator(theta, seed=seed)

    def __getattr__(self, name: str) -> Any:
        # Not while it is unpickled, when there is no simulator yet.
        if name.startswith("__") or "simulator" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.simulator, name)
