"""Run a spline coupling flow through the fused kernels: one launch for all layers, and one for their gradients.

The context is projected once, by ordinary matrix products, onto what it adds to the hidden units of every layer; one
context for all rows stays one row.  The kernels never see its width.
"""

import functools
import importlib.util
import logging
import os
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from nflows.flows.base import Flow
from torch import Tensor

from sbi_physics.core.errors import ShapeError
from sbi_physics.models.flows.fused.packing import Packed, Packing
from sbi_physics.models.flows.fused.passes import Plan, Precision, run, to_noise
from sbi_physics.models.flows.native.engine import shape_of
from sbi_physics.models.native.compiler import find_compiler

__all__ = ["FusedFlow", "Precision", "fused_flow"]

_log = logging.getLogger(__name__)

# Beside the flows, not inside: a packing can be neither copied nor pickled with them.
_fused: WeakKeyDictionary[Flow, "FusedFlow | None"] = WeakKeyDictionary()

# A matrix of hidden units has to fit into the shared memory of a multiprocessor, a tile into its registers.
_MOST_HIDDEN, _MOST_BINS = 128, 32
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
        self._base = flow._distribution
        packing = Packing(flow)
        self._plan = Plan(packing, precision, gated=packing.conditional)

    def log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """Log-density ``(n,)`` of inputs ``(n, D)`` given contexts ``(n, C)`` or ``(1, C)``; differentiable once."""
        packed = self._plan.packing.pack(inverse=False)
        projected = _project(packed, context)
        noise, ladj = to_noise(self._plan, inputs, projected, packed.mixes, packed.ladj, packed.weights)
        return self._base.log_prob(noise) + ladj

    @torch.no_grad()
    def inverse(self, noise: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Noise ``(n, D)`` to data, with the log-determinant ``(n,)`` of that direction."""
        packed = self._plan.packing.pack(inverse=True)
        projected = _project(packed, context)
        return run(self._plan, noise, projected, packed.mixes, packed.ladj, packed.weights, inverse=True)


def _project(packed: Packed, context: Tensor | None) -> Tensor:
    """What the contexts ``(n, C)`` add to the hidden units: one row for each, or one row."""
    if packed.context_weight is None:
        return packed.context_bias.unsqueeze(0)
    if context is None:
        raise ShapeError("context: the flow is conditional, got None")
    return F.linear(context, packed.context_weight, packed.context_bias)


def fused_flow(flow: Flow, device: torch.device) -> FusedFlow | None:
    """The fused flow, or None where the flow is of another kind or the kernels cannot run on this device.

    They run on a CUDA GPU of compute capability 8.0 or more; and on the CPU, slowly and for tests, if Triton's
    interpreter was switched on by ``TRITON_INTERPRET=1`` before the start.
    """
    if not _runs_on(device):
        return None
    if flow not in _fused:
        fused = FusedFlow(flow) if _fits(flow) else None
        _fused[flow] = fused if fused is None or device.type == "cpu" or _agrees(fused, flow, device) else None
    return _fused[flow]


@torch.no_grad()
def _agrees(fused: FusedFlow, flow: Flow, device: torch.device) -> bool:
    """Whether the kernels compile and give what the eager flow gives: no GPU may change results in silence."""
    sizes = dict(shape_of(flow) or ())
    generator = torch.Generator().manual_seed(0)
    rows, contexts = (torch.randn(64, int(sizes[n]), generator=generator).to(device) for n in ("FEATURES", "CONTEXT"))
    context = contexts if contexts.shape[1] else None
    try:
        found, (drawn, _) = fused.log_prob(rows, context), fused.inverse(rows, context)
    except Exception as error:
        _log.warning("flows run without fused kernels: %s", " ".join(str(error).split())[:300])
        return False
    noise, ladj = flow._transform(rows, context=context)
    expected = flow._distribution.log_prob(noise) + ladj
    back = flow._transform(drawn, context=context)[0]
    if torch.allclose(found, expected, rtol=1e-3, atol=1e-2) and torch.allclose(back, rows, rtol=1e-2, atol=1e-2):
        return True
    _log.warning("flows run without fused kernels: on %s they disagree with the eager flow", device)
    return False


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
