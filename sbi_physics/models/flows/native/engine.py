"""Run a spline coupling flow through its compiled library: value, gradient and inverse.

The flow stays an ordinary `nflows.flows.Flow`; its weights are gathered into one vector for each call.  Rows are
divided among threads; with one number of threads the same rows give the same bits.
"""

import ctypes
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.nn.nets import ResidualNet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sbi_physics.models.flows.coupling import SplineCoupling
from sbi_physics.models.flows.linear import LULinear, Permutation
from sbi_physics.models.flows.native.compiler import Shape, load_library, team

__all__ = ["NativeFlow", "native_flow"]

# Beside the flows, not inside: a library can be neither copied nor pickled with them.
_compiled: WeakKeyDictionary[Flow, "NativeFlow | None"] = WeakKeyDictionary()

# A tile lives on the stack; and for wide layers the matrix products of PyTorch are the faster ones.
_LARGEST = {"FEATURES": 128, "CONTEXT": 1024, "HIDDEN": 256, "OUT": 4096}


class NativeFlow:
    """A compiled flow.

    Args:
        flow: a flow for which `shape_of` gives a shape.
        library: what `load_library` gives for that shape.
    """

    def __init__(self, flow: Flow, library: ctypes.CDLL) -> None:
        self.compiled = library
        self._base = flow._distribution
        self._parameters = _parameters(flow)
        orders = [t.order for t in flow._transform._transforms if isinstance(t, Permutation)]
        self._orders = torch.cat(orders) if orders else None

    def log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """Log-density ``(n,)`` of inputs ``(n, D)`` given contexts ``(n, C)`` or ``(1, C)``; differentiable once."""
        noise, ladj = _ToNoise.apply(inputs, context, self.compiled, self._orders, *self._parameters)
        return self._base.log_prob(noise) + ladj

    @torch.no_grad()
    def inverse(self, noise: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Noise ``(n, D)`` to data, with the log-determinant ``(n,)`` of that direction."""
        noise = noise.contiguous()
        data, ladj = torch.empty_like(noise), noise.new_empty(len(noise))
        call = _Call(self.compiled, self._parameters, self._orders, noise, context)
        call.run(_TO_DATA, outputs=data, ladj=ladj)
        return data, ladj


def native_flow(flow: Flow) -> NativeFlow | None:
    """The compiled flow, or None where the flow is of another kind or there is no compiler."""
    if flow not in _compiled:
        shape = shape_of(flow)
        library = load_library(shape) if shape is not None else None
        _compiled[flow] = NativeFlow(flow, library) if library is not None else None
    return _compiled[flow]


def _parameters(flow: Flow) -> list[nn.Parameter]:
    """The parameters in the order of the C structure."""
    found: list[nn.Parameter] = []
    for transform in flow._transform._transforms:
        if isinstance(transform, LULinear):
            found += [transform.lower, transform.upper, transform.diagonal, transform.bias]
        elif isinstance(transform, SplineCoupling):
            net = transform.conditioner
            layers = [net.initial_layer]
            for block in net.blocks:
                layers += [block.context_layer] if net.context_features is not None else []
                layers += block.linear_layers
            found += [p for layer in [*layers, net.final_layer] for p in (layer.weight, layer.bias)]
    return found


def shape_of(flow: Flow) -> Shape | None:
    """The shape of a flow that the C source knows, or None for any other flow."""
    transforms = list(getattr(flow._transform, "_transforms", []))
    couplings = [t for t in transforms if isinstance(t, SplineCoupling)]
    if not couplings or not isinstance(flow._distribution, StandardNormal):
        return None
    if not isinstance(flow._embedding_net, nn.Identity):
        return None
    linear = [t for t in transforms if isinstance(t, LULinear)]
    features = linear[0].features if linear else 1
    pattern = [Permutation, LULinear, SplineCoupling] if features > 1 else [SplineCoupling]
    if [type(t) for t in transforms] != pattern * len(couplings):
        return None
    shapes = {_shape_of_coupling(coupling, features) for coupling in couplings}
    (shape,) = shapes if len(shapes) == 1 else (None,)
    if shape is None or features > _LARGEST["FEATURES"]:
        return None
    return (("FEATURES", str(features)), *shape, ("LAYERS", str(len(couplings))))


def _shape_of_coupling(coupling: SplineCoupling, features: int) -> Shape | None:
    net = coupling.conditioner
    if type(net) is not ResidualNet or coupling.kept != features // 2 or not net.blocks:
        return None
    sizes = {
        "CONTEXT": net.context_features or 0,
        "HIDDEN": net.hidden_features,
        "OUT": net.final_layer.out_features,
    }
    if any(size > _LARGEST[name] for name, size in sizes.items()):
        return None
    plain = all(
        block.activation is nn.functional.silu and block.dropout.p == 0 and not block.use_batch_norm
        for block in net.blocks
    )
    if not plain:
        return None
    return (
        ("CONTEXT", str(net.context_features or 0)),
        ("HIDDEN", str(net.hidden_features)),
        ("BLOCKS", str(len(net.blocks))),
        ("BINS", str(coupling.bins)),
        ("TAIL", f"{float(coupling.tail_bound)!r}f"),
    )


class _Arguments(ctypes.Structure):
    """`call_t` of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("parameters", "sizes", "orders", "weights", "mixes", "grad_mixes")),
        *((name, ctypes.c_void_p) for name in ("rows", "contexts", "grad_outputs", "grad_ladj", "outputs", "ladj")),
        *((name, ctypes.c_void_p) for name in ("gradient", "grad_contexts", "work", "edges")),
        *((name, ctypes.c_ssize_t) for name in ("count", "context_stride", "shares", "next")),
        ("constant", ctypes.c_double),
        ("task", ctypes.c_int),
    )


