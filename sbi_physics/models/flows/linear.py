"""Linear layers that mix the dimensions between the nonlinear ones.

`LULinear` is ``y = L U x + b`` with a unit lower and an upper triangular matrix (Oliva et al. 2018, arXiv:1801.09819),
solved with `torch.linalg.solve_triangular`; `Permutation` only reorders.
"""

import math

import torch
import torch.nn.functional as F
from nflows.transforms.base import Transform
from torch import Tensor, nn

__all__ = ["FixedLinear", "LULinear", "Permutation", "lu_factors", "multiply_out"]

_SMALLEST_DIAGONAL = 1e-3
# softplus(_UNIT_DIAGONAL) + _SMALLEST_DIAGONAL == 1, so that the map starts as the identity.
_UNIT_DIAGONAL = math.log(math.expm1(1.0 - _SMALLEST_DIAGONAL))


class LULinear(Transform):
    """An invertible linear map, the identity at the start up to a fixed permutation that the caller composes.

    Args:
        features: D.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.lower = nn.Parameter(torch.zeros(features, features))
        self.upper = nn.Parameter(torch.zeros(features, features))
        self.diagonal = nn.Parameter(torch.full((features,), _UNIT_DIAGONAL))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise: inputs ``(n, D)`` give outputs ``(n, D)`` and the log-determinant ``(n,)``."""
        # Not in half precision, where the networks may be: this moves the data themselves.
        with torch.autocast(inputs.device.type, enabled=False):
            lower, upper, ladj = lu_factors(self.lower, self.upper, self.diagonal)
            return F.linear(inputs, lower @ upper, self.bias), ladj.expand(len(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data, with the log-determinant of that direction."""
        lower, upper, ladj = lu_factors(self.lower, self.upper, self.diagonal)
        half = torch.linalg.solve_triangular(lower, (inputs - self.bias).T, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, half, upper=True).T, (-ladj).expand(len(inputs))


def lu_factors(lower: Tensor, upper: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The factors L and U ``(*, D, D)`` and ``ln |det L U|`` ``(*)`` from the parameters of an `LULinear`.

    Args:
        lower: ``(*, D, D)``, of which the part below the diagonal counts.
        upper: ``(*, D, D)``, of which the part above the diagonal counts.
        diagonal: ``(*, D)``, before the softplus.
    """
    diagonal = F.softplus(diagonal) + _SMALLEST_DIAGONAL
    identity = torch.eye(diagonal.shape[-1], dtype=diagonal.dtype, device=diagonal.device)
    return lower.tril(-1) + identity, upper.triu(1) + torch.diag_embed(diagonal), diagonal.log().sum(-1)


class FixedLinear(Transform):
    """What an `LULinear` is once it is trained: two matrices, each the inverse of the other.

    Args:
        trained: the layer.
    """

    matrix: Tensor
    inverse_matrix: Tensor
    bias: Tensor
    ladj: Tensor

    def __init__(self, trained: LULinear) -> None:
        super().__init__()
        wide = [value.detach().double() for value in (trained.lower, trained.upper, trained.diagonal)]
        lower, upper, ladj = lu_factors(*wide)
        matrix, like = lower @ upper, trained.bias.detach()
        self.register_buffer("matrix", matrix.to(like))
        self.register_buffer("inverse_matrix", torch.linalg.inv(matrix).to(like))
        self.register_buffer("bias", like.clone())
        self.register_buffer("ladj", ladj.to(like))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise: inputs ``(n, D)`` give outputs ``(n, D)`` and the log-determinant ``(n,)``."""
        return F.linear(inputs, self.matrix, self.bias), self.ladj.expand(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data, with the log-determinant of that direction."""
        return F.linear(inputs - self.bias, self.inverse_matrix), (-self.ladj).expand(inputs.shape[0])


def multiply_out(module: nn.Module) -> None:
    """Put a `FixedLinear` in place of each `LULinear` inside a module, where no triangular system can be solved."""
    for name, child in list(module.named_children()):
        if isinstance(child, LULinear):
            module.add_module(name, FixedLinear(child))
        else:
            multiply_out(child)


class Permutation(Transform):
    """A fixed order of the dimensions.

    Args:
        order: D integers; output i is input ``order[i]``.
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", torch.argsort(order))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reorder the columns of ``(n, D)``."""
        return inputs.index_select(1, self.order), inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Put the columns back."""
        return inputs.index_select(1, self.inverse_order), inputs.new_zeros(inputs.shape[0])
