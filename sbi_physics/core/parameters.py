"""`Parameters`: the names, units, labels, bounds and prior of what is inferred.

    parameters = sp.Parameters([
        sp.Parameter("K_b", Uniform(0.0, 15.0), unit="m / s", label=r"$K_b$"),
        sp.Parameter("trend", Normal(0.0, 0.1), unit="m / (s d)"),
    ])
    parameters = sp.Parameters.from_prior(MultivariateNormal(mean, covariance), names=["a", "b"])

Values are always plain numbers in the stated unit; `Samples.to_qtable` attaches the units.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core import priors
from sbi_physics.core.bijection import SupportBijection
from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.random import seeded

__all__ = ["Parameter", "Parameters"]

_log = logging.getLogger(__name__)

# A step of single precision, as a share of the range of a prior.
_COARSEST = 0.005


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: a valid Python identifier, so that it can name a column, a key and an option.
        prior: a one-dimensional `torch.distributions.Distribution`.
        unit: an astropy unit string, empty for a pure number.
        label: LaTeX for plots; the name where empty.
        periodic: whether both bounds, which are finite, are one point, as of an angle; the model `nsf-box` then learns
            a density that is continuous across it.
    """

    name: str
    prior: td.Distribution
    unit: str = ""
    label: str = ""
    periodic: bool = False


