"""What an analysis file may say of a prior: one class for each distribution."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Finite", "Part", "Positive", "PriorPart"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Part(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class _OneParameter(Part):
    unit: str | None = None
    label: str | None = None
    periodic: bool | None = None


class UniformPart(_OneParameter):
    """Uniform between two numbers."""

    distribution: Literal["uniform"]
    low: Finite
    high: Finite


class LogUniformPart(_OneParameter):
    """Uniform in the logarithm between two positive numbers."""

    distribution: Literal["log-uniform"]
    low: Positive
    high: Positive


class NormalPart(_OneParameter):
    """Normal with a mean and a standard deviation."""

    distribution: Literal["normal"]
    mean: Finite
    sigma: Positive


class LogNormalPart(_OneParameter):
    """A median, and the standard deviation of the natural logarithm."""

    distribution: Literal["log-normal"]
    median: Positive
    sigma: Positive


class HalfNormalPart(_OneParameter):
    """Normal about zero, positive values alone."""

    distribution: Literal["half-normal"]
    sigma: Positive


class ExponentialPart(_OneParameter):
    """Falling exponentially from zero, with a mean."""

    distribution: Literal["exponential"]
    mean: Positive


class GammaPart(_OneParameter):
    """A shape and a scale; the mean is their product."""

    distribution: Literal["gamma"]
    shape: Positive
    scale: Positive


PriorPart = Annotated[
    UniformPart | LogUniformPart | NormalPart | LogNormalPart | HalfNormalPart | ExponentialPart | GammaPart,
    Field(discriminator="distribution"),
]
