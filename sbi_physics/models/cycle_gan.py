r"""`CycleGAN`: translate events of one simulation into those of another, learned from unpaired samples.

Two networks, forth $G : x_{fast} \to x_{full}$ and back $F : x_{full} \to x_{fast}$, each judged by a critic of its own
target, are held together by the wish that a return trip ends where it began (Zhu et al. 2017, arXiv:1703.10593),

$$ L = L_{critics} + \lambda\,\big(E|F(G(x)) - x|_1 + E|G(F(y)) - y|_1\big)
     + \lambda\iota\,\big(E|G(y) - y|_1 + E|F(x) - x|_1\big), $$

where the last term asks for no more change than is needed.  Both kinds of events share one scaling and one support, so
that "no change" means the same event; both translations start as the identity.

The data fix the translation only up to maps that leave the target as it is (rotations of a Gaussian, say): of those
the networks find one that is near to the identity, without a promise.
"""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from sbi_physics.core.bijection import SupportBijection
from sbi_physics.core.checks import finite
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.critic import Critic, critic_loss, generator_loss, gradient_penalty, penalty_for
from sbi_physics.models.embedding.scaling import context_scaling_for
from sbi_physics.models.residual import ResidualNetwork
from sbi_physics.models.scaling import Standardise

__all__ = ["CycleGAN"]


