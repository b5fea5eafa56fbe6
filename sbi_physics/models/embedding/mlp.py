"""`MLPEncoder`: a multilayer perceptron, for observations without structure."""

from collections.abc import Sequence

from torch import Tensor

from sbi_physics.models.embedding.encoder import Encoder, counts, shape_of
from sbi_physics.models.embedding.layers import perceptron
from sbi_physics.models.embedding.missing import with_indicators
from sbi_physics.models.scaling import Scaling, Standardise

__all__ = ["MLPEncoder"]


class MLPEncoder(Encoder):
    """A multilayer perceptron on the flat observation; each entry has an indicator of whether it is missing.

    Args:
        shape: of one observation, any; ``()`` for a single number.
        features: width of what comes out.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
    """

    def __init__(self, shape: Sequence[int], *, features: int = 32, hidden: int = 64, layers: int = 2) -> None:
        options = counts(features=features, hidden=hidden, layers=layers)
        super().__init__("mlp", shape_of(shape, "axes of at least 1 entry"), features, options)
        self.net = perceptron(2 * self.shape.numel(), hidden, self.features, layers)

    def scaling(self) -> Scaling:
        """One mean and scale for each entry."""
        return Standardise(self.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        return self.net(with_indicators(x.reshape(len(x), self.shape.numel()), 1))
