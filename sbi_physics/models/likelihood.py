r"""`LearnedLikelihood`: a conditional density q(x | theta), read as a function of theta.

Two kinds of observables need care.  One that is the same number in every simulation carries no information, and has no
density: it is left out.  One that only takes whole numbers, a count, has no density either: uniform noise on
[-1/2, 1/2] is added for training (Uria, Murray and Larochelle 2013, arXiv:1306.0186), after which the density at a
whole number stands for its probability.
"""

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import ShapeError
from sbi_physics.core.random import seeded
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.trend import Trend

__all__ = ["LearnedLikelihood"]


class LearnedLikelihood(nn.Module):
    """q(x | theta) over those observables that vary.

    Args:
        density: over the D' observables that vary, less their trend, given theta ``(P,)``.
        trend: of these observables with theta.
        x_shape: the shape of one observation, of D numbers.
        varies: boolean ``(D,)`` of the flattened observation.
        counts: boolean ``(D,)``, whether an observable takes whole numbers only.
    """

    varies: Tensor
    counts: Tensor

    def __init__(
        self, density: ConditionalDensity, trend: Trend, x_shape: tuple[int, ...], varies: Tensor, counts: Tensor
    ) -> None:
        super().__init__()
        self.density, self.trend, self.x_shape = density, trend, torch.Size(x_shape)
        self.register_buffer("varies", varies)
        self.register_buffer("counts", counts)

    @staticmethod
    def kinds(x: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the flattened observables of x ``(N, *x_shape)`` vary, and which are counts: booleans ``(D,)``."""
        flat = x.flatten(1)
        varies = (flat != flat[0]).any(0)
        return varies, varies & (flat == flat.round()).all(0)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.density.device

    def events(self, x: Tensor, seed: int | None = None) -> Tensor:
        """Observables x ``(n, *x_shape)`` as events of the density ``(n, D')``, counts blurred if there is a seed."""
        flat = x.reshape(-1, self.x_shape.numel())
        if seed is not None and bool(self.counts.any()):
            with seeded(seed, flat.device):
                noise = torch.rand(flat.shape, device=flat.device) - 0.5
            flat = torch.where(self.counts.to(flat.device), flat + noise, flat)
        return flat[:, self.varies.to(flat.device)]

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log-density in nats of observations x ``(m, *x_shape)`` at theta ``(n, P)``: ``(n,)``.

        Where n is a multiple of m, the observations come again and again.

        Raises:
            ShapeError, NonFiniteError: the arrays do not fit one another, or hold NaN or infinity.
        """
        if tuple(x.shape[1:]) != tuple(self.x_shape):
            raise ShapeError(f"x: expected shape (n, {', '.join(map(str, self.x_shape))}), got {tuple(x.shape)}")
        events = self.events(x).repeat(repetitions(theta, x), 1)
        return self.density.log_prob(events - self.trend(theta), theta)

    def sample(self, n: int, theta: Tensor, *, seed: int | None = None) -> Tensor:
        """Draw n observations for each theta ``(*, P)``: ``(n, *, *x_shape)``; counts are rounded."""
        drawn = self.density.sample(n, theta, seed=seed) + self.trend(theta)
        flat = drawn.new_zeros(*drawn.shape[:-1], self.x_shape.numel())
        flat[..., self.varies] = drawn
        flat = torch.where(self.counts, flat.round(), flat)
        return flat.reshape(*drawn.shape[:-1], *self.x_shape)


def repetitions(theta: Tensor, x: Tensor) -> int:
    """How often the m rows of x come in the n rows of theta."""
    if not len(x) or len(theta) % len(x):
        raise ShapeError(f"theta: expected a multiple of the {len(x)} rows of x, got {len(theta)} rows")
    return len(theta) // len(x)
