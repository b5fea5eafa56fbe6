"""The trainable parameters of a model as one vector while it is trained.

A flow has a hundred small parameters; clipping, averaging and updating them one by one costs more than the gradient.
Here each parameter and its gradient become views of two long vectors, matrices of equal shape side by side, so that
each of those tasks is one operation.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FlatParameters"]

_SMALLEST_SIDE = 16


class FlatParameters:
    """Parameters of one type on one device, laid out in one vector until `release`.

    Args:
        parameters: of the model; from now on they are views, and so are their gradients.

    Attributes:
        values: all values ``(P,)``.
        gradients: their gradients ``(P,)``.
        matrices: values and gradients ``(k, m, n)`` of the k matrices of each shape with both sides of at least 16.
        small: how many of the first values belong to all other parameters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = sorted(parameters, key=_place)
        self.values = torch.cat([p.detach().flatten() for p in self._parameters])
        self.gradients = torch.zeros_like(self.values)
        self.matrices: list[tuple[Tensor, Tensor]] = []
        self.small = start = 0
        for (large, *shape), group in groupby(self._parameters, key=_place):
            members = list(group)
            end = start + sum(p.numel() for p in members)
            parts = [vector[start:end].view(len(members), *shape) for vector in (self.values, self.gradients)]
            for p, value, gradient in zip(members, *parts, strict=True):
                p.data, p.grad = value, gradient
            if large:
                self.matrices.append((parts[0], parts[1]))
            else:
                self.small = end
            start = end

    @classmethod
    def of(cls, model: nn.Module) -> "list[FlatParameters]":
        """The trainable parameters of a model, one vector for each type and device (mostly there is one)."""

        def kind(parameter: nn.Parameter) -> tuple[str, str]:
            return str(parameter.device), str(parameter.dtype)

        trainable = sorted((p for p in model.parameters() if p.requires_grad), key=kind)
        return [cls(group) for _, group in groupby(trainable, key=kind)]

    def release(self) -> None:
        """Give each parameter and its gradient their own memory again."""
        for p in self._parameters:
            gradient = None if p.grad is None else p.grad.clone()
            p.data, p.grad = p.detach().clone(), gradient


def _place(parameter: nn.Parameter) -> tuple[Any, ...]:
    return (parameter.ndim == 2 and min(parameter.shape) >= _SMALLEST_SIDE, *parameter.shape)
