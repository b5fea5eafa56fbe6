r"""`GenerativeAdversarialNetwork`: a generator of events from noise and a context, taught by a critic.

With base noise e ~ N(0, I) and the summary c of the context, an encoded event is

$$ z = P e + f(e, c) $$

with a residual network f that starts at zero and a matrix P that starts as the identity: an untrained generator draws
standard normal numbers.  The critic (`models.critic`) sees pairs (z, c), so that a context may be anything, the event
of a fast simulation among it.  An embedding network is copied for the critic: each side learns its own.

There is no density, and nothing guarantees that all modes are found: `train.adversarial` watches for that.
"""

import copy

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import ShapeError
from sbi_physics.models.critic import Critic, critic_loss, generator_loss, gradient_penalty, penalty_for
from sbi_physics.models.generator import rows_of
from sbi_physics.models.pushforward import PushforwardGenerator
from sbi_physics.models.residual import ResidualNetwork

__all__ = ["GenerativeAdversarialNetwork"]

_ROWS_AT_ONCE = 1 << 16


class GenerativeAdversarialNetwork(PushforwardGenerator):
    """A conditional generative adversarial network; satisfies `Generator`.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional model.
        loss: ``"wasserstein"`` or ``"minimax"``, see `models.critic`.
        context_features: C, what the embedding gives; None for the size of a flat context.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        noise_features: E, how many normal numbers make an event; None for D.
        hidden_features: width of both networks.
        blocks: residual blocks of the generator; the critic has one hidden layer more.
        spectral: whether to normalise the critic spectrally.
        penalty: weight of the gradient penalty; None for 0.3 in the Wasserstein game without spectral normalisation.

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
    ) -> None:
        super().__init__(event_shape, context_shape, bounds=bounds, embedding=embedding)
        dims = event_shape[0]
        self.game, self.penalty = loss, penalty_for(loss, penalty, spectral)
        count = dims if noise_features is None else positive_integer(noise_features, "noise_features")
        width = None
        if self.conditional:
            width = self.context_shape.numel() if context_features is None else context_features
        self.network = ResidualNetwork(
            count + (width or 0),
            dims,
            hidden_features=hidden_features,
            blocks=blocks,
            condition_features=width,
        )
        self.projection = nn.Linear(count, dims, bias=False)
        nn.init.eye_(self.projection.weight)
        self.critic = Critic(dims, width, hidden_features=hidden_features, layers=blocks + 1, spectral=spectral)
        self.critic_embedding = copy.deepcopy(self.embedding)

    @property
    def noise_features(self) -> int:
        """E."""
        return self.projection.in_features

    @property
    def generator_part(self) -> nn.Module:
        """All that the generator learns."""
        return nn.ModuleList([self.network, self.projection, self.embedding])

    @property
    def critic_part(self) -> nn.Module:
        """All that the critic learns."""
        return nn.ModuleList([self.critic, self.critic_embedding])

    def generate(self, noise: Tensor, summary: Tensor | None = None) -> Tensor:
        """Encoded events ``(n, D)`` from standard normal noise ``(n, E)`` and summaries ``(n, C)``, or one row for all.

        Raises:
            ShapeError: the noise has another width.
        """
        if noise.shape[-1:] != (self.noise_features,):
            raise ShapeError(f"noise: expected shape (n, {self.noise_features}), got {tuple(noise.shape)}")
        if summary is None:
            return self.projection(noise) + self.network(noise)
        # Among the inputs, too: what scales and shifts hidden units starts at zero and is slow to move.
        inputs = torch.cat([noise, summary.expand(noise.shape[0], summary.shape[-1])], -1)
        return self.projection(noise) + self.network(inputs, summary)

    def critic_loss(self, weights: Tensor, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """What the critic minimises, a scalar; noise comes from the current random stream.

        Args:
            weights: of the events ``(n,)``, of mean one.
            encoded: real events ``(n, D)``, the first result of `encode`.
            contexts: *scaled* contexts ``(n, *context_shape)``.
        """
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
        """As many encoded events as are given, with their *scaled* contexts, from the current random stream."""
        return self.generate(self._noise(len(encoded)), self._embedded(contexts))

    def _noise(self, n: int) -> Tensor:
        return torch.randn(n, self.noise_features, device=self.device, dtype=self.event_scaling.mean.dtype)

    def _shares(self, weights: Tensor) -> Tensor:
        """The weights of generated events: those of the real events whose contexts they have, else all equal."""
        shares = weights / len(weights)
        return shares if self.conditional else shares.mean().expand_as(shares)

    def _from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        return self.generate(noise, summary)

    def _generate(self, n: int, summary: Tensor | None) -> Tensor:
        parts = []
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, n))
            parts.append(self.generate(self._noise(part.stop - part.start), rows_of(summary, part)))
        return torch.cat(parts)
