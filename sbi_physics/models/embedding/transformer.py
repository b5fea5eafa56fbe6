r"""`TransformerEncoder`: sets and series of samples that look at each other.

Each sample becomes a token; a token of our own, which is always there, collects the summary.  Blocks of attention with
normalisation before each part (Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745) let each
token look at all that are present.  What is read out is the collecting token and the mean of the others.

Without more the samples are a set: their order does not matter.  With a channel of time t each token gets
$\sin\omega_k t$ and $\cos\omega_k t$ at many frequencies, so that differences of time can be compared by products of
tokens; with positions each place in the observation has a learned vector.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.core.errors import UsageError
from sbi_physics.models.embedding.encoder import Encoder, channel_index, counts, flag, shape_of
from sbi_physics.models.embedding.layers import AFTER_SILU, linear
from sbi_physics.models.embedding.missing import masked_mean, rows
from sbi_physics.models.scaling import Scaling, Standardise

__all__ = ["AttentionBlock", "TransformerEncoder"]

_FREQUENCIES = 16
_SLOWEST = 0.5


class TransformerEncoder(Encoder):
    """Attention between the samples; rows of NaN are samples that are not there, and single NaN are missing channels.

    Args:
        shape: ``(T, C)``, at most T samples of C numbers each.
        features: width of what comes out.
        hidden: width of a token, a multiple of `heads`.
        layers: number of blocks.
        heads: number of attention heads.
        times: the channel that is time, or None; samples without it are absent, too.
        positions: whether the place of a sample in the observation matters.
    """

    frequencies: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        features: int = 32,
        hidden: int = 32,
        layers: int = 2,
        heads: int = 4,
        times: int | None = None,
        positions: bool = False,
    ) -> None:
        sizes = shape_of(shape, "(samples, channels)", 2)
        options: dict[str, Any] = counts(features=features, hidden=hidden, layers=layers, heads=heads)
        if hidden % heads:
            raise UsageError(f"hidden: expected a multiple of heads = {heads}, got {hidden}")
        self.times = channel_index(times, sizes[1], "times")
        options |= {"times": times, "positions": flag(positions, "positions")}
        super().__init__("transformer", sizes, features, options)
        inputs = 2 * sizes[1] + (2 * _FREQUENCIES if times is not None else 0)
        self.token = linear(inputs, hidden)
        self.summary = nn.Parameter(torch.randn(hidden))
        self.positions = nn.Parameter(torch.randn(sizes[0], hidden)) if positions else None
        self.blocks = nn.ModuleList(AttentionBlock(hidden, heads, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(2 * hidden)
        self.head = linear(2 * hidden + 1, self.features)
        # Scaled times have a spread of one: up to about a radian between neighbours.  Kept with the weights, because
        # they belong to what those have learned.
        fastest = max(float(sizes[0]), 2 * _SLOWEST)
        steps = torch.linspace(0.0, 1.0, _FREQUENCIES)
        self.register_buffer("frequencies", _SLOWEST * (fastest / _SLOWEST) ** steps)

    def scaling(self) -> Scaling:
        """One mean and scale for each channel, shared by the samples."""
        return Standardise(self.shape, shared=(0,))

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        values, missing, present = rows(x, self.times)
        channels = [values, missing]
        if self.times is not None:
            phase = values[..., self.times].unsqueeze(-1) * self.frequencies
            channels += [torch.sin(phase), torch.cos(phase)]
        tokens = self.token(torch.cat(channels, -1))
        if self.positions is not None:
            tokens = tokens + self.positions
        tokens = torch.cat([self.summary.expand(len(x), 1, -1), tokens], 1)
        seen = F.pad(present, (1, 0), value=True)[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, seen)
        summary = self.norm(torch.cat([tokens[:, 0], masked_mean(tokens[:, 1:], present)], -1))
        count = present.sum(1, keepdim=True).to(summary.dtype)
        return self.head(torch.cat([summary, torch.log1p(count)], -1))


class AttentionBlock(nn.Module):
    """Attention, then a perceptron for each token, both as changes to the tokens."""

    def __init__(self, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        # Of a scale that leaves the tokens at about one after all blocks.
        gain = (2 * layers) ** -0.5
        self.attend, self.mix = linear(hidden, 3 * hidden), linear(hidden, hidden, gain=gain)
        self.widen, self.narrow = linear(hidden, 2 * hidden), linear(2 * hidden, hidden, gain=gain * AFTER_SILU)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Tokens ``(n, T, hidden)`` look at those that `seen` ``(n, 1, 1, T)`` marks."""
        n, length, hidden = tokens.shape
        parts = self.attend(self.norms[0](tokens)).view(n, length, 3, self.heads, hidden // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        tokens = tokens + self.mix(found.transpose(1, 2).reshape(n, length, hidden))
        return tokens + self.narrow(F.silu(self.widen(self.norms[1](tokens))))
