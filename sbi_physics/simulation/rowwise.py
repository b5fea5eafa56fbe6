"""Simulators that know which of their rows failed.

A call of a plain simulator gives a good result for all rows or raises, and rows of a call that raised are simulated
again one by one.  Where every row is a run of its own anyway, as with programs, that would make all the good ones
twice: such a simulator has a method `simulate_rows`, which says of each row what it gave or what went wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sbi_physics.core.protocols import Simulator
from sbi_physics.store.layout import Status

__all__ = ["RowResult", "RowwiseSimulator"]


@dataclass(frozen=True)
class RowResult:
    """What one row gave.

    Attributes:
        x: its output ``(*x_shape)``, or a dictionary of such; None where it failed.
        status: what became of it, where it failed.
        error: one line that says what went wrong.
        seed: of the row alone, in [0, 2**63); None where the rows of a call share one.
    """

    x: Any | Mapping[str, Any] | None
    status: Status = Status.FAILED
    error: str = ""
    seed: int | None = None


@runtime_checkable
class RowwiseSimulator(Simulator, Protocol):
    """A simulator that reports the failures of rows itself."""

    def simulate_rows(self, theta: Tensor, *, seed: int) -> Sequence[RowResult]:
        """Simulate rows of theta ``(n, P)``; n results, in their order."""
