"""Blocks made by a pool of worker processes: in one call each, and row by row where that call gives nothing.

A child process draws the parameters of a block itself, unless the user gave them, so that the parent only counts.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from sbi_physics.simulation.blocks import Block, Outcome, Plan, block_of_rows
from sbi_physics.simulation.pool import Pool
from sbi_physics.simulation.worker import Call, Written

__all__ = ["Made", "Maker", "theta_of"]

Made = Block | Written
# Draws from the prior use the one global generator of torch, and a Dask worker has several threads.
_drawing = threading.Lock()


def theta_of(plan: Plan, block: int, given: Mapping[int, NDArray[np.float32]] | None = None) -> NDArray[np.float32]:
    """Parameters of the rows of a block, float32 ``(rows, P)``: those of `given`, else those of the plan."""
    if given is not None:
        return given[block]
    with _drawing:
        return plan.theta(block)


class Maker:
    """Makes blocks with a pool.

    Args:
        pool: the processes.
        plan: of the run.
        given: parameters by block where the user gave them and the plan does not hold them.
    """

    def __init__(self, pool: Pool, plan: Plan, given: Mapping[int, NDArray[np.float32]] | None = None) -> None:
        self._pool, self._plan, self._given = pool, plan, given
        self._half: dict[int, dict[int, Outcome]] = {}

    def make(self, todo: Iterable[int]) -> Iterator[tuple[int, Made]]:
        """Make the blocks `todo`: yields each when it is made, in any order.

        Raises:
            CannotStart, SimulationError, StoreError: as of `Pool.wait`.
        """
        left, running = deque(todo), 0
        known = self._given is not None or self._plan.given is not None
        while left or running:
            while left and self._pool.hungry:
                number = left.popleft()
                theta = theta_of(self._plan, number, self._given) if known else None
                self._pool.submit(Call(number, None, theta, self._plan.block_seed(number)))
                running += 1
            for call, answer in self._pool.wait():
                running -= 1
                made: Made | None
                if isinstance(answer, Outcome):
                    more, made = self._row(call, answer)
                    running += more
                else:
                    made = answer
                if made is not None:
                    yield call.block, made

    def _row(self, call: Call, answer: Outcome) -> tuple[int, Made | None]:
        """Deal with a block that failed or with one of its rows: how many calls that led to, and the block if whole."""
        number, rows = call.block, self._plan.rows(call.block)
        if call.row is None:
            self._half[number] = {}
            theta = theta_of(self._plan, number, self._given)
            for i in reversed(range(len(rows))):
                row = Call(number, rows[i], theta[i : i + 1], self._plan.row_seed(rows[i]))
                self._pool.submit(row, first=True)
            return len(rows), None
        outcomes = self._half[number]
        outcomes[call.row] = answer
        if len(outcomes) < len(rows):
            return 0, None
        del self._half[number]
        seeds = [self._plan.row_seed(row) for row in rows]
        theta = theta_of(self._plan, number, self._given)
        return 0, block_of_rows(theta, seeds, [outcomes[row] for row in rows])
