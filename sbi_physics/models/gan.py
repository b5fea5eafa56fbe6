r"""`GenerativeAdversarialNetwork`: a generator of events from noise and a context, taught by a critic.

With base noise e ~ N(0, I) and the summary c of the context, an encoded event is

$$ z = P e + f(e, c) $$

with a residual network f that starts at zero and a matrix P that starts as the identity: an untrained generator draws
standard normal numbers.  The critic (`models.critic`) sees pairs (z, c), so that a context may be anything, the event
of a fast simulation among it.  An embedding network is copied for the critic: each side learns its own.

Where numbers are zero or above a threshold, the network gives the laws of hurdle models (`models.hurdle`) instead, from
which the numbers are drawn by noise of their own: what scatters independently need not be made by a network.

There is no density, and nothing guarantees that all modes are found: `train.adversarial` watches for that.
"""

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.critic import Critic, critic_loss, generator_loss, gradient_penalty, penalty_for
from sbi_physics.models.generator import rows_at_once, rows_of
from sbi_physics.models.hurdle import HurdleNetwork, check_groups
from sbi_physics.models.pushforward import PushforwardGenerator
from sbi_physics.models.residual import ResidualNetwork
from sbi_physics.store.row_parts import Rows

__all__ = ["GenerativeAdversarialNetwork"]

_LATENT = 32
_TEMPERATURE = 0.5


