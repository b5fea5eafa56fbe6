r"""`MixtureDensity`: a mixture of K Gaussians whose weights, means and covariances depend on the context.

A residual network reads the context and gives for each component k a logit, a mean m_k and a lower triangular factor
U_k of the precision, $\Sigma_k^{-1} = U_k^T U_k$, so that

$$ q(z|c) = \sum_k \pi_k \frac{\det U_k}{(2\pi)^{D/2}} \exp\Big( -\tfrac12 |U_k (z - m_k)|^2 \Big) $$

(mixture density network: Bishop 1994, Neural Computing Research Group report NCRG/94/004; full covariances: Williams
1996, doi:10.1162/neco.1996.8.4.843).  Densities and draws are exact, and cheap.  Without a context the numbers
themselves are the parameters; `expectation_maximisation.fit_mixture` finds them without gradients.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import positive_integer
from sbi_physics.models.density import ConditionalDensity
from sbi_physics.models.generator import rows_of
from sbi_physics.models.pushforward import PushforwardGenerator, uniform
from sbi_physics.models.repeat import repeat
from sbi_physics.models.residual import ResidualNetwork

__all__ = ["LARGEST_LOG_FACTOR", "Components", "MixtureDensity"]

_ROWS_AT_ONCE = 1 << 14
# The width of a component stays within exp(-10) ... exp(10): one that closes in on a single event cannot win.
LARGEST_LOG_FACTOR = 10.0


class Components(NamedTuple):
    """The Gaussians of n mixtures, where n is one for a mixture that is the same for all events.

    Attributes:
        logits: of the weights, ``(n, K)``.
        means: ``(n, K, D)``.
        lower: what is below the diagonal of the factors of the precisions, ``(n, K, D, D)``, zero elsewhere.
        log_diagonal: logarithms of the diagonals of the factors, ``(n, K, D)``.
    """

    logits: Tensor
    means: Tensor
    lower: Tensor
    log_diagonal: Tensor

    @property
    def factors(self) -> Tensor:
        """U ``(n, K, D, D)``."""
        return self.lower + torch.diag_embed(self.log_diagonal.exp())

    def log_joint(self, events: Tensor) -> Tensor:
        """Log-density of each event ``(n, D)`` together with its component: ``(n, K)``."""
        white = torch.einsum("nkij,nkj->nki", self.factors, events.unsqueeze(-2) - self.means)
        constant = 0.5 * events.shape[-1] * math.log(2 * math.pi)
        log_normal = self.log_diagonal.sum(-1) - 0.5 * white.square().sum(-1) - constant
        return self.logits.log_softmax(-1) + log_normal

    def draw(self, n: int) -> Tensor:
        """Draw one event for each row, or n where there is one row: ``(n, D)``."""
        share = torch.rand(n, 1, device=self.means.device, dtype=self.means.dtype)
        noise = torch.randn(n, self.means.shape[-1], device=self.means.device, dtype=self.means.dtype)
        # Of the weights up to the last but one: whatever their rounding, the component is one of the K.
        chosen = (share > self.logits.softmax(-1).cumsum(-1)[:, :-1]).sum(-1)
        rows = torch.arange(n, device=chosen.device) if len(self.means) > 1 else torch.zeros_like(chosen)
        step = torch.linalg.solve_triangular(self.factors[rows, chosen], noise.unsqueeze(-1), upper=False)
        return self.means[rows, chosen] + step.squeeze(-1)

    def from_noise(self, noise: Tensor) -> Tensor:
        """The events ``(n, D)`` that standard normal noise ``(n, D + 1)`` stands for; the last says the component."""
        white, n, dims = noise[:, :-1], noise.shape[0], self.means.shape[-1]
        chosen = (uniform(noise[:, -1:]) > self.logits.softmax(-1).cumsum(-1)[:, :-1]).sum(-1).reshape(n, 1, 1)
        place = chosen.expand(n, 1, dims)
        mean, log_diagonal = (t.expand(n, -1, -1).gather(1, place)[:, 0] for t in (self.means, self.log_diagonal))
        lower = self.lower.expand(n, -1, -1, -1).gather(1, chosen.unsqueeze(-1).expand(n, 1, dims, dims))[:, 0]
        scale = torch.exp(-log_diagonal)

        def substitute(step: Tensor, _: Tensor) -> Tensor:
            return scale * (white - (lower @ step.unsqueeze(-1)).squeeze(-1))

        # Row i is solved after pass i.
        return mean + repeat(substitute, torch.zeros_like(white), torch.arange(dims, device=noise.device))


class MixtureDensity(ConditionalDensity, PushforwardGenerator):
    """A mixture density network; satisfies `Density`.

    Args:
        event_shape: ``(D,)``.
        context_shape: the shape of one context; None for an unconditional density.
        context_features: C, what the embedding gives; None for the size of a flat context.
        bounds: ``(D, 2)`` support of the event; None for the whole real space.
        embedding: a module from contexts ``(n, *context_shape)`` to features ``(n, C)``; None flattens the context.
        components: K.
        hidden_features: width of the network.
        blocks: its residual blocks.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context_shape: tuple[int, ...] | None = None,
        *,
        context_features: int | None = None,
        bounds: Tensor | None = None,
        embedding: nn.Module | None = None,
        components: int = 10,
        hidden_features: int = 64,
        blocks: int = 2,
    ) -> None:
        super().__init__(event_shape, context_shape, bounds=bounds, embedding=embedding)
        dims = event_shape[0]
        self.components = positive_integer(components, "components")
        self._sizes = [1, dims, dims, dims * (dims - 1) // 2]
        # Means that differ, or the components would stay equal for ever.
        start = torch.cat([torch.zeros(components, 1), torch.randn(components, dims)], 1)
        self.base = nn.Parameter(torch.cat([start, torch.zeros(components, sum(self._sizes[2:]))], 1))
        self.network = None
        if self.conditional:
            width = self.context_shape.numel() if context_features is None else context_features
            self.network = ResidualNetwork(width, self.base.numel(), hidden_features=hidden_features, blocks=blocks)

    def loss(self, encoded: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Minus the log-density of encoded events in their own space: ``(n,)``."""
        return -self._given(self._embedded(contexts)).log_joint(encoded).logsumexp(-1)

    @torch.no_grad()
    def set_components(self, components: Components) -> "MixtureDensity":
        """Take over an unconditional mixture of standardised unbounded events, its tensors of one row."""
        dims = self.event_shape[0]
        rows, columns = torch.tril_indices(dims, dims, -1)
        bounded = (components.log_diagonal[0] / LARGEST_LOG_FACTOR).clamp(-0.999999, 0.999999)
        diagonal = LARGEST_LOG_FACTOR * torch.atanh(bounded)
        parts = [components.logits[0, :, None], components.means[0], diagonal, components.lower[0, :, rows, columns]]
        self.base.copy_(torch.cat(parts, 1))
        return self

    def _given(self, summary: Tensor | None) -> Components:
        """The mixture for each summary ``(n, C)``."""
        dims = self.event_shape[0]
        raw = self.base.unsqueeze(0)
        if self.network is not None:
            raw = raw + self.network(summary).unflatten(-1, self.base.shape)
        logits, means, diagonal, below = raw.split(self._sizes, -1)
        rows, columns = torch.tril_indices(dims, dims, -1, device=raw.device)
        lower = raw.new_zeros(*raw.shape[:2], dims, dims)
        lower[:, :, rows, columns] = below
        log_diagonal = LARGEST_LOG_FACTOR * torch.tanh(diagonal / LARGEST_LOG_FACTOR)
        return Components(logits.squeeze(-1), means, lower, log_diagonal)

    @property
    def noise_features(self) -> int:
        """D, and one that says the component."""
        return self.event_shape[0] + 1

    def _from_noise(self, noise: Tensor, summary: Tensor | None) -> Tensor:
        return self._given(summary).from_noise(noise)

    def _log_prob(self, encoded: Tensor, summary: Tensor | None) -> Tensor:
        parts = []
        for start in range(0, max(len(encoded), 1), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            parts.append(self._given(rows_of(summary, part)).log_joint(encoded[part]).logsumexp(-1))
        return torch.cat(parts)

    def _draw(self, n: int, summary: Tensor | None, *, densities: bool) -> tuple[Tensor, Tensor | None]:
        parts = []
        for start in range(0, n, _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, n))
            parts.append(self._given(rows_of(summary, part)).draw(part.stop - part.start))
        events = torch.cat(parts)
        return events, self._log_prob(events, summary) if densities else None
