"""A small pool of worker processes that survives what simulators do.

Each worker is a fresh process (spawn) with a pipe.  A call has a deadline: a worker that misses it is killed, with
all that it started, and replaced.  A worker that dies is noticed by its closed pipe and replaced; its call is made
once more elsewhere, in case the death was no fault of the simulator, before it counts as crashed.  A row of a block
that killed a worker gets no second chance.
"""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection
from types import TracebackType
from typing import Any

from sbi_physics.core.errors import SimulationError, StoreError, UsageError
from sbi_physics.simulation.blocks import Block, Outcome
from sbi_physics.simulation.worker import Call, Job, Written, main
from sbi_physics.store.layout import Status

__all__ = ["Answer", "CannotStart", "Pool"]

Answer = Outcome | Block | Written
_START_SECONDS = 300.0
_FAILED_STARTS = 3
_WATCH_SECONDS = 0.5


class CannotStart(UsageError):
    """No worker process could load the simulator."""


class _Worker:
    """One process and what it is doing."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=main, args=(theirs, job), name="sbi-physics-worker")
        self.process.start()
        theirs.close()
        self.ready = False
        self.call: Call | None = None
        self.deadline: float | None = time.monotonic() + _START_SECONDS

    def send(self, call: Call, timeout: float | None) -> None:
        self.call = call
        self.deadline = None if timeout is None else time.monotonic() + timeout
        with suppress(BrokenPipeError, ConnectionResetError):  # its death is noticed by the closed pipe
            self.pipe.send(call)

    def kill(self) -> None:
        """End the process and whatever it started."""
        with suppress(ProcessLookupError, PermissionError):
            # Before the worker leads a group of its own, its group is ours.
            if self.process.pid is not None and os.getpgid(self.process.pid) == self.process.pid:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.process.close()


class Pool:
    """Processes that make calls.

    Args:
        job: what each worker is started with.
        workers: number of processes.
        timeout: seconds that one call may take; None for no limit.

    Attributes:
        watch: called about twice a second, where it is set, with the process id of each worker; what it returns is why
            its call must end, None lets it go on.
    """

    def __init__(self, job: Job, workers: int, timeout: float | None) -> None:
        self._job, self._timeout = job, timeout
        self.watch: Callable[[int], str | None] | None = None
        self._waiting: deque[Call] = deque()
        self._died: set[tuple[int, int | None]] = set()
        self._failed_starts = 0
        self._ever_ready = False
        self._workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(_Worker(job))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    @property
    def hungry(self) -> bool:
        """Whether another call could start soon."""
        return len(self._waiting) < len(self._workers)

    @property
    def ready(self) -> bool:
        """Whether a worker has loaded the simulator."""
        return any(worker.ready for worker in self._workers)

    def submit(self, call: Call, *, first: bool = False) -> None:
        """Queue a call, at the front where `first`."""
        if first:
            self._waiting.appendleft(call)
        else:
            self._waiting.append(call)

    def wait(self) -> list[tuple[Call, Answer]]:
        """Wait until something happens; return the calls that are done, with their answers.

        Raises:
            CannotStart: the workers cannot load the simulator.
            SimulationError: workers that replace others die before they are ready.
            StoreError: a worker cannot write a block.
        """
        self._dispatch()
        done: list[tuple[Call, Answer]] = []
        deadlines = [w.deadline for w in self._workers if w.deadline is not None]
        pause = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        if self.watch is not None:
            pause = _WATCH_SECONDS if pause is None else min(pause, _WATCH_SECONDS)
        ready: Any = set(connection.wait([w.pipe for w in self._workers], pause))
        for i, worker in enumerate(self._workers):
            if worker.pipe in ready:
                done += self._listen(i, worker)
            elif worker.deadline is not None and time.monotonic() >= worker.deadline:
                done += self._late(i, worker)
            elif self.watch is not None:
                done += self._watched(i, worker)
        self._dispatch()
        return done

    def _dispatch(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.call is None and self._waiting:
                worker.send(self._waiting.popleft(), self._timeout)

    def _listen(self, i: int, worker: _Worker) -> list[tuple[Call, Answer]]:
        message: tuple[Any, ...] = ()
        with suppress(EOFError, OSError):
            message = worker.pipe.recv()
        if not message:
            return self._dead(i, worker)
        kind, *content = message
        if kind == "unwritten":
            raise StoreError(content[0])
        if kind == "refused":
            raise CannotStart(
                f"worker processes cannot load the simulator ({content[0]}); define it in a module or a file, "
                "or use workers=1"
            )
        if kind == "ready":
            worker.ready = self._ever_ready = True
            self._failed_starts = 0
            worker.deadline = None
        elif kind == "called":
            worker.deadline = None
        elif worker.call is not None:
            call, worker.call, worker.deadline = worker.call, None, None
            return [(call, content[0])]
        return []

    def _late(self, i: int, worker: _Worker) -> list[tuple[Call, Answer]]:
        call = worker.call
        if call is None:
            raise SimulationError(f"a worker process did not start within {_START_SECONDS:g} seconds")
        self._replace(i, worker)
        text = f"TimeoutError: the call took longer than {self._timeout:g} seconds"
        return [(call, Outcome(None, status=Status.TIMEOUT, error=text))]

    def _watched(self, i: int, worker: _Worker) -> list[tuple[Call, Answer]]:
        text = None if self.watch is None or worker.process.pid is None else self.watch(worker.process.pid)
        call = worker.call
        if text is None or call is None:
            return []
        self._replace(i, worker)
        return [(call, Outcome(None, status=Status.CRASHED, error=text))]

    def _dead(self, i: int, worker: _Worker) -> list[tuple[Call, Answer]]:
        worker.process.join(5.0)
        code, call = worker.process.exitcode, worker.call
        if not worker.ready:
            self._failed_starts += 1
            if not self._ever_ready:
                raise CannotStart(
                    f"a worker process ended before it was ready ({_how(code)}); in a script, call simulate under "
                    "if __name__ == '__main__', or use workers=1"
                )
            if self._failed_starts >= _FAILED_STARTS:
                raise SimulationError(f"{_FAILED_STARTS} worker processes in a row did not start ({_how(code)})")
        self._replace(i, worker)
        if call is None:
            return []
        if not {(call.block, call.row), (call.block, None)} & self._died:
            self._died.add((call.block, call.row))
            self.submit(call, first=True)
            return []
        text = f"the simulator ended its process ({_how(code)})"
        return [(call, Outcome(None, status=Status.CRASHED, error=text))]

    def _replace(self, i: int, worker: _Worker) -> None:
        worker.kill()
        self._workers[i] = _Worker(self._job)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
