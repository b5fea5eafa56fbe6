"""The scaling of contexts that suits what they go through next."""

import torch
from torch import nn

from sbi_physics.models.embedding.encoder import Encoder
from sbi_physics.models.embedding.residual import MOST_WHITENED
from sbi_physics.models.scaling import Scaling, Standardise, Whiten

__all__ = ["context_scaling_for"]


def context_scaling_for(shape: torch.Size, embedding: nn.Module | None) -> Scaling:
    """An untrained scaling for contexts of a shape, given the network that sees them next."""
    if isinstance(embedding, Encoder):
        return embedding.scaling()
    # A network may live on the structure of the context (neighbouring bins, images): leave it that.
    flat = embedding is None and shape.numel() <= MOST_WHITENED
    return Whiten(shape) if flat else Standardise(shape)
