"""Run a spline coupling flow through its compiled library: value, gradient and inverse.

The flow stays an ordinary `nflows.flows.Flow`; its weights are gathered into one vector for each call.  Rows are
divided among threads; with one number of threads the same rows give the same bits.
"""

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.nn.nets import ResidualNet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sbi_physics.models.flows.coupling import SplineCoupling
from sbi_physics.models.flows.linear import LULinear, Permutation
from sbi_physics.models.native.compiler import Definitions, load_library, team

__all__ = ["NativeFlow", "native_flow"]

_SOURCE = Path(__file__).with_name("coupling.c")

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
        self._base = flow._distribution
        self._parameters = _parameters(flow)
        orders = [t.order for t in flow._transform._transforms if isinstance(t, Permutation)]
        sizes = [p.numel() for p in self._parameters]
        order = torch.cat(orders) if orders else None
        for name in ("work_bytes", "call_bytes"):
            getattr(library, name).restype = ctypes.c_size_t
        self._program = _Program(library, order, _integers(sizes), sum(sizes))

    def log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """Log-density ``(n,)`` of inputs ``(n, D)`` given contexts ``(n, C)`` or ``(1, C)``; differentiable once."""
        noise, ladj = _ToNoise.apply(inputs, context, self._program, *self._parameters)
        return self._base.log_prob(noise) + ladj

    def add_gradient(
        self, inputs: Tensor, context: Tensor | None, weights: Tensor
    ) -> tuple[Tensor, Tensor | None] | None:
        """Value and gradient in one pass over the rows, without autograd.

        Args:
            inputs: ``(n, D)``.
            context: ``(n, C)``, ``(1, C)`` or None.
            weights: ``(n,)``; the gradient of ``sum(weights * log_prob)`` is added to `grad` of each parameter.

        Returns:
            Log-densities ``(n,)`` and the gradient in the context, where that is wanted; None, and nothing done, where
            some of the parameters are not to be trained.
        """
        if not all([p.requires_grad for p in self._parameters]):
            return None
        inputs, log_prob = inputs.detach().contiguous(), inputs.new_empty(len(inputs))
        call = _Call(self._program, self._parameters, inputs, context)
        grad_contexts = _like_contexts(inputs, context) if context is not None and context.requires_grad else None
        targets, weights = [_gradient(p) for p in self._parameters], weights.contiguous()
        call.run(_OBJECTIVE, targets, grad_ladj=weights, ladj=log_prob, grad_contexts=grad_contexts)
        return log_prob, _of_context(grad_contexts, context)

    @torch.no_grad()
    def inverse(self, noise: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Noise ``(n, D)`` to data, with the log-determinant ``(n,)`` of that direction."""
        noise = noise.contiguous()
        data, ladj = torch.empty_like(noise), noise.new_empty(len(noise))
        _Call(self._program, self._parameters, noise, context).run(_TO_DATA, outputs=data, ladj=ladj)
        return data, ladj


def native_flow(flow: Flow) -> NativeFlow | None:
    """The compiled flow, or None where the flow is of another kind or there is no compiler."""
    if flow not in _compiled:
        shape = shape_of(flow)
        library = load_library(_SOURCE, shape) if shape is not None else None
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


def shape_of(flow: Flow) -> Definitions | None:
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


def _shape_of_coupling(coupling: SplineCoupling, features: int) -> Definitions | None:
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


class _Program(NamedTuple):
    """What all calls of one flow have in common."""

    compiled: ctypes.CDLL
    orders: Tensor | None
    sizes: ctypes.Array[ctypes.c_ssize_t]
    size: int


class _Arguments(ctypes.Structure):
    """`call_t` of the C source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("layers", "targets", "sizes", "orders", "mixes", "grad_mixes")),
        *((name, ctypes.c_void_p) for name in ("rows", "contexts", "grad_outputs", "grad_ladj", "outputs", "ladj")),
        *((name, ctypes.c_void_p) for name in ("grad_contexts", "gradients", "work", "edges")),
        *((name, ctypes.c_ssize_t) for name in ("size", "context_stride", "shares", "next")),
        ("constant", ctypes.c_double),
        ("task", ctypes.c_int),
    )


