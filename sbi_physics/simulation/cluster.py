"""Blocks made by the workers of a Dask scheduler.

The driver keeps two tasks in flight for each thread of the cluster and no more.  A task is as many blocks as take about
two seconds (longer on large clusters, so that the scheduler sees a hundred tasks a second at most), measured as the
run goes; a block, its seed and its bytes stay what they are in a local run.  Workers write blocks where `out` will
stand, and the scheduler carries numbers of blocks and counts (see `remote` for what happens in a worker).

A task that is lost with its worker is sent again by Dask, up to its setting ``allowed-failures``.  A block for which
that was not enough is made when all else is done, alone; where it still ends workers, row by row, and a row that does
is recorded as crashed.  Without its scheduler a run ends with an error, and what is written stays for the next call.
"""

import logging
import queue
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sbi_physics.core.errors import SBIPhysicsError, SimulationError, StoreError, UsageError
from sbi_physics.simulation.batch_system import batch_cluster
from sbi_physics.simulation.blocks import Outcome, Plan, block_of_rows
from sbi_physics.simulation.maker import Made
from sbi_physics.simulation.parts import Identity
from sbi_physics.simulation.remote import Parcel, folder_is_missing, make_blocks, make_row
from sbi_physics.simulation.worker import Call, Job
from sbi_physics.store.layout import Status

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Farm", "check_folder", "connected"]

_log = logging.getLogger(__name__)
_TASK_SECONDS = 2.0
_TASKS_A_SECOND = 100.0
_BLOCKS_IN_A_TASK = 512
_TRIES = 3
_LOOK_SECONDS = 2.0
_ANSWER_SECONDS = 30.0
# A batch system may keep workers waiting for long, but not for ever.
_WAIT_SECONDS = 24 * 3600.0


