r"""`FlowDensity`: any nflows flow as a conditional density on the support of a prior.

An event goes through three maps, theta -> z (`SupportBijection`) -> standardised z -> noise (the flow), so that

$$ \ln q(\theta|x) = \ln q_{flow}(z_s | c) + \ln|dz_s/dz| + \ln|dz/d\theta| $$

is normalised on the support and no draw ever falls outside it.  A flow on a box, one whose base is `UniformBox`, gets
the support mapped onto its box, and nothing standardised.  The context is whitened, or standardised and
summarised where there is an embedding network, before the flow sees it.
"""

import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from torch import Tensor, nn

from sbi_physics.core.bijection import SupportBijection
from sbi_physics.core.checks import finite, positive_integer
from sbi_physics.core.errors import ShapeError
from sbi_physics.core.random import seeded
from sbi_physics.models.flows.box import UniformBox
from sbi_physics.models.flows.engines import check_engine
from sbi_physics.models.flows.ensemble import FlowEnsemble, add_gradient, from_noise, log_prob, training_log_prob
from sbi_physics.models.scaling import Standardise, Whiten

__all__ = ["FlowDensity"]

_ROWS_AT_ONCE = 1 << 16
_MOST_WHITENED = 512


class FlowDensity(nn.Module):
    """A conditional density made of an nflows flow; satisfies `Density`.

    Args:
        flow: any `nflows.flows.Flow` over D features; its own embedding network is kept.  Or an ensemble of flows.
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional density.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        engine: how the flow is run, see `sbi_physics.models.flows.engines`.
    """

    def __init__(
        self,
        flow: Flow | FlowEnsemble,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        bounds: Tensor | None = None,
        embedding: nn.Module | None = None,
        engine: str = "auto",
    ) -> None:
        super().__init__()
        self.flow, self.engine = flow, check_engine(engine)
        self.event_shape = torch.Size(event_shape)
        self.conditional = context_shape is not None
        self.context_shape = torch.Size(context_shape or ())
        unbounded = torch.tensor([[-torch.inf, torch.inf]]).expand(event_shape[0], 2)
        base = self._one_flow._distribution
        box = base.bound if isinstance(base, UniformBox) else None
        self.bijection = SupportBijection(unbounded if bounds is None else bounds, box=box)
        self.event_scaling = Standardise(self.event_shape)
        # An embedding network may live on the structure of the context (neighbouring bins, images): leave it that.
        flat = embedding is None and self.context_shape.numel() <= _MOST_WHITENED
        self.context_scaling = Whiten(self.context_shape) if flat else Standardise(self.context_shape)
        self.embedding = embedding if embedding is not None else nn.Flatten()

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.event_scaling.mean.device

    def fit_scaling(self, events: Tensor, contexts: Tensor | None = None) -> "FlowDensity":
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

    def loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Minus the log-density of encoded events in their own space: ``(n,)``.

        In training each member of an ensemble is to fit the data on its own: each row is evaluated by one of them.

        Args:
            encoded: the first result of `encode`.
            contexts: *scaled* contexts, ``context_scaling(x)``.
        """
        value = training_log_prob if self.training else log_prob
        return -value(self.flow, encoded, self._embedded(contexts), engine=self.engine)

    def add_gradient(self, weights: Tensor, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """The loss ``(n,)``; the gradient of ``sum(weights * loss)`` is added to the `grad` of the parameters."""
        return -add_gradient(self.flow, encoded, self._embedded(contexts), -weights, engine=self.engine)

    def _embedded(self, contexts: Tensor | None) -> Tensor | None:
        return self._one_flow._embedding_net(self.embedding(contexts) if contexts is not None else None)

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
        result = self._flow_log_prob(encoded, summaries) + ladj
        return torch.where(inside, result, -torch.inf).reshape(batch)

    def _flow_log_prob(self, encoded: Tensor, summaries: Tensor | None) -> Tensor:
        embedded, parts = self._one_flow._embedding_net(summaries), []
        for start in range(0, max(len(encoded), 1), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            parts.append(log_prob(self.flow, encoded[part], _part(embedded, part), engine=self.engine))
        return torch.cat(parts)

    def sample(self, n: int, context: Tensor | None = None, *, seed: int | None = None) -> Tensor:
        """Draw n events for each context: ``(n, *batch, D)``, all inside the support."""
        return self.sample_and_log_prob(n, context, seed=seed)[0]

    @property
    def _one_flow(self) -> Flow:
        """The flow, or the first of an ensemble: what all members have in common is read from it."""
        return self.flow.members()[0] if isinstance(self.flow, FlowEnsemble) else self.flow

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw as `sample` does, with the log-density of each draw ``(n, *batch)``.

        Raises:
            ShapeError: the context does not fit.
            NonFiniteError: the context holds NaN or infinity.
        """
        positive_integer(n, "n")
        summary = self._summary(context)
        batch = torch.Size() if summary is None else summary.shape[:-1]
        embedded = None
        if summary is not None:
            once = self._one_flow._embedding_net(summary.reshape(-1, summary.shape[-1]))
            embedded = _as_rows(once.reshape(*batch, -1), torch.Size([n, *batch]))
        with seeded(seed, self.device):
            noise = self._noise(n * batch.numel(), embedded)
            member = self._member(len(noise))
        encoded, log_prob = self._from_noise(noise, embedded, member)
        theta, ladj = self.bijection.to_support(self.event_scaling.inverse(encoded))
        log_prob = log_prob + self.event_scaling.ladj - ladj
        return theta.reshape(n, *batch, *self.event_shape), log_prob.reshape(n, *batch)

    def _member(self, rows: int) -> Tensor | None:
        if not isinstance(self.flow, FlowEnsemble):
            return None
        return torch.randint(self.flow.active, (rows,), device=self.device)

    def _noise(self, rows: int, embedded: Tensor | None) -> Tensor:
        base = self._one_flow._distribution
        if isinstance(base, StandardNormal):
            return torch.randn(rows, *self.event_shape, device=self.device, dtype=self.event_scaling.mean.dtype)
        return base.sample(rows) if embedded is None else base.sample(1, context=embedded.expand(rows, -1))[:, 0]

    def _from_noise(self, noise: Tensor, embedded: Tensor | None, member: Tensor | None) -> tuple[Tensor, Tensor]:
        events, log_probs = [], []
        for start in range(0, len(noise), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            chosen = None if member is None else member[part]
            event, density = from_noise(self.flow, noise[part], _part(embedded, part), chosen, engine=self.engine)
            events.append(event)
            log_probs.append(density)
        return torch.cat(events), torch.cat(log_probs)

    def _summary(self, context: Tensor | None) -> Tensor | None:
        """Embedded contexts ``(*batch, C)``; each context is embedded once."""
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
        finite(context, "context")
        batch = context.shape[: context.ndim - dims]
        scaled = self.context_scaling(context.to(self.device)).reshape(batch.numel(), *self.context_shape)
        summary = self.embedding(scaled)
        return summary.reshape(*batch, summary.shape[-1])

    def extra_repr(self) -> str:
        """Shapes, for `print`."""
        return f"event_shape={tuple(self.event_shape)}, context_shape={tuple(self.context_shape)}"


def _as_rows(context: Tensor, batch: torch.Size) -> Tensor:
    """Contexts ``(*, C)`` as one row for each event of a batch, or as one row where there is one context for all."""
    if context.shape[:-1].numel() == 1:
        return context.reshape(1, -1)
    return context.expand(*batch, context.shape[-1]).reshape(batch.numel(), context.shape[-1])


def _part(context: Tensor | None, rows: slice) -> Tensor | None:
    return context if context is None or len(context) == 1 else context[rows]


def _common_batch(events: torch.Size, contexts: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(events, contexts)
    except RuntimeError as error:
        raise ShapeError(
            f"x and context: expected leading axes that broadcast, got {tuple(events)} and {tuple(contexts)}"
        ) from error
