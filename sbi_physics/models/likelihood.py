r"""`LearnedLikelihood`: a conditional density q(x | theta), read as a function of theta.

Two kinds of observables need care.  One that is the same number in every simulation carries no information, and has no
density: it is left out.  One that only takes whole numbers, a count, has no density either: uniform noise on
[-1/2, 1/2] is added for training (Uria, Murray and Larochelle 2013, arXiv:1306.0186), after which the density at a
whole number stands for its probability.
"""

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import ShapeError
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.trend import Trend
from sbi_physics.store.row_parts import RowParts, Rows, row_parts

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
    def kinds(x: Rows) -> tuple[Tensor, Tensor]:
        """Which of the flattened observables of x ``(N, *x_shape)`` vary, and which are counts: booleans ``(D,)``."""
        parts = row_parts(x)
        varies = torch.zeros(parts.shape[1:].numel(), dtype=torch.bool)
        whole, first = ~varies, next(iter(parts))[:1].flatten(1)
        for part in parts:
            flat = part.flatten(1)
            varies = varies | (flat != first).any(0)
            whole = whole & (flat == flat.round()).all(0)
        return varies, varies & whole

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.density.device

    def events(self, x: Tensor) -> Tensor:
        """Observables x ``(n, *x_shape)`` as events of the density ``(n, D')``."""
        return x.reshape(-1, self.x_shape.numel())[:, self.varies.to(x.device)]

    def blurred(self, x: Rows, *, seed: int) -> RowParts:
        """As `events`, with uniform noise on counts."""
        counts = self.counts[self.varies].cpu()

        def blur(part: Tensor) -> Tensor:
            events = self.events(part)
            return torch.where(counts, events + torch.rand_like(events) - 0.5, events) if bool(counts.any()) else events

        return row_parts(x).map(blur, (len(counts),), seed=seed)

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
