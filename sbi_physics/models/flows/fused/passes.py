"""Launches of the kernels: from data to noise with gradients, and back.

The backward kernel leaves the gradients of the results of all matrix products; those of the weights are products over
all rows, taken here for all layers at once.
"""

import importlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbi_physics.models.flows.fused.packing import Packing

__all__ = ["Plan", "Precision", "launch_options", "run", "to_noise"]

Precision = Literal["tf32", "tf32x3", "ieee"]

# Hidden units of a tile: what leaves few registers to spill, for less exact products more.
_TILE_UNITS = {"tf32": 4096, "tf32x3": 2048, "ieee": 1024}
_GRADIENT_TILE_UNITS = {"tf32": 2048, "tf32x3": 1024, "ieee": 1024}


class Plan(NamedTuple):
    """What stays the same from launch to launch."""

    packing: Packing
    precision: Precision
    gated: bool


def launch_options(plan: Plan, *, shared_context: bool, task: Literal["noise", "data", "gradients"]) -> dict[str, Any]:
    """The constants and settings of a launch, but for `SAVE`."""
    sizes = plan.packing.sizes
    units = (_GRADIENT_TILE_UNITS if task == "gradients" else _TILE_UNITS)[plan.precision]
    return {
        **{name.upper(): size for name, size in sizes._asdict().items()},
        **({} if task == "gradients" else {"INVERSE": task == "data"}),
        "LAYER_WEIGHTS": plan.packing.layer_weights,
        "GATED": plan.gated,
        "SHARED_CONTEXT": shared_context,
        "PRECISION": plan.precision,
        "MIX_PRECISION": "ieee" if plan.precision == "ieee" else "tf32x3",
        "TILE": max(16, units // max(sizes.hidden, sizes.width)),
        # Wide layers spill several times fewer registers when shared by more threads.
        "num_warps": 8 if sizes.hidden > 64 else 4,
        # More would double what is kept in shared memory: each matrix is used once per tile.
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def run(
    plan: Plan,
    inputs: Tensor,
    projected: Tensor,
    mixes: Tensor,
    constant: Tensor,
    weights: Tensor,
    *,
    inverse: bool = False,
    saved: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """All layers for inputs ``(n, D)``, with the log-determinants ``(n,)``; arguments as in the kernel `run_flow`."""
    inputs = inputs.contiguous()
    outputs, ladj = torch.empty_like(inputs), inputs.new_empty(len(inputs))
    tensors = [inputs, outputs, ladj, projected, mixes, constant, weights, *(saved or (inputs, inputs))]
    task: Literal["noise", "data"] = "data" if inverse else "noise"
    _launch("kernels", "run_flow", plan, task, tensors, projected, SAVE=saved is not None)
    return outputs, ladj


def to_noise(
    plan: Plan, inputs: Tensor, projected: Tensor, mixes: Tensor, constant: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Data ``(n, D)`` to noise, with the log-determinants ``(n,)``; differentiable once in all tensors."""
    given = (inputs, projected, mixes, constant, weights)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return _ToNoise.apply(plan, *given)
    return run(plan, *given)


class _ToNoise(torch.autograd.Function):
    """The way from data to noise."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, inputs: Tensor, projected: Tensor, mixes: Tensor, constant: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        sizes, n = plan.packing.sizes, len(inputs)
        states = inputs.new_empty(sizes.layers, 2, n, sizes.width)
        saved = inputs.new_empty(sizes.layers, 3 * sizes.blocks + 1, n, sizes.hidden)
        noise, ladj = run(plan, inputs, projected, mixes, constant, weights, saved=(states, saved))
        ctx.save_for_backward(projected, mixes, weights, states, saved)
        ctx.plan = plan
        return noise, ladj

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_noise: Tensor, grad_ladj: Tensor) -> tuple[Tensor | None, ...]:
        projected, mixes, weights, states, saved = ctx.saved_tensors
        sizes, n = ctx.plan.packing.sizes, len(grad_noise)
        grad_noise, grad_ladj = grad_noise.contiguous(), grad_ladj.contiguous()
        grad_inputs = torch.empty_like(grad_noise)
        # Zeros: without a context the gates are not written.
        grad_projected = grad_noise.new_zeros(n, sizes.layers, 1 + sizes.blocks, sizes.hidden)
        grad_states = grad_noise.new_empty(sizes.layers, n, sizes.width)
        grad_inner = grad_noise.new_empty(sizes.layers, 2 * sizes.blocks, n, sizes.hidden)
        grad_final = grad_noise.new_empty(sizes.layers, n, sizes.groups * 3 * sizes.group * sizes.padded_bins)
        written = [grad_inputs, grad_projected, grad_states, grad_inner, grad_final]
        tensors = [grad_noise, grad_ladj, *written, projected, mixes, weights, states, saved]
        _launch("gradient_kernels", "run_gradients", ctx.plan, "gradients", tensors, projected)
        grad_start = grad_projected[:, :, 0].transpose(0, 1)
        parts = [(states[:, 1].mT @ grad_start).flatten(1)]
        for product in range(2 * sizes.blocks):
            # Three planes of hidden units for two products: before, between and after.
            active = F.silu(saved[:, product // 2 * 3 + product % 2])
            parts += [(active.mT @ grad_inner[:, product]).flatten(1), grad_inner[:, product].sum(1)]
        slabs = (sizes.layers, 3 * sizes.groups, -1)
        last = (saved[:, -1].mT @ grad_final).unflatten(2, (3 * sizes.groups, -1)).transpose(1, 2)
        parts += [torch.cat([last.flatten(2), grad_final.sum(1).view(slabs)], dim=2).flatten(1)]
        grad_mixes = None
        if sizes.features > 1:
            grad_mixes = torch.cat([states[:, 0].mT @ grad_states, grad_states.sum(1, keepdim=True)], dim=1)
        grad_projected = grad_projected.flatten(1)
        if len(projected) == 1:
            grad_projected = grad_projected.sum(0, keepdim=True)
        return None, grad_inputs, grad_projected, grad_mixes, grad_ladj.sum(), torch.cat(parts, dim=1)


def _launch(
    module: str,
    kernel: str,
    plan: Plan,
    task: Literal["noise", "data", "gradients"],
    tensors: list[Tensor],
    projected: Tensor,
    **constants: bool,
) -> None:
    """Start one program per tile of rows; the first of the tensors has a row for each."""
    options = launch_options(plan, shared_context=len(projected) == 1, task=task)
    # Triton is imported with the kernels, when first needed.
    function = getattr(importlib.import_module(f"sbi_physics.models.flows.fused.{module}"), kernel)
    rows = len(tensors[0])
    with torch.cuda.device_of(tensors[0]):
        function[(-(-rows // options["TILE"]),)](*tensors, rows, projected.shape[1], **options, **constants)
