r"""`VariationalAutoencoder`: events from a few latent numbers, by way of a network that guesses those.

An event x is drawn from latent levels $z_L \to \dots \to z_1 \to x$ given a context c, and training maximises the
evidence lower bound (Kingma and Welling 2014, arXiv:1312.6114; conditional: Sohn, Lee and Yan 2015)

$$ E_q\Big[ \ln p(x|z_1, c) \Big] - \beta \Big[ KL\big(q(z_L|x,c) \,|\, p(z_L|c)\big)
   + \sum_{l<L} E_q KL\big(q(z_l|z_{l+1},x,c) \,|\, p(z_l|z_{l+1},c)\big) \Big]. $$

With several levels the posterior goes down the same ladder as the draws do: at each rung the prior $p(z_l|z_{l+1},c)$
is multiplied by a Gaussian that a network reads off the event (Sønderby et al. 2016, arXiv:1602.02282).

The decoder says how the numbers of an event scatter, independently, given the latent ones.  ``"gaussian"`` has one
standard deviation for all outputs and events, which is given or learned; if learned, reconstruction and divergence
balance by themselves (sigma-VAE: Rybkin, Daniilidis and Levine 2021, arXiv:2006.13202).  ``"learned-variance"`` lets
the decoder say one for each output of each event.  ``"hurdle"`` is for numbers that are zero or above a threshold
(`models.hurdle`), which are events below zero or above.

Beta other than one gives up the bound for latent numbers that say less (Higgins et al. 2017); it may grow from zero
over the first steps of training, lest the latent numbers be given up before the decoder has learned to use them (Bowman
et al. 2016, arXiv:1511.06349).  In evaluation the loss is always at the final beta, with the same noise each time.

The density itself is an integral over the latent numbers.  `importance_log_prob` estimates it (Burda, Grosse and
Salakhutdinov 2016, arXiv:1509.00519):

$$ \ln \frac1n \sum_{k=1}^n \frac{p(x, z^{(k)}|c)}{q(z^{(k)}|x,c)}, \qquad z^{(k)} \sim q. $$
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import known_keys, not_negative, positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import seeded
from sbi_physics.models.density import evaluated
from sbi_physics.models.generator import rows_at_once, rows_of
from sbi_physics.models.hurdle import HurdleNetwork, Hurdles, check_groups
from sbi_physics.models.pushforward import PushforwardGenerator
from sbi_physics.models.vae.gaussian import DiagonalGaussian, GaussianNetwork, bounded
from sbi_physics.models.vae.prior import LatentPrior, build_prior
from sbi_physics.store.row_parts import Rows

__all__ = ["DECODERS", "VariationalAutoencoder"]

DECODERS = ("gaussian", "learned-variance", "hurdle")
_ROWS_AT_ONCE = 1 << 14
_SEED_OF_EVALUATION = 0
_WIDEST_PRIOR = 64
# Where the noise is as large as the events, latent numbers are not worth their divergence, and are soon forgotten.
_FIRST_LOG_NOISE = -2.0


class _Rung(NamedTuple):
    """A level of the ladder, seen from an event: a point, its posterior, and its prior (None at the top)."""

    point: Tensor
    posterior: DiagonalGaussian
    prior: DiagonalGaussian | None


class VariationalAutoencoder(PushforwardGenerator):
    """A conditional variational autoencoder; satisfies `Generator`.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional model.
        context_features: C, what the embedding gives; None for the size of a flat context.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        latent: how many latent numbers there are; a sequence gives those of several levels, from the one next to the
            event upwards.
        decoder: ``"gaussian"``, ``"learned-variance"`` or ``"hurdle"``.
        noise: standard deviation of a ``"gaussian"`` decoder in standardised units; None learns it.
        latent_prior: of the highest level: ``"normal"`` or ``"flow"``.
        prior_transforms: layers of the flow of the prior.
        prior_features: width of its networks; None for `hidden_features`, 64 at most, since latent numbers are few.
        beta: weight of the divergence.
        warmup_steps: steps of training over which the weight grows from zero to beta.
        hidden_features: width of the networks.
        blocks: their residual blocks.
        groups: with the decoder ``"hurdle"``, the group of each of the D numbers, -1 for one that is never zero; None
            puts each into a group of its own.
        angles: with the decoder ``"hurdle"``, where each of the D numbers stands in its group, in radians.
        components: with the decoder ``"hurdle"``, of the mixture for what is not zero.

    Raises:
        UsageError: an option has a value that it does not take.
    """

    steps: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        context_features: int | None = None,
        bounds: Tensor | None = None,
        embedding: nn.Module | None = None,
        latent: int | Sequence[int] = 8,
        decoder: str = "learned-variance",
        noise: float | None = None,
        latent_prior: str = "normal",
        prior_transforms: int = 3,
        prior_features: int | None = None,
        beta: float = 1.0,
        warmup_steps: int = 100,
        hidden_features: int = 64,
        blocks: int = 2,
        groups: Sequence[int] | None = None,
        angles: Sequence[float] | None = None,
        components: int = 3,
    ) -> None:
        super().__init__(event_shape, context_shape, bounds=bounds, embedding=embedding)
        known_keys([decoder], DECODERS, "decoder")
        self.latent = _levels(latent)
        self.beta, self.warmup_steps = not_negative(beta, "beta"), int(not_negative(warmup_steps, "warmup_steps"))
        dims, width = event_shape[0], None
        if self.conditional:
            width = self.context_shape.numel() if context_features is None else context_features
        sizes: dict[str, Any] = {"hidden_features": hidden_features, "blocks": blocks}
        self.encoders = nn.ModuleList(GaussianNetwork(dims, size, width, **sizes) for size in self.latent)
        self.priors = nn.ModuleList(
            GaussianNetwork(above, size, width, **sizes)
            for size, above in zip(self.latent[:-1], self.latent[1:], strict=True)
        )
        narrow = {**sizes, "hidden_features": _prior_width(prior_features, hidden_features)}
        self.top: LatentPrior = build_prior(latent_prior, self.latent[-1], width, transforms=prior_transforms, **narrow)
        self.decoder: GaussianNetwork | HurdleNetwork
        if decoder == "hurdle":
            every = list(range(dims)) if groups is None else list(groups)
            check_groups(every, dims, bounds)
            self.decoder = HurdleNetwork(self.latent[0], every, width, angles=angles, components=components, **sizes)
        else:
            if groups is not None or angles is not None:
                raise UsageError(f"groups: only the decoder 'hurdle' has groups and angles, got {decoder!r}")
            spread = decoder == "learned-variance"
            self.decoder = GaussianNetwork(self.latent[0], dims, width, spread=spread, **sizes)
        self._set_noise(noise, decoder, dims)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def fit_scaling(self, events: Rows, contexts: Tensor | None = None) -> Self:
        """Learn the scalings from events ``(n, D)`` and contexts; numbers with a hurdle by those that are not zero."""
        super().fit_scaling(events, contexts)
        if isinstance(self.decoder, HurdleNetwork):
            self.decoder.fit_into(self.event_scaling, events)
        return self

    def loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Minus the evidence lower bound of encoded events ``(n, D)`` in their own space, in nats: ``(n,)``.

        In training the divergence has its present weight, and each call with gradients counts as a step.

        Args:
            encoded: the first result of `encode`.
            contexts: *scaled* contexts, ``context_scaling(x)``.
        """
        summary, beta = self._embedded(contexts), self._beta()
        with seeded(None if self.training else _SEED_OF_EVALUATION, encoded.device):
            noise = self._noise(len(encoded))
        rungs = self._infer(encoded, summary, noise)
        top = rungs[-1]
        divergence = self.top.divergence(top.posterior, top.point, summary)
        for rung in rungs[:-1]:
            if rung.prior is not None:
                divergence = divergence + rung.posterior.divergence(rung.prior)
        return beta * divergence - self._decode(rungs[0].point, summary).log_prob(encoded)

    def posterior(self, encoded: Tensor, contexts: Tensor | None = None) -> DiagonalGaussian:
        """What encoded events ``(n, D)`` say about their latent numbers: means and log-sds ``(n, sum(latent))``.

        The levels stand side by side, from the one next to the event upwards; each is given the means of those above.

        Args:
            encoded: the first result of `encode`.
            contexts: *scaled* contexts, ``context_scaling(x)``.
        """
        rungs = self._infer(encoded, self._embedded(contexts), None)
        means, log_sds = zip(*(rung.posterior for rung in rungs), strict=True)
        return DiagonalGaussian(torch.cat(means, -1), torch.cat(log_sds, -1))

    def decode(self, latent: Tensor, contexts: Tensor | None = None) -> DiagonalGaussian | Hurdles:
        """The distribution of encoded events given the lowest latent level ``(n, latent[0])`` and scaled contexts."""
        return self._decode(latent, self._embedded(contexts))

    def reconstruct(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """The mean ``(n, D)`` of the decoder at the mean of the posterior, both in the space of `encode`."""
        summary = self._embedded(contexts)
        return self._decode(self._infer(encoded, summary, None)[0].point, summary).mean

    @torch.no_grad()
    def importance_log_prob(
        self, x: Tensor, context: Tensor | None = None, n: int = 100, *, seed: int | None = None
    ) -> Tensor:
        """Estimate the log-density in nats from n latent points for each event, float64.

        Its expectation is a lower bound of the log-density and grows with n towards it.

        Args:
            x: ``(*batch, D)``.
            context: ``(*batch, *context_shape)``, or one context for all.
            n: latent points for each event.
            seed: of those points.

        Returns:
            ``(*batch,)``, minus infinity outside the support.

        Raises:
            ShapeError: the shapes do not fit.
            NonFiniteError: x or the context holds NaN or infinity.
        """
        count = positive_integer(n, "n")
        with seeded(seed, self.device):
            return evaluated(self, x, context, lambda encoded, summary: self._importance(encoded, summary, count))

    def _importance(self, encoded: Tensor, summary: Tensor | None, n: int) -> Tensor:
        parts, size = [], max(1, _ROWS_AT_ONCE // n)
        for start in range(0, max(len(encoded), 1), size):
            part = slice(start, start + size)
            given = rows_of(summary, part)
            if given is not None and len(given) > 1:
                given = given.repeat_interleave(n, 0)
            log_weights = self._log_weights(encoded[part].repeat_interleave(n, 0), given)
            parts.append(log_weights.double().reshape(-1, n).logsumexp(-1) - math.log(n))
        return torch.cat(parts)

    def _log_weights(self, encoded: Tensor, summary: Tensor | None) -> Tensor:
        """The log-weight ln p(x, z|c) - ln q(z|x, c) at one point z of the posterior for each row: ``(n,)``."""
        rungs = self._infer(encoded, summary, self._noise(len(encoded)))
        total = self.top.log_prob(rungs[-1].point, summary) + self._decode(rungs[0].point, summary).log_prob(encoded)
        for rung in rungs:
            total = total - rung.posterior.log_prob(rung.point)
            if rung.prior is not None:
                total = total + rung.prior.log_prob(rung.point)
        return total

    def _infer(self, encoded: Tensor, summary: Tensor | None, noise: Tensor | None) -> list[_Rung]:
        """The ladder of each event from the lowest level upwards, at the means where there is no noise."""
        encoded = self.decoder.seen(encoded) if isinstance(self.decoder, HurdleNetwork) else encoded
        rungs: list[_Rung] = []
        each = [None] * len(self.latent) if noise is None else noise.split(self.latent, -1)
        for level in reversed(range(len(self.latent))):
            posterior, prior = self.encoders[level](encoded, summary), None
            if rungs:
                prior = self.priors[level](rungs[0].point, summary)
                posterior = posterior.times(prior)
            mine = each[level]
            rungs.insert(0, _Rung(posterior.mean if mine is None else posterior.draw(mine), posterior, prior))
        return rungs

    def _decode(self, latent: Tensor, summary: Tensor | None) -> DiagonalGaussian | Hurdles:
        given: DiagonalGaussian | Hurdles = self.decoder(latent, summary)
        if self.raw_noise is None or isinstance(given, Hurdles):
            return given
        return DiagonalGaussian(given.mean, bounded(self.raw_noise))

    def _generate(self, n: int, summary: Tensor | None) -> Tensor:
        latent, size = self._noise(n), rows_at_once(self.device)
        # All at once, since a flow as the prior has native code that is worth its compilation for many rows only.
        top = self.top.from_noise(latent[:, -self.latent[-1] :], summary)
        last = latent.new_empty(min(n, size), self._decoder_noise)
        events = latent.new_empty(n, *self.event_shape)
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            lower, noise = latent[part, : -self.latent[-1]], last[: part.stop - part.start].normal_()
            events[part] = self._descend(top[part], lower, noise, rows_of(summary, part))
        return events

    @property
    def _decoder_noise(self) -> int:
        return self.event_shape[0] * (2 if isinstance(self.decoder, HurdleNetwork) else 1)

    @property
    def noise_features(self) -> int:
        """Those of all latent levels, and what the decoder needs: one for each number, or two where it has a hurdle."""
        return sum(self.latent) + self._decoder_noise

    def _from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        lower, top, last = noise.split([sum(self.latent[:-1]), self.latent[-1], self._decoder_noise], -1)
        return self._descend(self.top.from_noise(top, summary), lower, last, summary)

    def _descend(self, point: Tensor, lower: Tensor, last: Tensor, summary: Tensor | None) -> Tensor:
        """Events from points of the highest level, and the noise of the lower levels and of the decoder."""
        for network, each in zip(reversed(self.priors), reversed(lower.split(self.latent[:-1], -1)), strict=True):
            point = network(point, summary).draw(each)
        if isinstance(self.decoder, HurdleNetwork):
            return self.decoder.draw(point, summary, last)
        return self._decode(point, summary).draw(last)

    def _noise(self, rows: int) -> Tensor:
        """Standard normal noise ``(rows, sum(latent))`` on the current random stream."""
        like = self.event_scaling.mean
        return torch.randn(rows, sum(self.latent), device=like.device, dtype=like.dtype)

    def _beta(self) -> Tensor | float:
        """The weight of the divergence now; a step of training is counted."""
        if not (self.training and self.warmup_steps):
            return self.beta
        share = (self.steps / self.warmup_steps).clamp(max=1.0)
        if torch.is_grad_enabled():
            self.steps += 1
        return self.beta * share

    def _set_noise(self, noise: float | None, decoder: str, dims: int) -> None:
        """Begin with a decoder of little noise; its standard deviation may be given, or learned."""
        if decoder != "gaussian":
            if decoder == "learned-variance":
                nn.init.constant_(self.decoder.network.last.bias[dims:], _FIRST_LOG_NOISE)
            if noise is not None:
                raise UsageError(f"noise: expected None where the decoder learns it for each output, got {noise!r}")
            self.raw_noise = None
            return
        if noise is None:
            self.raw_noise = nn.Parameter(torch.tensor(_FIRST_LOG_NOISE))
            return
        if not math.exp(-6) <= noise <= math.exp(6):
            raise UsageError(f"noise: expected a number from {math.exp(-6):.2g} to {math.exp(6):.2g}, got {noise!r}")
        self.register_buffer("raw_noise", _raw(noise))


def _raw(noise: float) -> Tensor:
    """What `bounded` takes to the logarithm of this standard deviation."""
    unit = float(bounded(torch.tensor(1e6)))
    return torch.tensor(unit * math.atanh(math.log(noise) / unit))


def _prior_width(chosen: int | None, hidden_features: int) -> int:
    return min(hidden_features, _WIDEST_PRIOR) if chosen is None else positive_integer(chosen, "prior_features")


def _levels(latent: int | Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(latent) if isinstance(latent, list | tuple) else (latent,)
    if not sizes:
        raise UsageError("latent: expected at least one level, got none")
    return tuple(positive_integer(size, "latent") for size in sizes)
