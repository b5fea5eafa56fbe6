r"""`ConditionalDensity`: what all conditional densities have in common, whatever is inside.

An event goes through three maps, theta -> z (`SupportBijection`) -> standardised z -> the model, so that

$$ \ln q(\theta|x) = \ln q_{model}(z_s | c) + \ln|dz_s/dz| + \ln|dz/d\theta| $$

is normalised on the support and no draw ever falls outside it.  A model on a box gets the support mapped onto its box,
and nothing standardised.  The context is whitened, or standardised and summarised where there is an embedding network,
before the model sees it.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sbi_physics.core.bijection import SupportBijection
from sbi_physics.core.checks import finite, positive_integer
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.random import seeded
from sbi_physics.models.embedding.encoder import Encoder
from sbi_physics.models.embedding.scaling import context_scaling_for
from sbi_physics.models.scaling import Scaling, Standardise

__all__ = ["ConditionalDensity", "rows_of"]


class ConditionalDensity(nn.Module, ABC):
    """A conditional density over D numbers; satisfies `Density`.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional density.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        context_scaling: what contexts go through first, with a method ``fit(contexts)``; None whitens them, or
            standardises them where there is an embedding; an `Encoder` brings its own.
        box: B, where the model lives on [-B, B]^D; None where it lives on R^D.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        bounds: Tensor | None = None,
        embedding: nn.Module | None = None,
        context_scaling: Scaling | None = None,
        box: float | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.conditional = context_shape is not None
        self.context_shape = torch.Size(context_shape or ())
        unbounded = torch.tensor([[-torch.inf, torch.inf]]).expand(event_shape[0], 2)
        self.bijection = SupportBijection(unbounded if bounds is None else bounds, box=box)
        self.event_scaling = Standardise(self.event_shape)
        self.context_scaling = context_scaling or context_scaling_for(self.context_shape, embedding)
        self.embedding = embedding if embedding is not None else nn.Flatten()

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

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.event_scaling.mean.device

    def fit_scaling(self, events: Tensor, contexts: Tensor | None = None) -> "ConditionalDensity":
        """Learn the scalings from events ``(n, D)`` inside the support and contexts ``(n, *context_shape)``."""
        if self.bijection.box is None:
            self.event_scaling.fit(self.bijection.to_unbounded(events)[0])
        if contexts is not None:
            self.context_scaling.fit(contexts)
        return self

    def encode(self, events: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised unbounded events ``(n, D)`` and the log-determinant ``(n,)`` of that map."""
        z, ladj = self.bijection.to_unbounded(events)
        return self.event_scaling(z), ladj + self.event_scaling.ladj

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
        if x.shape[-1:] != self.event_shape:
            raise ShapeError(f"x: expected shape (*, {self.event_shape[0]}), got {tuple(x.shape)}")
        finite(x, "x")
        summary = self._summary(context)
        batch = x.shape[:-1] if summary is None else _common_batch(x.shape[:-1], summary.shape[:-1])
        rows = x.expand(*batch, *self.event_shape).reshape(-1, *self.event_shape)
        summaries = None if summary is None else _as_rows(summary, batch)
        inside = self.bijection.within(rows)
        # Rows outside the support are evaluated at the centre, then overwritten: no data-dependent shapes.
        centre = self.bijection.to_support(self.event_scaling.mean)[0]
        encoded, ladj = self.encode(torch.where(inside.unsqueeze(-1), rows, centre))
        result = self._log_prob(encoded, summaries) + ladj
        return torch.where(inside, result, -torch.inf).reshape(batch)

    @torch.no_grad()
    def sample(self, n: int, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        """Draw n events for each context: ``(n, *batch, D)``, all inside the support."""
        return self._sample(n, context, seed, densities=False)[0]

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw as `sample` does, with the log-density of each draw ``(n, *batch)``.

        Raises:
            ShapeError: the context does not fit.
            NonFiniteError: the context holds NaN or infinity.
        """
        theta, log_prob = self._sample(n, context, seed, densities=True)
        return theta, log_prob

    def rsample(self, n: int, context: Tensor | None = None, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """As `sample_and_log_prob`, with gradients through the draws and their densities to the parameters."""
        return self._sample(n, context, seed, densities=True)

    def _sample(self, n: int, context: Tensor | None, seed: int | None, *, densities: bool) -> tuple[Tensor, Tensor]:
        positive_integer(n, "n")
        summary = self._summary(context)
        batch = torch.Size() if summary is None else summary.shape[:-1]
        rows = None if summary is None else _as_rows(summary, torch.Size([n, *batch]))
        with seeded(seed, self.device):
            encoded, log_prob = self._draw(n * batch.numel(), rows, densities=densities)
        theta, ladj = self.bijection.to_support(self.event_scaling.inverse(encoded))
        if log_prob is None:
            log_prob = torch.full_like(ladj, torch.nan)
        log_prob = log_prob + self.event_scaling.ladj - ladj
        return theta.reshape(n, *batch, *self.event_shape), log_prob.reshape(n, *batch)

    def _embedded(self, contexts: Tensor | None) -> Tensor | None:
        """Summaries ``(n, C)`` of scaled contexts."""
        return self.embedding(contexts) if contexts is not None else None

    def _summary(self, context: Tensor | None) -> Tensor | None:
        """Summaries ``(*batch, C)`` of contexts; each context is embedded once."""
        if not self.conditional:
            if context is not None:
                raise ShapeError("context: this density is unconditional, expected None")
            return None
        if context is None:
            raise ShapeError(f"context: expected shape (*, {', '.join(map(str, self.context_shape))}), got None")
        dims = len(self.context_shape)
        if context.ndim < dims or context.shape[context.ndim - dims :] != self.context_shape:
            raise ShapeError(
                f"context: expected shape (*, {', '.join(map(str, self.context_shape))}), got {tuple(context.shape)}"
            )
        if not (isinstance(self.embedding, Encoder) and self.embedding.accepts_missing):
            finite(context, "context")
        batch = context.shape[: context.ndim - dims]
        scaled = self.context_scaling(context.to(self.device)).reshape(batch.numel(), *self.context_shape)
        summary = self._embedded(scaled)
        return None if summary is None else summary.reshape(*batch, summary.shape[-1])

    def extra_repr(self) -> str:
        """Shapes, for `print`."""
        return f"event_shape={tuple(self.event_shape)}, context_shape={tuple(self.context_shape)}"


def rows_of(summary: Tensor | None, rows: slice) -> Tensor | None:
    """Some rows of the summaries ``(n, C)``; one row for all, or None, stays as it is."""
    return summary if summary is None or len(summary) == 1 else summary[rows]


def _as_rows(context: Tensor, batch: torch.Size) -> Tensor:
    """Contexts ``(*, C)`` as one row for each event of a batch, or as one row where there is one context for all."""
    if context.shape[:-1].numel() == 1:
        return context.reshape(1, -1)
    return context.expand(*batch, context.shape[-1]).reshape(batch.numel(), context.shape[-1])


def _common_batch(events: torch.Size, contexts: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(events, contexts)
    except RuntimeError as error:
        raise ShapeError(
            f"x and context: expected leading axes that broadcast, got {tuple(events)} and {tuple(contexts)}"
        ) from error
