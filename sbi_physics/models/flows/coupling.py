"""Coupling layers: one half of the dimensions is transformed by splines that the other half and the context choose.

The halves are slices, so that splitting and joining are views and one concatenation; mixing between layers is the
task of the linear layers in between (`LULinear`).
"""

import torch
from nflows.transforms.base import Transform
from torch import Tensor

from sbi_physics.models.flows.conditioner import coupling_net, residual_net
from sbi_physics.models.flows.spline import rational_quadratic_spline, spline_parameters

__all__ = ["SplineCoupling"]


class SplineCoupling(Transform):
    """A rational-quadratic spline coupling layer (Durkan et al. 2019, arXiv:1906.04032).

    Args:
        features: D; with D = 1 the spline depends on the context alone.
        context_features: width of the context, or None.
        hidden_features: width of the residual conditioner.
        blocks: residual blocks of the conditioner.
        bins: bins of each spline.
        tail_bound: the splines act on [-tail_bound, tail_bound].
    """

    def __init__(
        self,
        features: int,
        context_features: int | None,
        *,
        hidden_features: int,
        blocks: int,
        bins: int,
        tail_bound: float,
    ) -> None:
        super().__init__()
        self.kept = features // 2
        self.bins, self.tail_bound = bins, tail_bound
        outputs = (features - self.kept) * spline_parameters(bins)
        self.conditioner = coupling_net(max(self.kept, 1), outputs, context_features, hidden_features, blocks)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise: ``(n, D)`` and contexts ``(n, C)`` or ``(1, C)`` give ``(n, D)`` and the log-determinant."""
        return self._apply_splines(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data, with the log-determinant of that direction."""
        return self._apply_splines(inputs, context, inverse=True)

    def _apply_splines(self, inputs: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        kept, moved = inputs[:, : self.kept], inputs[:, self.kept :]
        seen = kept if self.kept else torch.zeros_like(inputs)
        parameters = (
            residual_net(self.conditioner, seen, context).to(inputs).view(*moved.shape, spline_parameters(self.bins))
        )
        moved, log_derivative = rational_quadratic_spline(
            moved, parameters, bins=self.bins, tail_bound=self.tail_bound, inverse=inverse
        )
        return torch.cat([kept, moved], dim=1), log_derivative.sum(1)
