r"""Flows of zuko as flows of nflows, so that everything here that takes the latter takes the former.

A flow of zuko gives for each context c a bijection f from events to noise and a base distribution; one of nflows is a
transform that is called with events and contexts, and a base.  For a standard normal base, which all flows of zuko but
the circular one have, the adaptor is f itself:

$$ \log p(x | c) = \log N(f(x; c)) + \log |\det \partial f / \partial x|. $$

zuko is never imported here: whoever has one of its flows has imported it.
"""

import sys
from typing import Any

import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.transforms.base import Transform
from torch import Tensor, nn

from sbi_physics.core.errors import UsageError

__all__ = ["ZukoTransform", "as_flow"]


class ZukoTransform(Transform):
    """The bijection of a flow of zuko, from events to noise.

    Args:
        transform: a `zuko.lazy.LazyTransform` over D features.
    """

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise ``(n, D)`` of events ``(n, D)`` given contexts ``(n, C)`` or None, and log-determinants ``(n,)``."""
        return _summed(*self.transform(context).call_and_ladj(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Events ``(n, D)`` of noise ``(n, D)`` given contexts ``(n, C)`` or None, and log-determinants ``(n,)``."""
        return _summed(*self.transform(context).inv.call_and_ladj(inputs))


def as_flow(flow: Any) -> Any:
    """A flow of zuko as one of nflows, which shares its weights; anything else as it is.

    Raises:
        UsageError: the base of a flow of zuko is not the standard normal distribution.
    """
    zuko = sys.modules.get("zuko.lazy")
    if zuko is None or not isinstance(flow, zuko.Flow):
        return flow
    return Flow(ZukoTransform(flow.transform), StandardNormal([_features(flow.base)]))


def _features(base: Any) -> int:
    """D, of a base that is standard normal."""
    buffers = dict(base.named_buffers())
    location, scale = buffers.get("loc"), buffers.get("scale")
    parameters = next(base.parameters(), None)
    if location is None or scale is None or parameters is not None or bool((location != 0).any() | (scale != 1).any()):
        raise UsageError(
            f"flow: of zuko's those with a standard normal base are taken, got {base}; on a circle use 'nsf-box'"
        )
    return int(torch.numel(location))


def _summed(values: Tensor, ladj: Tensor) -> tuple[Tensor, Tensor]:
    """One log-determinant for each row: elementwise transforms give one for each number."""
    return values, ladj.reshape(len(values), -1).sum(-1)
