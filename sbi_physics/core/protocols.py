"""The contracts between the parts of the package.

Generating and evaluating are two different abilities, and a model may have one without the other: a GAN generates, a
flow does both, a classifier only scores.  A job asks for exactly the ability that it needs.  The names of arguments
may grow, never change.
"""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sbi_physics.core.parameters import Parameters

__all__ = ["Density", "Generator", "Integrand", "LogDensity", "Simulator", "TractableSimulator"]


@runtime_checkable
class Generator(Protocol):
    """A model that samples events given a context: a GAN, a VAE, a diffusion model, anything like a simulator."""

    event_shape: torch.Size
    context_shape: torch.Size

    def sample(self, n: int, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        """Draw n events for each context: ``(n, *batch, *event_shape)``."""


@runtime_checkable
class Density(Generator, Protocol):
    """A model that samples and evaluates: a flow, a mixture, a kernel density estimate, an autoregressive model."""

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats of `x` ``(*batch, *event_shape)`` given the context: ``(*batch,)``."""

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw as `sample` does, with the log-density of each draw: ``(n, *batch)``."""


@runtime_checkable
class Simulator(Protocol):
    """A forward model: rows of parameters in, rows of observables out."""

    @property
    def parameters(self) -> "Parameters":
        """Names, units, bounds and prior of theta."""

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor | dict[str, Tensor]:
        """Simulate one block of rows: theta ``(n, P)`` gives x ``(n, *x_shape)``, or a dictionary of such."""


@runtime_checkable
class TractableSimulator(Simulator, Protocol):
    """A simulator whose likelihood is known, so that an exact reference exists."""

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log-likelihood in nats, batched over the leading axes of theta ``(*, P)`` and x, differentiable: ``(*)``."""


@runtime_checkable
class Integrand(Protocol):
    """A function on the unit hypercube."""

    dims: int

    def __call__(self, u: Tensor) -> Tensor:
        """Evaluate at `u` ``(n, dims)`` in [0, 1]^dims: ``(n,)``."""


class LogDensity(Protocol):
    """A log-density, not necessarily normalised, batched over rows: theta ``(n, P)`` gives ``(n,)``."""

    def __call__(self, theta: Tensor, /) -> Tensor:
        """Evaluate at each row of theta."""
