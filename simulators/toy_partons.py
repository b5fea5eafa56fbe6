r"""A toy set of parton densities of the proton, at no scale in particular, that obeys the sum rules.

$$ x u_v = N_u\, x^{1/2} (1 - x)^3, \quad x d_v = N_d\, x^{1/2} (1 - x)^4, \quad
   x \bar q = N_{\bar q}\, x^{-0.2} (1 - x)^7, \quad x g = N_g\, x^{-0.2} (1 - x)^5, $$

with as many valence quarks as the proton has, int u_v = 2 and int d_v = 1, a sea with u-bar = d-bar = 2 s-bar and
s = s-bar that carries 15 % of the momentum, and gluons that carry what is left, so that all momenta sum to one.  The
powers are near those of counting rules (Brodsky and Farrar 1973, Phys. Rev. Lett. 31, 1153).  The set stands in for a
fit to data, and no number that comes of it is a prediction.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ToyPartons"]

_RISE, _SEA_FALL, _GLUON_FALL = -0.2, 7.0, 5.0
_SEA_MOMENTUM = 0.15
_SEA_SHARES = {"u": 0.2, "d": 0.2, "s": 0.1}


def _beta(a: float, b: float) -> float:
    return math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))


@dataclass(frozen=True)
class ToyPartons:
    """Densities of partons in x."""

    def quark(self, flavour: str, x: Tensor) -> Tensor:
        """The x q(x) of "u", "d" or "s" at x ``(n,)`` in (0, 1): ``(n,)``."""
        return self.antiquark(flavour, x) + self.valence(flavour, x)

    def valence(self, flavour: str, x: Tensor) -> Tensor:
        """The x (q - q-bar) of "u", "d" or "s": ``(n,)``."""
        if flavour == "s":
            return torch.zeros_like(x)
        number, fall = (2.0, 3.0) if flavour == "u" else (1.0, 4.0)
        return number / _beta(0.5, fall + 1) * torch.sqrt(x) * (1 - x) ** fall

    def antiquark(self, flavour: str, x: Tensor) -> Tensor:
        """The x q-bar(x) of "u", "d" or "s": ``(n,)``."""
        share = _SEA_MOMENTUM * _SEA_SHARES[flavour]
        return share / _beta(_RISE + 1, _SEA_FALL + 1) * x**_RISE * (1 - x) ** _SEA_FALL

    def gluon(self, x: Tensor) -> Tensor:
        """The x g(x): ``(n,)``."""
        valence = 2 * _beta(1.5, 4) / _beta(0.5, 4) + _beta(1.5, 5) / _beta(0.5, 5)
        share = 1 - valence - _SEA_MOMENTUM
        return share / _beta(_RISE + 1, _GLUON_FALL + 1) * x**_RISE * (1 - x) ** _GLUON_FALL
