"""Several processes that train one model together, each on its share of every batch.

A script started by ``torchrun --nproc-per-node 4 fit.py`` runs once for each GPU (or, without GPUs, for each group of
cores); `Processes.found` notices and connects the processes through Lightning Fabric.  A batch is divided among them
and their gradients are summed, so that the fit is that of one process up to rounding, whatever their number.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Processes"]


@dataclass(frozen=True)
class Processes:
    """The processes of a run and the place of this one among them.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        fabric: their connection; None for a single process.
    """

    rank: int = 0
    size: int = 1
    fabric: Any = None

    @classmethod
    def found(cls, device: torch.device) -> "Processes":
        """The processes that torchrun has started, connected; or this process alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1 or "LOCAL_RANK" not in os.environ:
            return cls()
        # Deferred: a single process has no use for it.
        from lightning_fabric import Fabric

        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
        fabric = Fabric(
            accelerator="cuda" if device.type == "cuda" else "cpu",
            devices=local,
            num_nodes=size // local,
            strategy="ddp",
        )
        fabric.launch()
        return cls(fabric.global_rank, fabric.world_size, fabric)

    def share(self, rows: Tensor) -> Tensor:
        """The rows ``(m,)`` of a batch ``(n,)`` that this process takes; all others together take the rest."""
        return rows[self.rank :: self.size] if self.size > 1 else rows

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor, the same in each."""
        return self.fabric.all_reduce(values, reduce_op="sum") if self.size > 1 else values

    def agree(self, value: float) -> float:
        """What the first process says."""
        return float(self.fabric.broadcast(value)) if self.size > 1 else value

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self.fabric.barrier()
