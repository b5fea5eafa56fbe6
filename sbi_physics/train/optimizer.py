r"""The optimisers of the training loop: Muon for the matrices of a network with AdamW for the rest, or AdamW for all.

Muon replaces the momentum M of a weight matrix by its nearest semi-orthogonal matrix $U V^T$ (of $M = U S V^T$), so
that every direction of the matrix learns at the same rate (Jordan et al. 2024, kellerjordan.github.io/posts/muon); with
the factor $0.2\sqrt{\max(m, n)}$ an entry moves as far as under Adam (Liu et al. 2025, arXiv:2502.16982).  Matrices of
one shape are orthogonalised together, in one batch: flows consist of many small equal layers.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "make_optimizers"]

_MOMENTUM = 0.95
_SMALLEST_SIDE = 16
# Coefficients of the quintic iteration of Jordan et al.: singular values come within about 0.3 of one.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def make_optimizers(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """The optimisers that together update `parameters`, all with the same learning rate and weight decay.

    Args:
        name: ``"muon"`` or ``"adamw"``.
        parameters: of the model; vectors, tensors of more than two dimensions and matrices with a side below 16 go to
            AdamW in either case.
        learning_rate: of both.
        weight_decay: decoupled, of both.
    """
    everything = list(parameters)
    matrices = [p for p in everything if name == "muon" and p.ndim == 2 and min(p.shape) >= _SMALLEST_SIDE]
    chosen = {id(p) for p in matrices}
    rest = [p for p in everything if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, learning_rate, weight_decay=weight_decay))
    if rest:
        optimizers.append(torch.optim.AdamW(rest, learning_rate, weight_decay=weight_decay, fused=True))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, batched over matrices of equal shape.

    Args:
        parameters: matrices.
        lr: learning rate.
        weight_decay: decoupled.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, *, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        if closure is not None:
            raise TypeError("closure: Muon takes none")
        for group in self.param_groups:
            for parameters in _of_equal_shape(p for p in group["params"] if p.grad is not None):
                matrices: list[Tensor] = [p.detach() for p in parameters]
                gradients = [p.grad for p in parameters if p.grad is not None]
                momenta: list[Tensor] = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
                direction = torch.stack(gradients).lerp_(torch.stack(momenta), _MOMENTUM)
                length = 0.2 * max(direction.shape[1:]) ** 0.5
                update = nearest_orthogonal(direction).mul_(-group["lr"] * length)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(update.unbind(0)))


def nearest_orthogonal(matrices: Tensor) -> Tensor:
    """Approximate U V^T of each matrix U S V^T ``(*, m, n)`` by a Newton-Schulz iteration without a decomposition."""
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-12)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _of_equal_shape(matrices: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    def key(matrix: nn.Parameter) -> tuple[Any, ...]:
        return (tuple(matrix.shape), str(matrix.dtype), str(matrix.device))

    for _, group in groupby(sorted(matrices, key=key), key):
        yield list(group)
