r"""`SuccessProbability`: p(success | theta), the probability that a simulation at theta does not fail.

A density fitted to the simulations that succeeded is p(x | theta, success); the likelihood of data that were measured,
and so did not fail, is that times p(success | theta).  Leaving the factor out draws the posterior towards where
simulations fail (Glaser et al. 2022, arXiv:2210.14756).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.models.residual import ResidualNetwork
from sbi_physics.models.scaling import ParameterScaling

__all__ = ["SuccessProbability"]


class SuccessProbability(nn.Module):
    """A classifier of parameters.

    Args:
        bounds: ``(P, 2)`` of the parameters.
    """

    def __init__(self, bounds: Tensor) -> None:
        super().__init__()
        self.scaling = ParameterScaling(bounds)
        self.network = ResidualNetwork(len(bounds), 1, hidden_features=64, blocks=2)

    def fit_scaling(self, theta: Tensor) -> "SuccessProbability":
        """Learn the scaling from theta ``(n, P)``."""
        self.scaling.fit(theta)
        return self

    def loss(self, theta: Tensor, success: Tensor) -> Tensor:
        """The cross-entropy of each event ``(n,)``, given theta ``(n, P)`` and success, 0 or 1, ``(n,)``."""
        return F.binary_cross_entropy_with_logits(self._logit(theta), success, reduction="none")

    def log_prob(self, theta: Tensor) -> Tensor:
        """Ln p(success | theta) of theta ``(*, P)``: ``(*,)``."""
        return F.logsigmoid(self._logit(theta))

    def _logit(self, theta: Tensor) -> Tensor:
        return self.network(self.scaling(theta)).squeeze(-1)
