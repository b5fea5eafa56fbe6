"""`FlowDensity`: any nflows flow, or an ensemble of flows, as a conditional density on the support of a prior."""

import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from torch import Tensor, nn

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.flows.box import UniformBox
from sbi_physics.models.flows.engines import check_engine
from sbi_physics.models.flows.ensemble import FlowEnsemble, add_gradient, from_noise, log_prob, training_log_prob
from sbi_physics.models.generator import rows_of
from sbi_physics.models.pushforward import PushforwardGenerator, uniform
from sbi_physics.models.scaling import Scaling

__all__ = ["FlowDensity"]

_ROWS_AT_ONCE = 1 << 16


class FlowDensity(ConditionalDensity, PushforwardGenerator):
    """A conditional density made of an nflows flow; satisfies `Density`.

    Args:
        flow: any `nflows.flows.Flow` over D features; its own embedding network is kept.  Or an ensemble of flows.
            One whose base is `UniformBox` gets the support mapped onto its box.
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional density.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        context_scaling: what contexts go through first, see `ConditionalDensity`.
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
        context_scaling: Scaling | None = None,
        engine: str = "auto",
    ) -> None:
        base = _first(flow)._distribution
        box = base.bound if isinstance(base, UniformBox) else None
        super().__init__(
            event_shape, context_shape, bounds=bounds, embedding=embedding, context_scaling=context_scaling, box=box
        )
        self.flow, self.engine = flow, check_engine(engine)

    @property
    def graphable(self) -> bool:
        """Whether a step of training may be recorded as a CUDA graph."""
        return self.engine in ("auto", "graphed")

    def loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Minus the log-density of encoded events in their own space: ``(n,)``.

        In training each member of an ensemble is to fit the data on its own: each row is evaluated by one of them.
        """
        value = training_log_prob if self.training else log_prob
        return -value(self.flow, encoded, self._embedded(contexts), engine=self.engine)

    def add_gradient(self, weights: Tensor, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """The loss ``(n,)``; the gradient of ``sum(weights * loss)`` is added to the `grad` of the parameters."""
        return -add_gradient(self.flow, encoded, self._embedded(contexts), -weights, engine=self.engine)

    def _embedded(self, contexts: Tensor | None) -> Tensor | None:
        return _first(self.flow)._embedding_net(super()._embedded(contexts))

    def _log_prob(self, encoded: Tensor, summary: Tensor | None) -> Tensor:
        parts = []
        for start in range(0, max(len(encoded), 1), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            parts.append(log_prob(self.flow, encoded[part], rows_of(summary, part), engine=self.engine))
        return torch.cat(parts)

    def _draw(self, n: int, summary: Tensor | None, *, densities: bool) -> tuple[Tensor, Tensor | None]:
        noise, member = self._noise(n, summary), self._member(n)
        events, log_probs = [], []
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            chosen = None if member is None else member[part]
            event, density = from_noise(self.flow, noise[part], rows_of(summary, part), chosen, engine=self.engine)
            events.append(event)
            log_probs.append(density)
        return torch.cat(events), torch.cat(log_probs)

    @torch.no_grad()
    def to_noise(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The noise ``(n, D)`` from which a single flow makes events x ``(n, D)``; out of bounds counts as just within.

        Args:
            x: ``(n, D)``.
            context: ``(n, *context_shape)``; None for an unconditional density.

        Raises:
            UsageError: it is an ensemble, whose members have noises of their own.
            ShapeError: the shapes do not fit.
            NonFiniteError: the context holds NaN or infinity.
        """
        if isinstance(self.flow, FlowEnsemble):
            raise UsageError("to_noise: expected a single flow, got an ensemble")
        if x.ndim != 2 or x.shape[1:] != self.event_shape:
            raise ShapeError(f"x: expected shape (n, {self.event_shape[0]}), got {tuple(x.shape)}")
        summary, parts = self._summary(context), []
        for start in range(0, max(len(x), 1), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            encoded = self.encode(self.bijection.strictly_inside(x[part]))[0]
            parts.append(self.flow._transform(encoded, context=rows_of(summary, part))[0])
        return torch.cat(parts)

    @property
    def noise_features(self) -> int:
        """D, and for an ensemble one more, which says the member."""
        return self.event_shape[0] + isinstance(self.flow, FlowEnsemble)

    def _from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        base, dims = _first(self.flow)._distribution, self.event_shape[0]
        if isinstance(base, UniformBox):
            points = base.bound * (2 * uniform(noise[:, :dims]) - 1)
        elif isinstance(base, StandardNormal):
            points = noise[:, :dims]
        else:
            raise UsageError(f"from_noise: expected a normal or uniform base of the flow, got {type(base).__name__}")
        if not isinstance(self.flow, FlowEnsemble):
            return from_noise(self.flow, points, summary, engine=self.engine)[0]
        # Through all members, of which one counts: how many rows each would get depends on the noise.
        events, member = points, uniform(noise[:, dims:]) * self.flow.active
        for i, flow in enumerate(self.flow.members()):
            events = torch.where(member >= i, from_noise(flow, points, summary, engine=self.engine)[0], events)
        return events

    def _member(self, rows: int) -> Tensor | None:
        if not isinstance(self.flow, FlowEnsemble):
            return None
        return torch.randint(self.flow.active, (rows,), device=self.device)

    def _noise(self, rows: int, summary: Tensor | None) -> Tensor:
        base = _first(self.flow)._distribution
        if isinstance(base, StandardNormal):
            return torch.randn(rows, *self.event_shape, device=self.device, dtype=self.event_scaling.mean.dtype)
        return base.sample(rows) if summary is None else base.sample(1, context=summary.expand(rows, -1))[:, 0]


def _first(flow: Flow | FlowEnsemble) -> Flow:
    """The flow, or the first of an ensemble: what all members have in common is read from it."""
    return flow.members()[0] if isinstance(flow, FlowEnsemble) else flow
