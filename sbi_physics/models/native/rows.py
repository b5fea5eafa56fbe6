"""Calls of a library whose source ends with ``rows.h``: rows are divided among PyTorch's threads."""

import ctypes

import torch
from torch import Tensor

from sbi_physics.models.native.compiler import team

__all__ = ["Rows", "runs_natively"]


class Rows(ctypes.Structure):
    """The first members of each ``call_t``."""

    _fields_ = (("rows", ctypes.c_ssize_t), ("shares", ctypes.c_ssize_t), ("next", ctypes.c_ssize_t))

    def run(self, library: ctypes.CDLL, call: ctypes.Structure, rows: int) -> None:
        """Do the rows of the call to which this belongs."""
        self.rows, self.shares = rows, max(1, min(torch.get_num_threads(), -(-rows // library.lanes())))
        library.run(ctypes.byref(call), team())


def runs_natively(*tensors: Tensor) -> bool:
    """Whether native code can take these: single precision on the CPU, with nothing to differentiate or to record."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return all(type(t) is Tensor and t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
