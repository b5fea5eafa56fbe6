"""Run a flow: the same `nflows.flows.Flow`, executed in one of several ways.

============  =====================================================================================================
``eager``     operation by operation in PyTorch: any flow, any device, any precision; the reference
``compiled``  all layers in one compiled function (`native`): spline couplings in single precision on the CPU
``auto``      compiled while training and for 2,048 rows or more, where it can be; else eager
============  =====================================================================================================

A context of one row serves all rows and is projected once.
"""

import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from torch import Tensor

from sbi_physics.core.errors import UsageError
from sbi_physics.models.flows.autoregressive import MaskedAffine, MaskedSpline
from sbi_physics.models.flows.box import BoxCoupling, UniformBox
from sbi_physics.models.flows.coupling import SplineCoupling
from sbi_physics.models.flows.linear import LULinear, Permutation
from sbi_physics.models.flows.native.engine import NativeFlow, native_flow

__all__ = ["ENGINES", "check_engine", "from_noise", "log_prob"]

ENGINES = ("auto", "eager", "compiled")

_BROADCAST = (SplineCoupling, BoxCoupling, MaskedAffine, MaskedSpline, LULinear, Permutation)
# Base distributions that no context moves.
_FIXED = (StandardNormal, UniformBox)
# Fewer rows than this are done before a library is loaded.
_WORTH_COMPILING = 2048


def check_engine(name: str) -> str:
    """Return the name of an engine, or raise UsageError."""
    if name not in ENGINES:
        raise UsageError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")
    return name


def log_prob(flow: Flow, inputs: Tensor, context: Tensor | None, *, engine: str = "auto") -> Tensor:
    """Log-density ``(n,)`` of inputs ``(n, D)`` given embedded contexts ``(n, C)``, ``(1, C)`` or None."""
    native = _native(flow, inputs, engine)
    if native is not None:
        return native.log_prob(inputs, context)
    context = _rows(flow, context, len(inputs))
    noise, ladj = flow._transform(inputs, context=context)
    return _base_log_prob(flow, noise, context) + ladj


def from_noise(flow: Flow, noise: Tensor, context: Tensor | None, *, engine: str = "auto") -> tuple[Tensor, Tensor]:
    """Events ``(n, D)`` from noise of the base distribution, with their log-densities ``(n,)``."""
    native = _native(flow, noise, engine)
    if native is not None:
        events, ladj = native.inverse(noise, context)
    else:
        context = _rows(flow, context, len(noise))
        events, ladj = flow._transform.inverse(noise, context=context)
    return events, _base_log_prob(flow, noise, context) - ladj


def _native(flow: Flow, rows: Tensor, engine: str) -> NativeFlow | None:
    weight = next(flow.parameters(), rows)
    suitable = rows.device.type == "cpu" and rows.dtype == weight.dtype == torch.float32 and len(rows) > 0
    if engine == "eager" or not suitable:
        return None
    if engine == "auto" and not flow.training and len(rows) < _WORTH_COMPILING:
        return None
    return native_flow(flow)


def _rows(flow: Flow, context: Tensor | None, n: int) -> Tensor | None:
    """Contexts for transforms that do not broadcast."""
    if context is None or len(context) == n:
        return context
    ours = all(isinstance(t, _BROADCAST) for t in getattr(flow._transform, "_transforms", [flow._transform]))
    return context if ours and isinstance(flow._distribution, _FIXED) else context.expand(n, -1)


def _base_log_prob(flow: Flow, noise: Tensor, context: Tensor | None) -> Tensor:
    base = flow._distribution
    return base.log_prob(noise) if isinstance(base, _FIXED) else base.log_prob(noise, context=context)
