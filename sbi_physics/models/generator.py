"""`ConditionalGenerator`: what all conditional models have in common, whatever is inside.

An event goes through three maps, x -> z (`SupportBijection`) -> standardised z -> the model, so that no draw ever falls
outside the support.  A model on a box gets intervals mapped onto it as they are; what has a bound less is standardised
and then squeezed into the box (`IntoBox`).  The context is whitened, or standardised and summarised where there is an
embedding network, before the model sees it.
"""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from sbi_physics.core.bijection import SupportBijection
from sbi_physics.core.checks import finite, positive_integer
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.random import seeded
from sbi_physics.models.embedding.encoder import Encoder
from sbi_physics.models.embedding.scaling import context_scaling_for
from sbi_physics.models.scaling import IntoBox, Scaling, Standardise
from sbi_physics.store.row_parts import Rows, row_parts

__all__ = ["ConditionalGenerator", "as_rows", "rows_at_once", "rows_of"]


class ConditionalGenerator(nn.Module, ABC):
    """A conditional model of D numbers that samples; satisfies `Generator`.

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
        interval = self.bijection.bounds.isfinite().all(-1)
        self.into_box = IntoBox(box, ~interval) if box is not None and not bool(interval.all()) else None
        self.context_scaling = context_scaling or context_scaling_for(self.context_shape, embedding)
        self.embedding = embedding if embedding is not None else nn.Flatten()

    @abstractmethod
    def _generate(self, n: int, summary: Tensor | None) -> Tensor:
        """Draw n encoded events ``(n, D)`` on the current random stream; summary ``(n, C)``, one row, or None."""

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.event_scaling.mean.device

    def fit_scaling(self, events: Rows, contexts: Tensor | None = None) -> Self:
        """Learn the scalings from events ``(n, D)`` inside the support and contexts ``(n, *context_shape)``."""
        if self.bijection.box is None or self.into_box is not None:
            to_unbounded = self.bijection.to_unbounded
            self.event_scaling.fit(row_parts(events).map(lambda part: to_unbounded(part)[0], self.event_shape))
        if self.into_box is not None:
            self.event_scaling.mean.masked_fill_(~self.into_box.open, 0.0)
            self.event_scaling.scale.masked_fill_(~self.into_box.open, 1.0)
        if contexts is not None:
            self.context_scaling.fit(contexts)
        return self

    def encode(self, events: Tensor) -> tuple[Tensor, Tensor]:
        """Events as the model knows them ``(n, D)``, and the log-determinant ``(n,)`` of that map."""
        z, ladj = self.bijection.to_unbounded(events)
        scaled, ladj = self.event_scaling(z), ladj + self.event_scaling.ladj
        if self.into_box is None:
            return scaled, ladj
        boxed, more = self.into_box(scaled)
        return boxed, ladj + more

    def decoded(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """The events ``(n, D)`` that `encode` maps to these, and the log-determinant ``(n,)`` of this map."""
        more = None
        if self.into_box is not None:
            encoded, more = self.into_box.inverse(encoded)
        events, ladj = self.bijection.to_support(self.event_scaling.inverse(encoded))
        ladj = ladj - self.event_scaling.ladj
        return events, ladj if more is None else ladj + more

    @torch.no_grad()
    def sample(self, n: int, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        """Draw n events for each context: ``(n, *batch, D)``, all inside the support.

        Raises:
            ShapeError: the context does not fit.
            NonFiniteError: the context holds NaN or infinity.
        """
        rows, batch = self._rows(n, context)
        with seeded(seed, self.device):
            encoded = self._generate(n * batch.numel(), rows)
        events, _ = self.decoded(encoded)
        return events.reshape(n, *batch, *self.event_shape)

    def _rows(self, n: int, context: Tensor | None) -> tuple[Tensor | None, torch.Size]:
        """The summary of each of the events when n are drawn for each context, and the shape of the contexts."""
        positive_integer(n, "n")
        summary = self._summary(context)
        batch = torch.Size() if summary is None else summary.shape[:-1]
        return None if summary is None else as_rows(summary, torch.Size([n, *batch])), batch

    def _embedded(self, contexts: Tensor | None) -> Tensor | None:
        """Summaries ``(n, C)`` of scaled contexts."""
        return self.embedding(contexts) if contexts is not None else None

    def _summary(self, context: Tensor | None) -> Tensor | None:
        """Summaries ``(*batch, C)`` of contexts; each context is embedded once."""
        if not self.conditional:
            if context is not None:
                raise ShapeError("context: this model is unconditional, expected None")
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


def rows_at_once(device: torch.device) -> int:
    """How many rows to draw together: on a CPU as many as stay in its cache on their way through a network.

    A multiple of 16, as are the normal numbers that PyTorch makes together: parts get those that the whole would.
    """
    return 1 << 9 if device.type == "cpu" else 1 << 14


def rows_of(summary: Tensor | None, rows: slice) -> Tensor | None:
    """Some rows of the summaries ``(n, C)``; one row for all, or None, stays as it is."""
    return summary if summary is None or len(summary) == 1 else summary[rows]


def as_rows(context: Tensor, batch: torch.Size) -> Tensor:
    """Contexts ``(*, C)`` as one row for each event of a batch, or as one row where there is one context for all."""
    if context.shape[:-1].numel() == 1:
        return context.reshape(1, -1)
    return context.expand(*batch, context.shape[-1]).reshape(batch.numel(), context.shape[-1])
