r"""`ModelClassifier`: which of M models made x, a network whose logits are log-evidences.

With $n_m$ simulations of each model the cross-entropy has its minimum where

$$ \mathrm{softmax}_m(h(x)) = \frac{n_m\,p(x|m)}{\sum_k n_k\,p(x|k)}, $$

so that $h_a - h_b - \ln(n_a/n_b)$ is the log of the Bayes factor, whatever the parameters of the models: they are
integrated over by having been drawn from their priors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.models.embedding.scaling import context_scaling_for
from sbi_physics.models.residual import ResidualNetwork

__all__ = ["ModelClassifier"]


class ModelClassifier(nn.Module):
    """A classifier of observations.

    Args:
        x_shape: the shape of one observation.
        models: M.
        embedding: a module from observations ``(n, *x_shape)`` to features ``(n, C)``; None flattens.
        width: C.
        hidden_features: width of the network.
        blocks: its residual blocks.

    Attributes:
        options: the last two by name, for those who build it again.
    """

    def __init__(
        self,
        x_shape: tuple[int, ...],
        models: int,
        embedding: nn.Module | None = None,
        width: int | None = None,
        *,
        hidden_features: int = 64,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.options = {"hidden_features": hidden_features, "blocks": blocks}
        shape = torch.Size(x_shape)
        self.scaling = context_scaling_for(shape, embedding)
        self.embedding = embedding if embedding is not None else nn.Flatten()
        features = shape.numel() if width is None else width
        self.network = ResidualNetwork(features, models, hidden_features=hidden_features, blocks=blocks)

    def loss(self, scaled: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy ``(n,)`` of *scaled* observations ``(n, *x_shape)`` and the indices of their models."""
        return F.cross_entropy(self.network(self.embedding(scaled)), label, reduction="none")

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, M)`` of observations ``(n, *x_shape)``."""
        return self.network(self.embedding(self.scaling(x)))
