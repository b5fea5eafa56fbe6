r"""A damped oscillator, displaced and let go, seen at irregular times with samples missing.

$$ y(t) = A\, e^{-\gamma t} \left[\cos\omega_d t + \frac{\gamma}{\omega_d} \sin\omega_d t\right], \qquad
   \omega_d = \sqrt{\omega^2 - \gamma^2}, \qquad y_i \sim N(y(t_i), \sigma^2), $$

which starts at rest from the displacement A (Landau and Lifshitz, Mechanics, section 25).  The times are drawn anew for
each simulation, uniformly and in order, and are part of what is observed; each sample is missing with a given
probability, whatever its value, and its row is then NaN.  Neither depends on the parameters, so that
$p(x|\theta) \propto \prod_{i\ \rm present} N(y_i;\, y(t_i), \sigma^2)$.
"""

import math

import torch
import torch.distributions as td
from torch import Tensor

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.core.random import seeded

__all__ = ["DampedOscillator"]


class DampedOscillator:
    """Angular frequency, damping rate and amplitude of an oscillator from its displacement at irregular times.

    Args:
        epochs: number T of samples, those that are missing included.
        duration: the times are uniform in [0, duration], in seconds.
        noise: standard deviation of the displacements in millimetres.
        missing_fraction: probability that a sample is missing, in [0, 1).

    Attributes:
        missing: NaN in x marks samples that are missing; it is no failure of the simulation.
        x_shape: ``(T, 2)``, time in seconds and displacement in millimetres.

    Raises:
        UsageError: an argument is out of its range.
    """

    name = "oscillator"
    missing = True

    def __init__(
        self, epochs: int = 40, duration: float = 10.0, noise: float = 0.3, missing_fraction: float = 0.2
    ) -> None:
        self.duration, self.noise = _positive(duration, "duration"), _positive(noise, "noise")
        if not 0 <= missing_fraction < 1:
            raise UsageError(f"missing_fraction: expected a number in [0, 1), got {missing_fraction!r}")
        self.missing_fraction = float(missing_fraction)
        self.x_shape = torch.Size([positive_integer(epochs, "epochs"), 2])
        self.parameters = Parameters(
            [
                Parameter("omega", td.Uniform(1.0, 5.0), "rad / s", r"$\omega$"),
                Parameter("gamma", td.Uniform(0.02, 0.5), "1 / s", r"$\gamma$"),
                Parameter("A", td.Uniform(1.0, 5.0), "mm", "$A$"),
            ]
        )

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor:
        """Simulate: theta ``(n, 3)`` gives float32 x ``(n, T, 2)``, rows of NaN where a sample is missing."""
        self.parameters.check_width(theta)
        shape, device = (len(theta), self.x_shape[0]), theta.device
        with seeded(seed, device):
            times = self.duration * torch.rand(shape, device=device).sort(-1).values
            noise = torch.randn(shape, dtype=torch.float64, device=device)
            missing = torch.rand(shape, device=device) < self.missing_fraction
        displacement = self.displacement(theta, times) + self.noise * noise
        x = torch.stack([times, displacement.to(torch.float32)], -1)
        return torch.where(missing.unsqueeze(-1), torch.nan, x)

    def displacement(self, theta: Tensor, times: Tensor) -> Tensor:
        """Displacement without noise in mm, float64 ``(*, T)``: theta ``(*, 3)`` and times ``(*, T)`` in s."""
        self.parameters.check_width(theta)
        omega, gamma, amplitude = theta.to(torch.float64).unsqueeze(-1).unbind(-2)
        t = times.to(theta.device, torch.float64)
        damped = torch.sqrt(omega**2 - gamma**2)
        phase = damped * t
        return amplitude * torch.exp(-gamma * t) * (torch.cos(phase) + gamma / damped * torch.sin(phase))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Exact log-likelihood in nats of the samples that are there, given their times.

        Args:
            theta: ``(*, 3)``.
            x: ``(*, T, 2)``, which broadcasts with theta; rows with NaN are missing.

        Returns:
            Float64 ``(*,)``, zero where all samples are missing; differentiable.

        Raises:
            ShapeError: theta or x has the wrong shape.
        """
        self.parameters.check_width(theta)
        if x.ndim < 2 or x.shape[-2:] != self.x_shape:
            raise ShapeError(f"x: expected shape (*, {', '.join(map(str, self.x_shape))}), got {tuple(x.shape)}")
        missing = torch.isnan(x).any(-1, keepdim=True)
        # Zeros in place of NaN before any arithmetic: the gradient of what is masked out afterwards must be finite.
        times, observed = torch.where(missing, 0.0, x.to(torch.float64)).to(theta.device).unbind(-1)
        residual = (observed - self.displacement(theta, times)) / self.noise
        terms = -0.5 * residual**2 - math.log(self.noise * math.sqrt(2 * math.pi))
        return torch.where(missing.squeeze(-1).to(theta.device), 0.0, terms).sum(-1)


def _positive(value: float, name: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name}: expected a positive number, got {value!r}")
    return float(value)