_TO_NOISE, _TO_DATA, _GRADIENTS, _OBJECTIVE = range(4)


class _Scratch(threading.local):
    """Memory that the calls of a thread use one after the other: fresh pages for each cost as much as the work."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, length: int) -> Tensor:
        """That many floats; what was taken before is lost."""
        if len(self._memory) < length:
            self._memory = torch.empty(length)
        return self._memory[:length]


_scratch = _Scratch()


class _Call:
    """One call of the library for rows ``(n, D)`` and contexts ``(n, C)``, ``(1, C)`` or None, all contiguous."""

    def __init__(self, program: _Program, parameters: Sequence[Tensor], rows: Tensor, context: Tensor | None) -> None:
        self._program, self._parameters, self._rows = program, parameters, rows
        self._context = None if context is None else context.contiguous()
        tile = program.compiled.tile_rows()
        tiles = -(-len(rows) // tile)
        # A tile is the least that a thread can take.
        self._shares = max(1, min(torch.get_num_threads(), tiles))
        self._edges = [*(tile * (tiles * i // self._shares) for i in range(self._shares)), len(rows)]

    def run(self, task: int, targets: Sequence[Tensor] = (), **tensors: Tensor | None) -> None:
        """Fill the tensors, and add gradients to the targets."""
        library, orders, sizes, size = self._program
        layers, aims, edges = _addresses(self._parameters), _addresses(targets), _integers(self._edges)
        others = self._shares - 1 if targets else 0
        mix = 0 if orders is None else len(orders) * self._rows.shape[1]
        lengths = [self._shares * library.work_bytes() // 4 + 16, others * size, mix, (1 + others) * mix]
        work, gradients, mixes, grad_mixes = _scratch.take(sum(lengths)).split(lengths)
        given = {"orders": orders, "rows": self._rows, "contexts": self._context, "gradients": gradients}
        given |= {"mixes": mixes, "grad_mixes": grad_mixes}
        arguments = _Arguments(
            layers=ctypes.addressof(layers),
            targets=ctypes.addressof(aims),
            sizes=ctypes.addressof(sizes),
            edges=ctypes.addressof(edges),
            work=-(-work.data_ptr() // 64) * 64,
            context_stride=0 if self._context is None or len(self._context) == 1 else self._context.shape[1],
            size=size,
            shares=self._shares,
            task=task,
            **{name: tensor.data_ptr() for name, tensor in {**given, **tensors}.items() if tensor is not None},
        )
        library.run(ctypes.byref(arguments), team())


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_ssize_t]:
    return (ctypes.c_ssize_t * len(values))(*values)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _like_contexts(rows: Tensor, context: Tensor) -> Tensor:
    return rows.new_empty(len(rows), context.shape[1])


def _of_context(gradient: Tensor | None, context: Tensor | None) -> Tensor | None:
    """The gradient of all rows, summed where they share one context."""
    if gradient is None or context is None or len(context) > 1:
        return gradient
    return gradient.sum(0, keepdim=True)


class _ToNoise(torch.autograd.Function):
    """The whole transform from data to noise."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, context: Tensor | None, program: _Program, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = inputs.contiguous()
        noise, ladj = torch.empty_like(inputs), inputs.new_empty(len(inputs))
        _Call(program, parameters, inputs, context).run(_TO_NOISE, outputs=noise, ladj=ladj)
        ctx.save_for_backward(inputs, context, *parameters)
        ctx.program = program
        return noise, ladj

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_noise: Tensor, grad_ladj: Tensor) -> tuple[Tensor | None, ...]:
        inputs, context, *parameters = ctx.saved_tensors
        grad_inputs = torch.empty_like(inputs)
        grad_contexts = _like_contexts(inputs, context) if ctx.needs_input_grad[1] else None
        each = [torch.zeros_like(p) for p in parameters]
        _Call(ctx.program, parameters, inputs, context).run(
            _GRADIENTS,
            each,
            grad_outputs=grad_noise.contiguous(),
            grad_ladj=grad_ladj.contiguous(),
            outputs=grad_inputs,
            grad_contexts=grad_contexts,
        )
        return grad_inputs, _of_context(grad_contexts, context), None, *each