class Parameters:
    """Names, units, labels, bounds and the joint prior of P parameters.

    Args:
        parameters: P `Parameter` objects; the prior is their product.

    Raises:
        UsageError: names are repeated or no identifiers, a unit is unknown, or a prior is not one-dimensional.
        SupportError: the support of a prior is not an interval, or that of a periodic parameter is not bounded.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        if isinstance(parameters, td.Distribution) or not all(isinstance(each, Parameter) for each in parameters):
            raise UsageError(
                "parameters: expected a list of Parameter(name, prior); for a joint distribution of several take "
                f"Parameters.from_prior(prior, names=[...]); got {type(parameters).__name__}"
            )
        for each in parameters:
            if not isinstance(each.prior, td.Distribution):
                raise UsageError(
                    f"parameter {each.name!r}: expected a torch.distributions.Distribution as its prior, got "
                    f"{type(each.prior).__name__}"
                )
        prior = priors.ProductPrior([p.prior for p in parameters])
        _tell_coarse(parameters, priors.bounds_of(prior))
        self._set(
            prior,
            [p.name for p in parameters],
            [p.unit for p in parameters],
            [p.label or p.name for p in parameters],
            priors.bounds_of(prior),
            [p.periodic for p in parameters],
        )

    @classmethod
    def from_prior(
        cls,
        prior: "td.Distribution | Parameters | Sequence[Parameter]",
        *,
        names: Sequence[str] | None = None,
        units: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        periodic: Sequence[bool] | None = None,
    ) -> "Parameters":
        """Wrap any torch distribution over P numbers; unnamed parameters become theta_0, theta_1, ...

        Args:
            prior: a distribution with event shape ``(P,)`` or batch shape ``(P,)``; `Parameters` pass through, and a
                list of `Parameter` becomes such.
            names: P names.
            units: P astropy unit strings.
            labels: P LaTeX labels.
            periodic: whether each of the P parameters is periodic, see `Parameter`.
        """
        if isinstance(prior, Parameters):
            return prior
        if isinstance(prior, list | tuple) and prior and isinstance(prior[0], Parameter):
            return cls(prior)
        vector = priors.as_vector_prior(prior)
        dims = int(vector.event_shape[0])
        names = list(names) if names is not None else [f"theta_{i}" for i in range(dims)]
        self = cls.__new__(cls)
        self._set(
            vector,
            names,
            list(units) if units is not None else [""] * len(names),
            list(labels) if labels is not None else list(names),
            priors.bounds_of(vector),
            list(periodic) if periodic is not None else [False] * len(names),
        )
        return self

    def _set(
        self,
        prior: td.Distribution | None,
        names: Sequence[str],
        units: Sequence[str],
        labels: Sequence[str],
        bounds: Tensor,
        periodic: Sequence[bool],
        spec: dict[str, Any] | None = None,
    ) -> None:
        for what, given in (("names", names), ("units", units), ("labels", labels), ("periodic", periodic)):
            if len(given) != len(bounds):
                raise UsageError(f"{what}: expected {len(bounds)}, one for each parameter, got {len(given)}")
        for name in names:
            if not (isinstance(name, str) and name.isidentifier()):
                raise UsageError(f"parameter name: expected letters, digits and underscores, got {name!r}")
        if len(set(names)) < len(names):
            raise UsageError(f"parameter names: expected distinct names, got {list(names)}")
        for name, wraps, row in zip(names, periodic, bounds.tolist(), strict=True):
            if wraps and not all(map(math.isfinite, row)):
                raise SupportError(f"parameter {name}: a periodic one needs finite bounds, got {row}")
        self._prior = prior
        self.names, self.units, self.labels = tuple(names), tuple(map(_checked_unit, units)), tuple(labels)
        self.periodic = tuple(map(bool, periodic))
        self.bijection = SupportBijection(bounds)
        self._spec = spec if spec is not None else priors.to_spec(prior)  # type: ignore[arg-type]

    @property
    def prior(self) -> td.Distribution:
        """The joint prior, with event shape ``(P,)``.

        Raises:
            UsageError: the parameters come from a file whose prior was no distribution of torch.
        """
        if self._prior is None:
            raise UsageError(
                f"the prior {self._spec.get('class', '')} is not stored in the file; "
                "build Parameters from it again and pass those"
            )
        return self._prior

    @property
    def bounds(self) -> Tensor:
        """Lower and upper bounds ``(P, 2)``, float64."""
        return self.bijection.bounds

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parameters) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.names, self.units))

    def __repr__(self) -> str:
        rows = (
            f"{name}{f' [{unit}]' if unit else ''} in ({low:g}, {high:g}){', periodic' if wraps else ''}"
            for name, unit, (low, high), wraps in zip(
                self.names, self.units, self.bounds.tolist(), self.periodic, strict=True
            )
        )
        return f"Parameters({'; '.join(rows)})"

    def index(self, name: str) -> int:
        """The column of a parameter.

        Raises:
            UsageError: there is no parameter of that name.
        """
        if name not in self.names:
            raise UsageError(f"parameter: expected one of {', '.join(self.names)}; got {name!r}")
        return self.names.index(name)

    def sample(self, n: int, *, seed: int | None = None) -> Tensor:
        """Draw n rows from the prior: float32 ``(n, P)``, inside the bounds."""
        with seeded(seed):
            return self.prior.sample(torch.Size([positive_integer(n, "n")])).to(torch.float32)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log-density of the prior at theta ``(*, P)`` in nats, ``(*,)``; minus infinity outside its support."""
        self.check_width(theta)
        # The arguments of torch distributions live on the CPU, where the prior is cheap to evaluate.
        value = theta.detach().cpu() if theta.device.type != "cpu" else theta
        inside, interior = self.bijection.within(value), self.bijection.interior
        # A value on a bound counts as the next number inside it, as it does for the bijection.
        value = self.bijection.strictly_inside(value)
        return priors.masked_log_prob(self.prior, inside, interior, value).to(theta.device)

    def within(self, theta: Tensor) -> Tensor:
        """Whether each row of theta ``(*, P)`` lies within the bounds: boolean ``(*,)``."""
        self.check_width(theta)
        return self.bijection.within(theta)

    def check_width(self, theta: Tensor) -> None:
        """Raise `ShapeError` unless the last axis of theta has P entries."""
        if theta.ndim == 0 or theta.shape[-1] != len(self):
            raise ShapeError(f"theta: expected shape (*, {len(self)}), got {tuple(theta.shape)}")

    def check_within(self, theta: Tensor, name: str = "theta") -> Tensor:
        """Return theta ``(*, P)`` if all rows are within the bounds.

        Raises:
            SupportError: naming the first row and parameter that are not.
        """
        inside = self.within(theta)
        if bool(inside.all()):
            return theta
        rows = theta.reshape(-1, len(self))
        row = int(torch.nonzero(~inside.reshape(-1))[0, 0])
        for i, (low, high) in enumerate(self.bounds.tolist()):
            value = float(rows[row, i])
            if not low <= value <= high:
                raise SupportError(
                    f"{name}: expected {self.names[i]} in [{low:g}, {high:g}], got {value:g} in row {row} "
                    f"({int((~inside).sum())} of {len(rows)} rows are outside the prior)"
                )
        raise SupportError(f"{name}: row {row} is outside the prior")

    def to_dict(self) -> dict[str, Any]:
        """Describe the parameters in types that JSON knows; `from_dict` reads it back.

        Where no parameter is periodic nothing is said of it, as in files of before there was such a thing.
        """
        return {
            "names": list(self.names),
            "units": list(self.units),
            "labels": list(self.labels),
            "bounds": [[_number(b) for b in row] for row in self.bounds.tolist()],
            "prior": self._spec,
            **({"periodic": list(self.periodic)} if any(self.periodic) else {}),
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> "Parameters":
        """Build the parameters that `to_dict` described."""
        bounds = torch.tensor([[float(b) for b in row] for row in description["bounds"]], dtype=torch.float64)
        spec = description["prior"]
        self = cls.__new__(cls)
        self._set(
            priors.from_spec(spec),
            description["names"],
            description["units"],
            description["labels"],
            bounds,
            description.get("periodic", [False] * len(bounds)),
            spec,
        )
        return self


def _tell_coarse(parameters: Sequence[Parameter], bounds: Tensor) -> None:
    """Warn of priors of which single precision leaves few values: large numbers that differ little."""
    for each, (low, high) in zip(parameters, bounds.tolist(), strict=True):
        step = float(np.spacing(np.float32(max(abs(low), abs(high))))) if math.isfinite(high - low) else 0.0
        if step > _COARSEST * (high - low):
            _log.warning(
                "parameter %s: numbers are kept in single precision, in steps of %.2g here, and the prior goes from "
                "%.10g to %.10g; subtract a constant first",
                *(each.name, step, low, high),
            )


def _number(bound: float) -> float | str:
    """JSON has no infinity: write it as a word, which float() reads."""
    return bound if abs(bound) < float("inf") else str(bound)


def _checked_unit(unit: str) -> str:
    if not unit:
        return ""
    from astropy.units import Unit  # deferred: half a second that parameters without units need not pay

    try:
        return str(Unit(unit).to_string())
    except (ValueError, TypeError) as error:
        raise UsageError(f"unit: expected an astropy unit string such as 'm / s', got {unit!r}") from error
