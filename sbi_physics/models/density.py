r"""`ConditionalDensity`: what all conditional densities have in common, whatever is inside.

With the maps of `ConditionalGenerator`,

$$ \ln q(\theta|x) = \ln q_{model}(z_s | c) + \ln|dz_s/dz| + \ln|dz/d\theta| $$

is normalised on the support.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from sbi_physics.core.checks import finite
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.random import seeded
from sbi_physics.models.generator import ConditionalGenerator, as_rows

__all__ = ["ConditionalDensity", "evaluated"]


class ConditionalDensity(ConditionalGenerator, ABC):
    """A conditional density over D numbers; satisfies `Density`.

    The arguments are those of `ConditionalGenerator`.
    """

    @abstractmethod
    def loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """What training minimises, for each event ``(n,)``.

        Args:
            encoded: the first result of `encode`.
            contexts: *scaled* contexts, ``context_scaling(x)``.
        """

    @abstractmethod
    def _log_prob(self, encoded: Tensor, summary: Tensor | None) -> Tensor:
        """Log-density ``(n,)`` of encoded events ``(n, D)``; the summary is ``(n, C)``, one row for all, or None."""

    @abstractmethod
    def _draw(self, n: int, summary: Tensor | None, *, densities: bool) -> tuple[Tensor, Tensor | None]:
        """Draw n encoded events ``(n, D)`` on the current random stream, with log-densities ``(n,)`` if wanted."""

    @property
    def graphable(self) -> bool:
        """Whether a step of training may be recorded as a CUDA graph."""
        return False

    def add_gradient(self, weights: Tensor, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """The loss ``(n,)``; the gradient of ``sum(weights * loss)`` is added to the `grad` of the parameters."""
        each = self.loss(encoded, contexts)
        (weights * each).sum().backward()
        return each.detach()

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats of x ``(*batch, D)`` given contexts ``(*batch, *context_shape)``, or one context for all.

        Minus infinity outside the support.  Leading axes of x and context broadcast.

        Raises:
            ShapeError: the shapes do not fit.
            NonFiniteError: x or the context holds NaN or infinity.
        """
        return evaluated(self, x, context, self._log_prob)

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw as `sample` does, with the log-density of each draw ``(n, *batch)``.

        Raises:
            ShapeError: the context does not fit.
            NonFiniteError: the context holds NaN or infinity.
        """
        return self._sample(n, context, seed)

    def rsample(self, n: int, context: Tensor | None = None, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """As `sample_and_log_prob`, with gradients through the draws and their densities to the parameters."""
        return self._sample(n, context, seed)

    def _sample(self, n: int, context: Tensor | None, seed: int | None) -> tuple[Tensor, Tensor]:
        rows, batch = self._rows(n, context)
        with seeded(seed, self.device):
            encoded, log_prob = self._draw(n * batch.numel(), rows, densities=True)
        events, ladj = self.decoded(encoded)
        if log_prob is None:
            log_prob = torch.full_like(ladj, torch.nan)
        log_prob = log_prob - ladj
        return events.reshape(n, *batch, *self.event_shape), log_prob.reshape(n, *batch)

    def _generate(self, n: int, summary: Tensor | None) -> Tensor:
        return self._draw(n, summary, densities=False)[0]


def evaluated(
    model: ConditionalGenerator,
    x: Tensor,
    context: Tensor | None,
    log_prob: Callable[[Tensor, Tensor | None], Tensor],
) -> Tensor:
    """Log-density ``(*batch,)`` of x ``(*batch, D)`` on the support, from the one of encoded events.

    Args:
        model: what encodes the events and summarises the contexts.
        x: the events.
        context: ``(*batch, *context_shape)``, one context for all, or None.
        log_prob: log-density ``(n,)`` of encoded events ``(n, D)`` given summaries ``(n, C)``, one row, or None.

    Raises:
        ShapeError: the shapes do not fit.
        NonFiniteError: x or the context holds NaN or infinity.
    """
    if x.shape[-1:] != model.event_shape:
        raise ShapeError(f"x: expected shape (*, {model.event_shape[0]}), got {tuple(x.shape)}")
    finite(x, "x")
    summary = model._summary(context)
    batch = x.shape[:-1] if summary is None else _common_batch(x.shape[:-1], summary.shape[:-1])
    rows = x.expand(*batch, *model.event_shape).reshape(-1, *model.event_shape)
    summaries = None if summary is None else as_rows(summary, batch)
    inside = model.bijection.within(rows)
    # Rows outside the support are evaluated at the centre, then overwritten: no data-dependent shapes.
    centre = model.bijection.to_support(model.event_scaling.mean)[0]
    encoded, ladj = model.encode(torch.where(inside.unsqueeze(-1), rows, centre))
    result = log_prob(encoded, summaries) + ladj
    return torch.where(inside, result, -torch.inf).reshape(batch)


def _common_batch(events: torch.Size, contexts: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(events, contexts)
    except RuntimeError as error:
        raise ShapeError(
            f"x and context: expected leading axes that broadcast, got {tuple(events)} and {tuple(contexts)}"
        ) from error
