r"""`DeepSetEncoder`: observations that are sets of independent measurements.

$$ s(\{x_1, \dots, x_m\}) = \rho\Big(\frac1m \sum_i \phi(x_i),\; \ln(1 + m)\Big) $$

with two perceptrons phi and rho: any function of a set that does not depend on its order can be written so (Zaheer et
al. 2017, arXiv:1703.06114).  The mean keeps the scale whatever m is; m itself is passed on beside it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sbi_physics.models.embedding.encoder import Encoder, counts, shape_of
from sbi_physics.models.embedding.layers import perceptron
from sbi_physics.models.embedding.missing import masked_mean, rows
from sbi_physics.models.scaling import Scaling, Standardise

__all__ = ["DeepSetEncoder"]


class DeepSetEncoder(Encoder):
    """A mean over the points of a set; rows of NaN are points that are not there.

    Args:
        shape: ``(M, C)``, at most M points of C numbers each.
        features: width of what comes out.
        hidden: width of both perceptrons.
        layers: number of hidden layers of each.
    """

    def __init__(self, shape: Sequence[int], *, features: int = 32, hidden: int = 64, layers: int = 2) -> None:
        options = counts(features=features, hidden=hidden, layers=layers)
        super().__init__("deep-set", shape_of(shape, "(points, channels)", 2), features, options)
        self.point = perceptron(2 * self.shape[1], hidden, hidden, layers)
        self.whole = perceptron(hidden + 1, hidden, self.features, layers)

    def scaling(self) -> Scaling:
        """One mean and scale for each channel, shared by the points."""
        return Standardise(self.shape, shared=(0,))

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        values, missing, present = rows(x)
        mean = masked_mean(self.point(torch.cat([values, missing], -1)), present)
        count = present.sum(1, keepdim=True).to(mean.dtype)
        return self.whole(torch.cat([mean, torch.log1p(count)], -1))