_TO_NOISE, _TO_DATA, _GRADIENTS = range(3)


class _Call:
    """One call of the library for rows ``(n, D)`` and contexts ``(n, C)``, ``(1, C)`` or None, all contiguous."""

    def __init__(
        self,
        library: ctypes.CDLL,
        parameters: Sequence[Tensor],
        orders: Tensor | None,
        rows: Tensor,
        context: Tensor | None,
    ) -> None:
        self.compiled, self.parameters, self.orders, self.rows = library, parameters, orders, rows
        self.context = None if context is None else context.contiguous()
        tile = library.tile_rows()
        tiles = -(-len(rows) // tile)
        # A tile is the least that a thread can take.
        self.shares = max(1, min(torch.get_num_threads(), tiles))
        self._edges = [*(tile * (tiles * i // self.shares) for i in range(self.shares)), len(rows)]

    def run(self, task: int, **tensors: Tensor | None) -> None:
        """Fill the output tensors."""
        parameters = [p.detach().contiguous() for p in self.parameters]
        count = len(parameters)
        pointers = (ctypes.c_void_p * count)(*(p.data_ptr() for p in parameters))
        sizes = (ctypes.c_ssize_t * count)(*(p.numel() for p in parameters))
        edges = (ctypes.c_ssize_t * (self.shares + 1))(*self._edges)
        size = self.compiled.work_bytes()
        work = torch.empty(self.shares * size + 64, dtype=torch.uint8)
        weights = self.rows.new_empty(self.compiled.parameter_count())
        mixes = self.rows.new_empty(len(self.orders) * self.rows.shape[1]) if self.orders is not None else None
        contexts = self.rows if self.context is None else self.context
        given = {"weights": weights, "mixes": mixes, "orders": self.orders, "rows": self.rows, "contexts": contexts}
        arguments = _Arguments(
            parameters=ctypes.addressof(pointers),
            sizes=ctypes.addressof(sizes),
            count=count,
            edges=ctypes.addressof(edges),
            work=-(-work.data_ptr() // 64) * 64,
            context_stride=0 if self.context is None or len(self.context) == 1 else self.context.shape[1],
            shares=self.shares,
            task=task,
            **{name: tensor.data_ptr() for name, tensor in {**given, **tensors}.items() if tensor is not None},
        )
        self.compiled.run(ctypes.byref(arguments), team())


class _ToNoise(torch.autograd.Function):
    """The whole transform from data to noise."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        context: Tensor | None,
        library: ctypes.CDLL,
        orders: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        inputs = inputs.contiguous()
        noise, ladj = torch.empty_like(inputs), inputs.new_empty(len(inputs))
        _Call(library, parameters, orders, inputs, context).run(_TO_NOISE, outputs=noise, ladj=ladj)
        ctx.save_for_backward(inputs, context, orders, *parameters)
        ctx.compiled = library
        return noise, ladj

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_noise: Tensor, grad_ladj: Tensor) -> tuple[Tensor | None, ...]:
        inputs, context, orders, *parameters = ctx.saved_tensors
        call = _Call(ctx.compiled, parameters, orders, inputs, context)
        gradient = inputs.new_zeros(call.shares, ctx.compiled.parameter_count())
        grad_inputs, grad_contexts = torch.empty_like(inputs), None
        if context is not None and ctx.needs_input_grad[1]:
            grad_contexts = inputs.new_empty(len(inputs), context.shape[1])
        call.run(
            _GRADIENTS,
            grad_outputs=grad_noise.contiguous(),
            grad_ladj=grad_ladj.contiguous(),
            outputs=grad_inputs,
            gradient=gradient,
            grad_mixes=None if orders is None else inputs.new_zeros(call.shares, len(orders) * inputs.shape[1]),
            grad_contexts=grad_contexts,
        )
        if grad_contexts is not None and len(context) == 1:
            grad_contexts = grad_contexts.sum(0, keepdim=True)
        parts = gradient[0].split([p.numel() for p in parameters])
        each = (part.view(p.shape) for part, p in zip(parts, parameters, strict=True))
        return grad_inputs, grad_contexts, None, None, *each