class CycleGAN(nn.Module):
    """Two translators between two kinds of events, and their critics.

    Args:
        event_shape: ``(D,)``, of both kinds.
        context_shape: the shape of what both are conditional on, as theta; None for nothing.
        loss: ``"wasserstein"`` or ``"minimax"``, see `models.critic`.
        context_features: C, what the embedding gives; None for the size of a flat context.
        bounds: ``(D, 2)`` support of the events; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        hidden_features: width of all networks.
        blocks: residual blocks of the translators; the critics have one hidden layer more.
        spectral: whether to normalise the critics spectrally.
        penalty: weight of the gradient penalty, see `models.critic`.
        cycle: lambda.
        identity: iota.

    Raises:
        UsageError: an option has a value that it does not take.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        loss: str = "wasserstein",
        context_features: int | None = None,
        bounds: Tensor | None = None,
        embedding: nn.Module | None = None,
        hidden_features: int = 128,
        blocks: int = 2,
        spectral: bool = False,
        penalty: float | None = None,
        cycle: float = 1.0,
        identity: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("cycle", cycle), ("identity", identity)):
            if not 0 <= value < float("inf"):
                raise UsageError(f"{name}: expected a finite number of at least 0, got {value!r}")
        self.game, self.penalty = loss, penalty_for(loss, penalty, spectral)
        self.cycle, self.identity = float(cycle), float(identity)
        self.event_shape, self.conditional = torch.Size(event_shape), context_shape is not None
        self.context_shape = torch.Size(context_shape or ())
        unbounded = torch.tensor([[-torch.inf, torch.inf]]).expand(event_shape[0], 2)
        self.bijection = SupportBijection(unbounded if bounds is None else bounds)
        self.event_scaling = Standardise(self.event_shape)
        self.context_scaling = context_scaling_for(self.context_shape, embedding)
        self.embedding = embedding if embedding is not None else nn.Flatten()
        self.critic_embedding = copy.deepcopy(self.embedding)
        dims, width = event_shape[0], None
        if self.conditional:
            width = self.context_shape.numel() if context_features is None else context_features
        self.forth, self.back = (
            ResidualNetwork(dims, dims, hidden_features=hidden_features, blocks=blocks, condition_features=width)
            for _ in range(2)
        )
        self.full_critic, self.fast_critic = (
            Critic(dims, width, hidden_features=hidden_features, layers=blocks + 1, spectral=spectral) for _ in range(2)
        )

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.event_scaling.mean.device

    @property
    def generator_part(self) -> nn.Module:
        """All that the translators learn."""
        return nn.ModuleList([self.forth, self.back, self.embedding])

    @property
    def critic_part(self) -> nn.Module:
        """All that the critics learn."""
        return nn.ModuleList([self.full_critic, self.fast_critic, self.critic_embedding])

    def fit_scaling(self, fast: Tensor, full: Tensor, contexts: Tensor | None = None) -> Self:
        """Learn one scaling from events ``(n, D)`` and ``(m, D)`` of both kinds, and one from all their contexts."""
        self.event_scaling.fit(self.bijection.to_unbounded(torch.cat([fast, full]))[0])
        if contexts is not None:
            self.context_scaling.fit(contexts)
        return self

    def encode(self, events: Tensor) -> Tensor:
        """Standardised unbounded events ``(*, D)`` of either kind."""
        return self.event_scaling(self.bijection.to_unbounded(events)[0])

    @torch.no_grad()
    def translate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Turn events ``(n, D)`` of the fast simulation into events of the full one, given contexts of the shape
        ``(n, *context_shape)``, or one for all.

        Raises:
            ShapeError: the shapes do not fit.
            NonFiniteError: x or the context holds NaN or infinity.
        """  # noqa: D205
        return self._translate(self.forth, x, context)

    @torch.no_grad()
    def translate_back(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Turn events of the full simulation into events of the fast one, as `translate` does the other way."""
        return self._translate(self.back, x, context)

    def translated(self, encoded: Tensor, contexts: Tensor | None = None, *, back: bool = False) -> Tensor:
        """Translate encoded events ``(n, D)`` with *scaled* contexts ``(n, *context_shape)``."""
        return self._moved(self.back if back else self.forth, encoded, self._embedded(contexts))

    def critic_loss(
        self,
        fast_weights: Tensor,
        fast: Tensor,
        full_weights: Tensor,
        full: Tensor,
        fast_contexts: Tensor | None = None,
        full_contexts: Tensor | None = None,
    ) -> Tensor:
        """What both critics minimise together, a scalar.

        Args:
            fast_weights: of the fast events ``(n,)``, of mean one.
            fast: encoded events of the fast simulation ``(n, D)``.
            full_weights: of the full events ``(m,)``, of mean one.
            full: encoded events of the full simulation ``(m, D)``.
            fast_contexts: *scaled* contexts ``(n, *context_shape)``.
            full_contexts: likewise ``(m, *context_shape)``.
        """
        with torch.no_grad():
            forth = self.translated(fast, fast_contexts)
            back = self.translated(full, full_contexts, back=True)
        summaries = self._judged(fast_contexts), self._judged(full_contexts)
        first = self._contest(self.full_critic, full, full_weights, summaries[1], forth, fast_weights, summaries[0])
        second = self._contest(self.fast_critic, fast, fast_weights, summaries[0], back, full_weights, summaries[1])
        return first + second

    def generator_loss(
        self,
        fast_weights: Tensor,
        fast: Tensor,
        full_weights: Tensor,
        full: Tensor,
        fast_contexts: Tensor | None = None,
        full_contexts: Tensor | None = None,
    ) -> Tensor:
        """What both translators minimise together, a scalar; arguments as of `critic_loss`."""
        summaries = self._embedded(fast_contexts), self._embedded(full_contexts)
        forth, back = self._moved(self.forth, fast, summaries[0]), self._moved(self.back, full, summaries[1])
        v, w = fast_weights / len(fast), full_weights / len(full)
        loss = generator_loss(self.game, self.full_critic(forth, self._judged(fast_contexts)), v)
        loss = loss + generator_loss(self.game, self.fast_critic(back, self._judged(full_contexts)), w)
        # Absolute weights: a negative one would ask for return trips that miss.
        trips = torch.dot(v.abs(), _distance(self._moved(self.back, forth, summaries[0]), fast))
        trips = trips + torch.dot(w.abs(), _distance(self._moved(self.forth, back, summaries[1]), full))
        stays = torch.dot(v.abs(), _distance(self._moved(self.back, fast, summaries[0]), fast))
        stays = stays + torch.dot(w.abs(), _distance(self._moved(self.forth, full, summaries[1]), full))
        return loss + self.cycle * (trips + self.identity * stays)

    def _contest(
        self,
        critic: Critic,
        real: Tensor,
        weights: Tensor,
        summary: Tensor | None,
        made: Tensor,
        made_weights: Tensor,
        made_summary: Tensor | None,
    ) -> Tensor:
        scores, made_scores = critic(real, summary), critic(made, made_summary)
        loss = critic_loss(self.game, scores, made_scores, weights / len(real), made_weights / len(made))
        if not self.penalty:
            return loss
        n = min(len(real), len(made))
        given = None if summary is None else summary[:n]
        return loss + self.penalty * gradient_penalty(critic, real[:n], made[:n], given)

    def _translate(self, network: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
        if x.ndim != 2 or x.shape[1:] != self.event_shape:
            raise ShapeError(f"x: expected shape (n, {self.event_shape[0]}), got {tuple(x.shape)}")
        finite(x, "x")
        if (context is not None) != self.conditional:
            raise ShapeError(f"context: expected {'one' if self.conditional else 'None'}, got {type(context).__name__}")
        summary = None
        if context is not None:
            rows = context.unsqueeze(0) if context.shape == self.context_shape else context
            if rows.shape[1:] != self.context_shape or len(rows) not in (1, len(x)):
                wanted = ", ".join(map(str, self.context_shape))
                raise ShapeError(f"context: expected shape ({len(x)}, {wanted}), got {tuple(context.shape)}")
            summary = self._embedded(self.context_scaling(finite(rows, "context").to(self.device)))
        moved = self._moved(network, self.encode(x.to(self.device)), summary)
        return self.bijection.to_support(self.event_scaling.inverse(moved))[0]

    def _moved(self, network: nn.Module, encoded: Tensor, summary: Tensor | None) -> Tensor:
        return encoded + network(encoded, summary)

    def _embedded(self, contexts: Tensor | None) -> Tensor | None:
        return None if contexts is None else self.embedding(contexts)

    def _judged(self, contexts: Tensor | None) -> Tensor | None:
        return None if contexts is None else self.critic_embedding(contexts)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs().sum(-1)
