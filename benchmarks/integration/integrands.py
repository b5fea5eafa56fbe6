r"""The integrands on the unit cube by which i-flow was measured (Gao, Isaacson and Krause 2020, arXiv:2001.05486).

With $\alpha = 0.2$ and d dimensions,

$$ f_\mathrm{Gauss} = (\alpha \sqrt\pi)^{-d} e^{-\sum_i (x_i - 1/2)^2 / \alpha^2}, \quad
   I = \mathrm{erf}\Big(\frac{1}{2 \alpha}\Big)^d; \qquad
   f_\mathrm{polynomial} = \sum_i (x_i - x_i^2), \quad I = \frac{d}{6}; $$

and the camel is the mean of two such Gaussians, about 1/3 and about 2/3 in all dimensions, with
$I = \big(\tfrac12 \mathrm{erf}\tfrac{1}{3\alpha} + \tfrac12 \mathrm{erf}\tfrac{2}{3\alpha}\big)^d$.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Problem"]

_ALPHA = 0.2
_PLACES = {"gauss": (1 / 2,), "camel": (1 / 3, 2 / 3)}


@dataclass(frozen=True)
class Problem:
    """An integrand whose integral is known.

    Args:
        kind: which of the three.
        dims: d.
    """

    kind: Literal["gauss", "camel", "polynomial"]
    dims: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.dims}d"

    @property
    def exact(self) -> float:
        """The integral over the unit cube."""
        if self.kind == "polynomial":
            return self.dims / 6
        sides = [math.erf(distance / _ALPHA) for place in _PLACES[self.kind] for distance in (place, 1 - place)]
        return (sum(sides) / len(sides)) ** self.dims

    def __call__(self, x: Tensor) -> Tensor:
        """Values ``(n,)`` at points ``(n, dims)``."""
        if self.kind == "polynomial":
            return (x - x.square()).sum(-1)
        places = _PLACES[self.kind]
        humps = [torch.exp(-((x - place) / _ALPHA).square().sum(-1)) for place in places]
        return torch.stack(humps).mean(0) * (_ALPHA * math.sqrt(math.pi)) ** -self.dims
