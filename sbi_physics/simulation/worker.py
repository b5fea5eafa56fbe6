"""What runs in a worker process: load the simulator, then make one call after another.

Messages to the parent, over a pipe: ``("ready",)`` or ``("refused", text)`` once; then for each call ``("called",)``
when the simulator has returned, and ``("done", answer)`` when the answer is there.  A block that goes to a file is
written here, by the worker, and only its counts go back; ``("unwritten", text)`` says that it could not be written.
The worker leads a process group of its own, so that killing it also kills whatever programs the simulator started;
when the parent is gone it kills that group itself.
"""

import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sbi_physics.core.errors import StoreError
from sbi_physics.core.protocols import Simulator
from sbi_physics.simulation.blocks import Block, Outcome, block_of_call, call, one_thread
from sbi_physics.simulation.parts import Identity, write_block
from sbi_physics.simulation.resolve import load_file
from sbi_physics.store.layout import Status

__all__ = ["Call", "Job", "Written", "main"]


@dataclass(frozen=True)
class Call:
    """One call to make.

    Attributes:
        block: its block.
        row: None for the whole block, else the row of the run.
        theta: float32 ``(rows, P)``; None for a block of draws from the prior, which the worker makes itself.
        seed: of the call.
    """

    block: int
    row: int | None
    theta: NDArray[np.float32] | None
    seed: int


@dataclass(frozen=True)
class Job:
    """What a worker is started with.

    Attributes:
        files: modules made from files that the user named: path by module name.
        simulator: the pickled simulator.
        folder: where whole blocks are written; None to send them back.
        identity: the pickled identity of the run.
    """

    files: dict[str, str]
    simulator: bytes
    folder: Path | None
    identity: bytes


@dataclass(frozen=True)
class Written:
    """A block that is in its file: the number of rows by status."""

    counts: dict[Status, int]

    @classmethod
    def of(cls, block: Block) -> "Written":
        """Count the rows of a block."""
        return cls({code: int((block.rows.status == code).sum()) for code in Status})


def main(pipe: connection.Connection, job: Job) -> None:
    """Serve calls until the pipe closes."""
    with suppress(OSError):
        os.setsid()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # What simulators print must not mix with the result on standard output.
    sys.stdout.flush()
    os.dup2(2, 1)
    try:
        for name, path in job.files.items():
            load_file(Path(path), name)
        simulator: Simulator = pickle.loads(job.simulator)
        identity: Identity = pickle.loads(job.identity)
    except BaseException as error:
        pipe.send(("refused", f"{type(error).__name__}: {' '.join(str(error).split())}"))
        return
    pipe.send(("ready",))
    with one_thread(), suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            _serve(pipe, simulator, job.folder, identity)


def _serve(pipe: connection.Connection, simulator: Simulator, folder: Path | None, identity: Identity) -> None:
    task: Call = pipe.recv()
    theta = identity.plan.theta(task.block) if task.theta is None else task.theta
    outcome = call(simulator, theta, task.seed)
    pipe.send(("called",))
    answer: Outcome | Block | Written = outcome
    if task.row is None and outcome.x is not None:
        block = block_of_call(theta, task.seed, outcome)
        answer = block
        if folder is not None:
            try:
                write_block(folder, task.block, block, identity)
            except StoreError as error:
                pipe.send(("unwritten", str(error)))
                return
            answer = Written.of(block)
    pipe.send(("done", answer))


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.killpg(os.getpgrp(), signal.SIGKILL)
