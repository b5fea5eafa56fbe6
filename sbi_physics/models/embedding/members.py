r"""`MembersEncoder`: observations of several members of a kind, each with a series or numbers of its own.

The pulsars of a timing array, the detectors of a network: all are read by one encoder, each is then told which member
it was, and they look at each other, as parts of one signal do (blocks of attention, see `transformer`).  Unlike those
of a set, members have names: what comes out keeps a place for each, so that parameters of single members can be read
from it.  A member of which nothing is there is left out, and its place is empty: one trained network serves
observations with members missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import UsageError
from sbi_physics.models.embedding.encoder import Encoder, counts, shape_of
from sbi_physics.models.embedding.layers import linear, perceptron
from sbi_physics.models.embedding.missing import masked_mean
from sbi_physics.models.embedding.registry import build_single
from sbi_physics.models.embedding.transformer import AttentionBlock
from sbi_physics.models.scaling import Scaling, Standardise

__all__ = ["MembersEncoder"]


class MembersEncoder(Encoder):
    """One encoder for each member, attention between them, and a place for each in what comes out.

    Args:
        shape: ``(S, *member_shape)``, S members; a member that is all NaN is absent.
        member: encoder of one member, of ``member_shape``, that takes missing entries: its kind or its description
            (`build_encoder`).
        features: width of what comes out.
        each: width that each member has in what goes to the last layer.
        hidden: width of the token of a member, a multiple of `heads`.
        layers: blocks of attention; 0 for members that do not look at each other before the last layer.
        heads: number of attention heads.
    """

    def __init__(
        self,
        shape: Sequence[int],
        member: str | Mapping[str, Any] = "mlp",
        *,
        features: int = 64,
        each: int = 16,
        hidden: int = 64,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        sizes = shape_of(shape, "(members, *axes of a member)")
        if len(sizes) < 2:
            raise UsageError(f"shape: expected members and the axes of each, got {tuple(sizes)}")
        options: dict[str, Any] = counts(features=features, each=each, hidden=hidden, heads=heads)
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 0:
            raise UsageError(f"layers: expected an integer of at least 0, got {layers!r}")
        if hidden % heads:
            raise UsageError(f"hidden: expected a multiple of heads = {heads}, got {hidden}")
        reader = build_single(member, sizes[1:])
        if not reader.accepts_missing:
            raise UsageError(f"member: expected an encoder that takes missing entries, {reader.kind!r} does not")
        options |= {"layers": layers, "member": reader.describe()}
        super().__init__("members", sizes, features, options)
        self.reader = reader
        self.labels = nn.Parameter(torch.randn(sizes[0], hidden) / 2)
        self.token = linear(reader.features, hidden)
        self.first = perceptron(hidden, 2 * hidden, hidden, 1)
        self.blocks = nn.ModuleList(AttentionBlock(hidden, heads, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.place = linear(hidden, each)
        self.head = perceptron(sizes[0] * (each + 1) + hidden, 2 * features, features, 1)

    def scaling(self) -> Scaling:
        """One mean and scale for each entry of a member, shared by the members."""
        inner = self.reader.scaling()
        alike = tuple(axis + 1 for axis in inner.shared) if isinstance(inner, Standardise) else ()
        return Standardise(self.shape, shared=(0, *alike))

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        n, members = len(x), self.shape[0]
        present = ~torch.isnan(x.flatten(2)).all(2)
        found = self.token(self.reader(x.flatten(0, 1)))
        tokens = found.view(n, members, found.shape[-1]) + self.labels
        tokens = tokens + self.first(tokens)
        seen = present[:, None, None]
        # Attention over no member at all would be NaN: those see themselves, and count for nothing.
        seen = seen | ~present.any(1).view(-1, 1, 1, 1)
        for block in self.blocks:
            tokens = block(tokens, seen)
        tokens, here = self.norm(tokens), present.unsqueeze(-1).to(x.dtype)
        places = torch.cat([self.place(tokens) * here, here], -1).flatten(1)
        return self.head(torch.cat([places, masked_mean(tokens, present)], -1))
