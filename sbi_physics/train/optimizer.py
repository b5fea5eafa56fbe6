r"""The optimisers of the training loop: Muon for the matrices of a network with AdamW for the rest, or AdamW for all.

Muon replaces the momentum M of a weight matrix by its nearest semi-orthogonal matrix $U V^T$ (of $M = U S V^T$), so
that every direction of the matrix learns at the same rate (Jordan et al. 2024, kellerjordan.github.io/posts/muon); with
the factor $0.2\sqrt{\max(m, n)}$ an entry moves as far as under Adam (Liu et al. 2025, arXiv:2502.16982).  Matrices of
one shape are orthogonalised together, in one batch: flows consist of many small equal layers.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sbi_physics.train.flat import FlatParameters

__all__ = ["Muon", "make_optimizers"]

_MOMENTUM = 0.95
# Coefficients a, b, c of each iteration: step by step the odd quintic polynomial that is nearest to one on the interval
# where the singular values may lie, [0.01, 1] at first and [0.73, 1.27] at the end (Polar Express, Amsel et al. 2025,
# arXiv:2505.16932).
_QUINTICS = (
    (8.093373099723394, -23.62045400435802, 17.446170794046914),
    (3.636585614399225, -2.721926920057967, 0.5365463415943196),
    (2.661299521482151, -1.9771541458824455, 0.4526163686355036),
)
# Rounding may lift a singular value above one, where the polynomials grow.
_MARGIN = 1.02


def make_optimizers(
    name: str, parameters: FlatParameters, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """The optimisers that together update `parameters`, all with the same learning rate and weight decay.

    Args:
        name: ``"muon"`` or ``"adamw"``.
        parameters: of the model; Muon takes `FlatParameters.matrices`.
        learning_rate: of both.
        weight_decay: decoupled, of both.
    """
    optimizers: list[torch.optim.Optimizer] = []
    end = parameters.small if name == "muon" else len(parameters.values)
    on_device = parameters.values.is_cuda
    # On a GPU what changes from step to step is a tensor there, so that a step can be recorded.
    rate: Any = torch.tensor(learning_rate, device=parameters.values.device) if on_device else learning_rate
    if end:
        vector = _with_gradient(parameters.values[:end], parameters.gradients[:end])
        optimizers.append(
            torch.optim.AdamW([vector], rate, weight_decay=weight_decay, fused=True, capturable=on_device)
        )
    if end < len(parameters.values):
        matrices = [_with_gradient(*pair) for pair in parameters.matrices]
        optimizers.append(Muon(matrices, rate, weight_decay=weight_decay))
    return optimizers


def _with_gradient(values: Tensor, gradients: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(values)
    parameter.grad = gradients
    return parameter


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum.

    Args:
        parameters: matrices ``(*, m, n)``, each of the last two axes a matrix of its own.
        lr: learning rate, a number or a scalar tensor.
        weight_decay: decoupled.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float | Tensor, *, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        # Not part of the state: memory that every step uses again, because fresh pages cost as much as the products.
        self._scratch: dict[Tensor, _Scratch] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        if closure is not None:
            raise TypeError("closure: Muon takes none")
        for group in self.param_groups:
            for matrices in group["params"]:
                if matrices.grad is None:
                    continue
                if "momentum" not in self.state[matrices]:
                    self.state[matrices]["momentum"] = torch.zeros_like(matrices)
                if matrices not in self._scratch:
                    self._scratch[matrices] = _Scratch.like(matrices)
                momentum, scratch = self.state[matrices]["momentum"], self._scratch[matrices]
                momentum.lerp_(matrices.grad, 1 - _MOMENTUM)
                torch.lerp(matrices.grad, momentum, _MOMENTUM, out=scratch.given)
                direction = scratch.nearest_orthogonal()
                matrices.mul_(1 - group["lr"] * group["weight_decay"])
                matrices.add_(direction.mul_(-group["lr"] * 0.2 * max(matrices.shape[-2:]) ** 0.5))


class _Scratch(NamedTuple):
    """The memory of a Newton-Schulz iteration: matrices ``(k, m, n)`` with m <= n, and their Gram matrices."""

    given: Tensor  # as the parameter has them
    first: Tensor
    second: Tensor
    gram: Tensor
    polynomial: Tensor

    @classmethod
    def like(cls, matrices: Tensor) -> "_Scratch":
        short, long = sorted(matrices.shape[-2:])
        new, count = matrices.new_empty, matrices.shape[:-2].numel()
        wide, square = (count, short, long), (count, short, short)
        return cls(torch.empty_like(matrices), new(wide), new(wide), new(square), new(square))

    def nearest_orthogonal(self) -> Tensor:
        """Approximate U V^T of each of the given matrices U S V^T by polynomials, without a decomposition."""
        given, (x, other, gram, polynomial) = self.given, self[1:]
        tall = given.shape[-2] > given.shape[-1]
        x.copy_((given.mT if tall else given).reshape(x.shape))
        norms = torch.linalg.vector_norm(x.flatten(1), dim=1)[:, None, None]
        x.div_((_MARGIN * norms).clamp(min=1e-12))
        for a, b, c in _QUINTICS:
            torch.bmm(x, x.mT, out=gram)
            polynomial.copy_(gram).baddbmm_(gram, gram, beta=b, alpha=c)
            other.copy_(x).baddbmm_(polynomial, x, beta=a)
            x, other = other, x
        return (x.mT if tall else x).reshape(given.shape)


def nearest_orthogonal(matrices: Tensor) -> Tensor:
    """Approximate U V^T of each matrix U S V^T ``(*, m, n)`` (Newton-Schulz)."""
    scratch = _Scratch.like(matrices)
    scratch.given.copy_(matrices)
    return scratch.nearest_orthogonal()
