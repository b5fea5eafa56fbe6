"""Run a flow: the same `nflows.flows.Flow`, executed in one of several ways.

============  =====================================================================================================
``eager``     operation by operation in PyTorch: any flow, any device, any precision; the reference
``compiled``  all layers in one compiled function (`native`): spline couplings in single precision on the CPU
``fused``     all layers in one Triton kernel (`fused`): spline couplings in single precision on a CUDA GPU; draws
              that gradients go through are eager
``graphed``   eager, with the whole step of training recorded once as a CUDA graph and replayed (`train.step`)
``auto``      on a GPU graphed while training, fused without gradients; on the CPU compiled while training and for
              2,048 rows or more; else, and where these cannot be, eager
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
from sbi_physics.models.flows.fused.engine import FusedFlow, fused_flow
from sbi_physics.models.flows.linear import LULinear, Permutation
from sbi_physics.models.flows.native.engine import NativeFlow, native_flow

__all__ = ["ENGINES", "add_gradient", "check_engine", "from_noise", "log_prob", "runs_compiled"]

ENGINES = ("auto", "eager", "compiled", "fused", "graphed")

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


def runs_compiled(flow: Flow, rows: Tensor, engine: str) -> bool:
    """Whether this engine runs these rows ``(n, D)`` through the flow as one function."""
    return _fast(flow, rows, engine) is not None


def log_prob(flow: Flow, inputs: Tensor, context: Tensor | None, *, engine: str = "auto") -> Tensor:
    """Log-density ``(n,)`` of inputs ``(n, D)`` given embedded contexts ``(n, C)``, ``(1, C)`` or None."""
    fast = _fast(flow, inputs, engine)
    if fast is not None:
        return fast.log_prob(inputs, context)
    context = _rows(flow, context, len(inputs))
    noise, ladj = flow._transform(inputs, context=context)
    return _base_log_prob(flow, noise, context) + ladj


def add_gradient(
    flow: Flow, inputs: Tensor, context: Tensor | None, weights: Tensor, *, engine: str = "auto"
) -> Tensor:
    """Log-densities ``(n,)``; the gradient of ``sum(weights * log_prob)`` is added to `grad` of what they depend on.

    The weights being known beforehand, value and gradient are one pass over the rows where there is a compiled flow.
    """
    fast = None if inputs.requires_grad else _fast(flow, inputs, engine)
    done = fast.add_gradient(inputs, context, weights) if isinstance(fast, NativeFlow) else None
    if done is None:
        found = log_prob(flow, inputs, context, engine=engine)
        (weights * found).sum().backward()
        return found.detach()
    found, grad_context = done
    if context is not None and grad_context is not None:
        context.backward(grad_context)
    return found


def from_noise(flow: Flow, noise: Tensor, context: Tensor | None, *, engine: str = "auto") -> tuple[Tensor, Tensor]:
    """Events ``(n, D)`` from noise of the base distribution, with their log-densities ``(n,)``."""
    fast = _fast(flow, noise, engine)
    if fast is not None and not torch.is_grad_enabled():
        events, ladj = fast.inverse(noise, context)
    else:
        context = _rows(flow, context, noise.shape[0])
        events, ladj = flow._transform.inverse(noise, context=context)
    return events, _base_log_prob(flow, noise, context) - ladj


def _fast(flow: Flow, rows: Tensor, engine: str) -> NativeFlow | FusedFlow | None:
    """The flow as one function, or None where it has to be run eagerly."""
    weight = next(flow.parameters(), rows)
    if engine in ("eager", "graphed") or not rows.dtype == weight.dtype == torch.float32 or len(rows) == 0:
        return None
    if engine == "fused" or (engine == "auto" and rows.is_cuda and not torch.is_grad_enabled()):
        return fused_flow(flow, rows.device)
    if rows.device.type != "cpu":
        return None
    if engine == "auto" and not flow.training and len(rows) < _WORTH_COMPILING:
        return None
    return native_flow(flow)


def _rows(flow: Flow, context: Tensor | None, n: int) -> Tensor | None:
    """Contexts for transforms that do not broadcast."""
    if context is None or context.shape[0] == n:
        return context
    ours = all(isinstance(t, _BROADCAST) for t in getattr(flow._transform, "_transforms", [flow._transform]))
    return context if ours and isinstance(flow._distribution, _FIXED) else context.expand(n, -1)


def _base_log_prob(flow: Flow, noise: Tensor, context: Tensor | None) -> Tensor:
    base = flow._distribution
    return base.log_prob(noise) if isinstance(base, _FIXED) else base.log_prob(noise, context=context)
