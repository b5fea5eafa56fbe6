"""Run a spline coupling flow through the fused kernels: one launch for all layers, without gradients.

The context is projected once, by ordinary matrix products, onto what it adds to the hidden units of every layer; one
context for all rows stays one row.  The kernels never see its width.
"""

import functools
import importlib
import importlib.util
import logging
import os
from types import ModuleType
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from nflows.flows.base import Flow
from torch import Tensor

from sbi_physics.core.errors import ShapeError
from sbi_physics.models.flows.fused.packing import Packing
from sbi_physics.models.flows.native.compiler import find_compiler
from sbi_physics.models.flows.native.engine import shape_of

__all__ = ["FusedFlow", "Precision", "fused_flow", "launch_options"]

_log = logging.getLogger(__name__)

Precision = Literal["tf32", "tf32x3", "ieee"]

# Beside the flows, not inside: a packing can be neither copied nor pickled with them.
_fused: WeakKeyDictionary[Flow, "FusedFlow | None"] = WeakKeyDictionary()

# A matrix of hidden units has to fit into the shared memory of a multiprocessor, a tile into its registers.
_MOST_HIDDEN, _MOST_BINS = 128, 32
# Hidden units of a tile: what leaves few registers to spill, for less exact products more.
_TILE_UNITS = {"tf32": 4096, "tf32x3": 2048, "ieee": 1024}
# The matrix units have worked in TF32 since this generation.
_OLDEST_CAPABILITY = (8, 0)


class FusedFlow:
    """A flow run by Triton kernels.

    Args:
        flow: a flow for which `shape_of` gives a shape, of at most 128 hidden features and 32 bins.
        precision: of the matrix products of the conditioners: ``"tf32x3"`` (matrix units, three products for about
            single precision), ``"tf32"`` (matrix units, 10 bits: log-densities of trained flows then err by about
            1e-3 nats, rarely 2e-2) or ``"ieee"`` (single precision without matrix units, slow).  Linear maps are
            never rounded to 10 bits, splines are always in single precision.
    """

    def __init__(self, flow: Flow, precision: Precision = "tf32x3") -> None:
        self.precision = precision
        self._base = flow._distribution
        self._packing = Packing(flow)

    @torch.no_grad()
    def log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """Log-density ``(n,)`` of inputs ``(n, D)`` given contexts ``(n, C)``, ``(1, C)`` or None."""
        noise, ladj = self._run(inputs, context, inverse=False)
        return self._base.log_prob(noise) + ladj

    @torch.no_grad()
    def inverse(self, noise: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Noise ``(n, D)`` to data, with the log-determinant ``(n,)`` of that direction."""
        return self._run(noise, context, inverse=True)

    def _run(self, inputs: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        packed = self._packing.pack(inverse=inverse)
        if packed.context_weight is None:
            projected = packed.context_bias.unsqueeze(0)
        elif context is None:
            raise ShapeError("context: the flow is conditional, got None")
        else:
            projected = F.linear(context, packed.context_weight, packed.context_bias)
        options = launch_options(
            self._packing,
            self.precision,
            inverse=inverse,
            gated=packed.context_weight is not None,
            shared_context=len(projected) == 1,
        )
        inputs = inputs.contiguous()
        outputs, ladj = torch.empty_like(inputs), inputs.new_empty(len(inputs))
        programs = -(-len(inputs) // options["TILE"])
        with torch.cuda.device_of(inputs):
            _kernels().run_flow[(programs,)](
                inputs,
                outputs,
                ladj,
                projected,
                packed.mixes,
                packed.ladj,
                packed.weights,
                len(inputs),
                projected.shape[1],
                **options,
            )
        return outputs, ladj


def launch_options(
    packing: Packing, precision: Precision, *, inverse: bool, gated: bool, shared_context: bool
) -> dict[str, Any]:
    """The constants and settings of a launch of `run_flow`."""
    sizes = packing.sizes
    return {
        **{name.upper(): size for name, size in sizes._asdict().items()},
        "LAYER_WEIGHTS": packing.layer_weights,
        "GATED": gated,
        "SHARED_CONTEXT": shared_context,
        "INVERSE": inverse,
        "PRECISION": precision,
        "MIX_PRECISION": "ieee" if precision == "ieee" else "tf32x3",
        "TILE": max(16, _TILE_UNITS[precision] // max(sizes.hidden, sizes.width)),
        "num_warps": 4,
        # More would double what is kept in shared memory: each matrix is used once per tile.
        "num_stages": 1,
        "enable_fp_fusion": True,
    }


def fused_flow(flow: Flow, device: torch.device) -> FusedFlow | None:
    """The fused flow, or None where the flow is of another kind or the kernels cannot run on this device.

    They run on a CUDA GPU of compute capability 8.0 or more; and on the CPU, slowly and for tests, if Triton's
    interpreter was switched on by ``TRITON_INTERPRET=1`` before the start.
    """
    if flow not in _fused:
        _fused[flow] = FusedFlow(flow) if _fits(flow) else None
    return _fused[flow] if _fused[flow] is not None and _runs_on(device) else None


@functools.cache
def _runs_on(device: torch.device) -> bool:
    """Whether the kernels can run; if not, the log says why, once."""
    reason = None
    if device.type == "cuda" and torch.version.cuda is not None:
        if torch.cuda.get_device_capability(device) < _OLDEST_CAPABILITY:
            reason = f"the GPU is older than compute capability {'.'.join(map(str, _OLDEST_CAPABILITY))}"
        elif find_compiler() is None:
            reason = "Triton needs a C compiler (cc, gcc or clang), and none was found"
    elif device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
        reason = f"they need a CUDA GPU, and the tensors are on {device.type!r}"
    if reason is None and importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    if reason is not None:
        _log.warning("flows run without fused kernels: %s", reason)
    return reason is None


def _fits(flow: Flow) -> bool:
    shape = dict(shape_of(flow) or ())
    return bool(shape) and int(shape["HIDDEN"]) <= _MOST_HIDDEN and int(shape["BINS"]) <= _MOST_BINS


def _kernels() -> ModuleType:
    """The kernels; Triton is imported with them, when first needed."""
    return importlib.import_module("sbi_physics.models.flows.fused.kernels")