@contextmanager
def connected(cluster: Any) -> "Iterator[Client]":
    """A client of a cluster: an address, a `distributed.Client`, an object with workers, or a description of jobs.

    Raises:
        UsageError: the extra is missing, it is none of these, or no scheduler answers.
    """
    try:
        import distributed
    except ImportError as error:
        raise UsageError("cluster: needs the extra 'cluster': pip install 'sbi-physics[cluster]'") from error
    if isinstance(cluster, Mapping):
        with batch_cluster(cluster) as made, connected(made) as client:
            yield client
        return
    if isinstance(cluster, distributed.Client):
        if cluster.asynchronous or cluster.status != "running":
            raise UsageError(f"cluster: expected a client that is connected and not asynchronous, got {cluster}")
        yield cluster
        return
    if not (isinstance(cluster, str) and "://" in cluster) and not hasattr(cluster, "scheduler_address"):
        raise UsageError(
            "cluster: expected an address such as 'tcp://host:8786', a distributed.Client, a Dask cluster or a "
            f"dictionary that describes one (extra 'cluster'), got {cluster!r}"
        )
    try:
        client = distributed.Client(cluster, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        where = cluster if isinstance(cluster, str) else cluster.scheduler_address
        raise UsageError(f"cluster: no scheduler answers at {where}: {' '.join(str(error).split())}") from error
    try:
        yield client
    finally:
        # A scheduler that is gone is no news here.
        with suppress(Exception):
            client.close()


@dataclass
class _Task:
    """What is in flight: blocks, or one row."""

    numbers: tuple[int, ...]
    row: Call | None = None
    tries: int = 0


class _Killed(Exception):
    """A task ended every worker that it was given to."""


class Farm:
    """Makes blocks with the workers of a scheduler.

    Args:
        client: connected.
        job: what a child process of a worker is started with.
        sources: text of the files that the user named, by module name.
        plan: of the run.
        timeout: seconds that one call of the simulator may take.
    """

    def __init__(
        self, client: "Client", job: Job, sources: Mapping[str, str], plan: Plan, timeout: float | None
    ) -> None:
        self._client, self._plan = client, plan
        self._address = client.scheduler.address if client.scheduler is not None else "?"
        self._run = uuid.uuid4().hex
        parcel = Parcel(self._run, job, dict(sources), timeout)
        # A task, not scattered data: Dask makes it again when the worker that holds it goes.
        self._parcel = client.submit(_itself, parcel, key=f"parcel-{self._run}", pure=False)
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._flying: dict[Any, tuple[Future, _Task]] = {}
        self._again: deque[_Task] = deque()
        self._suspects: list[int] = []
        self._sent = 0
        self._threads, self._looked = 0, -1e9
        self._alone_since: float | None = None
        # Seconds and blocks of the last tasks, those before with less and less weight.
        self._measured = 0.0, 0.0

    def make(self, todo: list[int]) -> Iterator[tuple[int, Made]]:
        """Make the blocks `todo`: yields each when it is made, in any order.

        Raises:
            SimulationError: the scheduler is gone or was without workers for a day, or a task failed time after time.
            StoreError: a worker cannot see the folder or write there.
            CannotStart: a worker cannot load the simulator.
        """
        left = deque(todo)
        try:
            while left or self._flying or self._again:
                self._feed(left)
                for future in self._landed():
                    yield from self._take(*self._flying.pop(future.key)).items()
            for number in self._suspects:
                yield number, self._alone(number)
        finally:
            with suppress(Exception):
                self._client.cancel([future for future, _ in self._flying.values()], force=True)
            self._flying.clear()

    def _feed(self, left: deque[int]) -> None:
        """Keep two tasks in flight for each thread."""
        self._look()
        while len(self._flying) < 2 * self._threads and (left or self._again):
            if self._again:
                self._send(self._again.popleft())
            else:
                size = self._size(len(left))
                self._send(_Task(tuple(left.popleft() for _ in range(size))))

    def _size(self, left: int) -> int:
        """Blocks in the next task: as many as take the time meant for one, and a fair share of what is left."""
        if not self._measured[0]:
            return 1
        seconds, blocks = self._measured
        wanted = blocks / max(seconds, 1e-9) * max(_TASK_SECONDS, self._threads / _TASKS_A_SECOND)
        share = max(left / (2 * self._threads), 0.1 * wanted)
        return max(1, min(int(wanted), int(share), _BLOCKS_IN_A_TASK, left))

    def _look(self) -> None:
        """Count the threads of the cluster from time to time."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._check_scheduler()
        try:
            self._threads = sum(self._client.nthreads().values())
        except (OSError, TimeoutError) as error:
            raise self._lost() from error
        self._looked = time.monotonic()
        if self._threads:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = self._looked
            _log.warning("cluster: %s has no workers; waiting for some", self._address)
        elif self._looked - self._alone_since > _WAIT_SECONDS:
            raise SimulationError(
                f"cluster: {self._address} has had no workers for {_WAIT_SECONDS / 3600:.3g} hours; "
                "what was made is kept: call again when there are some"
            )

    def _send(self, task: _Task) -> None:
        self._sent += 1
        key = f"simulate-{self._run}-{self._sent}"
        future: Future[Any]
        if task.row is None:
            given = None if self._plan.given is None else {number: self._plan.theta(number) for number in task.numbers}
            future = self._client.submit(make_blocks, self._parcel, list(task.numbers), given, key=key, pure=False)
        else:
            future = self._client.submit(make_row, self._parcel, task.row, key=key, pure=False)
        self._flying[future.key] = future, task
        future.add_done_callback(self._done.put)

    def _landed(self) -> "list[Future]":
        """The futures that have come to an end, after a second at most."""
        futures = []
        with suppress(queue.Empty):
            futures.append(self._done.get(timeout=1.0))
            while True:
                futures.append(self._done.get_nowait())
        self._check_scheduler()
        return [future for future in futures if future.key in self._flying]

    def _take(self, future: "Future", task: _Task) -> dict[int, Made]:
        """What a task made; nothing yet where it comes again."""
        try:
            report = self._answer(future, task)
        except _Killed:
            _log.warning("cluster: %s ended the workers they were given to; each is made alone later", _words(task))
            self._suspects += task.numbers
            return {}
        if report is None:
            return {}
        seconds, blocks = self._measured
        self._measured = 0.7 * seconds + report.seconds, 0.7 * blocks + len(task.numbers)
        return dict(report.made)

    def _answer(self, future: "Future", task: _Task) -> Any:
        """The result of a task; None where it comes again.

        Raises:
            _Killed: it ended its workers.
            SBIPhysicsError: the run cannot go on.
        """
        from distributed import KilledWorker

        try:
            return future.result(timeout=_ANSWER_SECONDS)
        except SBIPhysicsError:
            raise
        except KilledWorker as error:
            raise _Killed from error
        except TimeoutError:
            # Its result went with a worker, and Dask makes it again.
            self._flying[future.key] = future, task
            future.add_done_callback(self._done.put)
        except Exception as error:
            self._check_scheduler()
            task.tries += 1
            if task.tries >= _TRIES:
                text = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise SimulationError(f"cluster: {_words(task)} failed {_TRIES} times on workers; {text}") from error
            self._again.append(task)
        return None

    def _alone(self, number: int) -> Made:
        """Make a block that ended workers with nothing beside it, and row by row where it does so again."""
        with suppress(_Killed):
            made: Made = self._only(_Task((number,))).made[number]
            return made
        theta, rows = self._plan.theta(number), self._plan.rows(number)
        seeds = [self._plan.row_seed(row) for row in rows]
        outcomes = []
        for i, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
            try:
                outcomes.append(self._only(_Task((number,), Call(number, row, theta[i : i + 1], seed))))
            except _Killed:
                text = "the simulator ended the Dask workers that it was given to"
                outcomes.append(Outcome(None, status=Status.CRASHED, error=text))
        return block_of_rows(theta, seeds, outcomes)

    def _only(self, task: _Task) -> Any:
        """The result of a task that is alone in flight."""
        self._again.append(task)
        while True:
            self._feed(deque())
            for future in self._landed():
                answer = self._answer(*self._flying.pop(future.key))
                if answer is not None:
                    return answer

    def _check_scheduler(self) -> None:
        if self._client.status != "running":
            raise self._lost()

    def _lost(self) -> SimulationError:
        return SimulationError(
            f"cluster: the scheduler at {self._address} is gone; blocks that are written are kept, and the same call "
            "with a scheduler that runs goes on from there"
        )


def check_folder(client: "Client", folder: Path, identity: Identity) -> None:
    """Look on all workers there are now whether they see the folder of a run.

    Raises:
        StoreError: some do not.
        UsageError: some cannot import this package.
    """
    answers = client.run(folder_is_missing, folder, identity.to_dict(), on_error="return")
    blind = sorted(address for address, answer in answers.items() if answer is True)
    if blind:
        raise StoreError(
            f"{folder}: cannot be seen or written by {len(blind)} of {len(answers)} Dask workers ({blind[0]}); "
            "out must lie where driver and workers share files"
        )
    lacking = {address: answer for address, answer in answers.items() if isinstance(answer, ImportError)}
    for address, answer in lacking.items():
        raise UsageError(f"cluster: the worker {address} lacks packages: {answer}; see sbi-physics doctor --cluster")


def _itself(parcel: Parcel) -> Parcel:
    return parcel


def _words(task: _Task) -> str:
    if task.row is not None:
        return f"row {task.row.row}"
    return f"block {task.numbers[0]}" if len(task.numbers) == 1 else f"blocks {task.numbers[0]} to {task.numbers[-1]}"