class GenerativeAdversarialNetwork(PushforwardGenerator):
    """A conditional generative adversarial network; satisfies `Generator`.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional model.
        loss: ``"wasserstein"`` or ``"minimax"``, see `models.critic`.
        context_features: C, what the embedding gives; None for the size of a flat context.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        noise_features: how many normal numbers the network makes an event of; None for D, or 32 with groups.
        hidden_features: width of both networks.
        blocks: residual blocks of the generator; the critic has one hidden layer more.
        spectral: whether to normalise the critic spectrally.
        penalty: weight of the gradient penalty; None for 0.3 in the Wasserstein game without spectral normalisation.
        groups: None, or for numbers that are zero or above a threshold, events below zero or above, the group of each
            of the D numbers (`models.hurdle`): the network then gives the laws of the numbers, from which they are
            drawn by noise of their own.
        angles: where each of the D numbers stands in its group, in radians; with groups.
        components: of the laws of what is not zero; with groups.

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
        noise_features: int | None = None,
        hidden_features: int = 128,
        blocks: int = 2,
        spectral: bool = False,
        penalty: float | None = None,
        groups: Sequence[int] | None = None,
        angles: Sequence[float] | None = None,
        components: int = 3,
    ) -> None:
        super().__init__(event_shape, context_shape, bounds=bounds, embedding=embedding)
        dims = event_shape[0]
        self.game, self.penalty = loss, penalty_for(loss, penalty, spectral)
        inputs = (dims if groups is None else _LATENT) if noise_features is None else noise_features
        self.inputs = positive_integer(inputs, "noise_features")
        width = None
        if self.conditional:
            width = self.context_shape.numel() if context_features is None else context_features
        sizes: dict[str, Any] = {"hidden_features": hidden_features, "blocks": blocks}
        self.network: _DenseNetwork | HurdleNetwork
        if groups is None:
            if angles is not None:
                raise UsageError("angles: expected None where there are no groups")
            self.network = _DenseNetwork(self.inputs, dims, width, **sizes)
        else:
            check_groups(groups, dims, bounds)
            self.network = HurdleNetwork(self.inputs, groups, width, angles=angles, components=components, **sizes)
        self.critic = Critic(dims, width, hidden_features=hidden_features, layers=blocks + 1, spectral=spectral)
        self.critic_embedding = copy.deepcopy(self.embedding)

    @property
    def has_laws(self) -> bool:
        """Whether the network gives the laws of the numbers (with groups), and not the numbers."""
        return isinstance(self.network, HurdleNetwork)

    @property
    def generator_part(self) -> nn.Module:
        """All that the generator learns."""
        return nn.ModuleList([self.network, self.embedding])

    @property
    def critic_part(self) -> nn.Module:
        """All that the critic learns."""
        return nn.ModuleList([self.critic, self.critic_embedding])

    @property
    def noise_features(self) -> int:
        """E: those that the network is given, and with groups two for each number of the event."""
        return self.inputs + (2 * self.event_shape[0] if isinstance(self.network, HurdleNetwork) else 0)

    def fit_scaling(self, events: Rows, contexts: Tensor | None = None) -> Self:
        """Learn the scalings from events ``(n, D)`` and contexts; with groups, by what is not zero."""
        super().fit_scaling(events, contexts)
        if isinstance(self.network, HurdleNetwork):
            self.network.fit_into(self.event_scaling, events)
        return self

    def generate(self, noise: Tensor, summary: Tensor | None = None) -> Tensor:
        """Encoded events ``(n, D)`` from standard normal noise ``(n, E)`` and summaries ``(n, C)``, or one row for all.

        Raises:
            ShapeError: the noise has another width.
        """
        if noise.shape[-1:] != (self.noise_features,):
            raise ShapeError(f"noise: expected shape (n, {self.noise_features}), got {tuple(noise.shape)}")
        if isinstance(self.network, HurdleNetwork):
            latent, rest = noise.split([self.inputs, 2 * self.event_shape[0]], -1)
            return self.network.draw(latent, summary, rest, temperature=_TEMPERATURE if self.training else None)
        return self.network(noise, summary)

    def seen(self, encoded: Tensor) -> Tensor:
        """Encoded events ``(n, D)`` as the critic sees them: with groups, zeros are all at one place."""
        return self.network.seen(encoded) if isinstance(self.network, HurdleNetwork) else encoded

    def likelihood_loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """With groups, minus the log-density of events ``(n, D)`` given the noise of the network: ``(n,)``, in nats.

        The noise says nothing about the event, and so this teaches the laws of the single numbers, and nothing of what
        they have in common: a start from which the game against the critic is shorter.

        Args:
            encoded: the first result of `encode`.
            contexts: *scaled* contexts ``(n, *context_shape)``.

        Raises:
            UsageError: there are no groups, and the generator has no density given its noise.
        """
        if not isinstance(self.network, HurdleNetwork):
            raise UsageError("groups: expected groups, got None: the generator has no density")
        like = self.event_scaling.mean
        noise = torch.randn(len(encoded), self.inputs, device=like.device, dtype=like.dtype)
        return -self.network(noise, self._embedded(contexts)).log_prob(encoded)

    def critic_loss(self, weights: Tensor, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """What the critic minimises, a scalar; noise comes from the current random stream.

        Args:
            weights: of the events ``(n,)``, of mean one.
            encoded: real events ``(n, D)``, the first result of `encode`.
            contexts: *scaled* contexts ``(n, *context_shape)``.
        """
        encoded = self.seen(encoded)
        with torch.no_grad():
            generated = self.imitate(encoded, contexts)
        summary = None if contexts is None else self.critic_embedding(contexts)
        twice = None if summary is None else torch.cat([summary, summary])
        real, other = self.critic(torch.cat([encoded, generated]), twice).chunk(2)
        loss = critic_loss(self.game, real, other, weights / len(weights), self._shares(weights))
        if self.penalty:
            loss = loss + self.penalty * gradient_penalty(self.critic, encoded, generated, summary)
        return loss

    def generator_loss(self, weights: Tensor, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """What the generator minimises, a scalar; of the real events only the contexts and weights count."""
        generated = self.imitate(encoded, contexts)
        summary = None if contexts is None else self.critic_embedding(contexts)
        return generator_loss(self.game, self.critic(generated, summary), self._shares(weights))

    def imitate(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """As many encoded events as are given, with their *scaled* contexts, as the critic sees them.

        Noise comes from the current random stream.
        """
        generated = self.generate(self._noise(len(encoded)), self._embedded(contexts))
        # In training zeros are at one place already, and have a derivative that another look would take from them.
        return generated if self.training else self.seen(generated)

    def _noise(self, n: int) -> Tensor:
        return torch.randn(n, self.noise_features, device=self.device, dtype=self.event_scaling.mean.dtype)

    def _shares(self, weights: Tensor) -> Tensor:
        """The weights of generated events: those of the real events whose contexts they have, else all equal."""
        shares = weights / len(weights)
        return shares if self.conditional else shares.mean().expand_as(shares)

    def _from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        return self.generate(noise, summary)

    def _generate(self, n: int, summary: Tensor | None) -> Tensor:
        size, like = rows_at_once(self.device), self.event_scaling.mean
        noise = like.new_empty(min(n, size), self.noise_features)
        events = like.new_empty(n, *self.event_shape)
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            events[part] = self.generate(noise[: part.stop - part.start].normal_(), rows_of(summary, part))
        return events


class _DenseNetwork(nn.Module):
    """Events ``(n, D)`` from noise ``(n, E)`` and a condition: linear, plus a residual network that starts at zero."""

    def __init__(
        self, inputs: int, outputs: int, condition_features: int | None, *, hidden_features: int, blocks: int
    ) -> None:
        super().__init__()
        self.network = ResidualNetwork(
            inputs + (condition_features or 0),
            outputs,
            hidden_features=hidden_features,
            blocks=blocks,
            condition_features=condition_features,
        )
        self.projection = nn.Linear(inputs, outputs, bias=False)
        nn.init.eye_(self.projection.weight)

    def forward(self, noise: Tensor, summary: Tensor | None = None) -> Tensor:
        if summary is None:
            return self.projection(noise) + self.network(noise)
        # Among the inputs, too: what scales and shifts hidden units starts at zero and is slow to move.
        inputs = torch.cat([noise, summary.expand(noise.shape[0], summary.shape[-1])], -1)
        return self.projection(noise) + self.network(inputs, summary)
