"""What runs in a Dask worker: a child process makes the blocks of a task and writes them; only counts go back.

A simulator never runs in the Dask worker itself, but in a child of the local kind (see `pool`), one for each thread,
kept from task to task.  So a simulation that hangs is killed after its time-out, one that dies or takes more memory
than its share costs a child and not the worker, and a task that nobody waits for any more ends within a second.
Parameters, seeds and bytes are those of a local run: a block that is there already is checked and not made again.
"""

import json
import multiprocessing
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_physics.core.errors import SBIPhysicsError, StoreError
from sbi_physics.simulation.blocks import Outcome
from sbi_physics.simulation.maker import Made, Maker, theta_of
from sbi_physics.simulation.parts import Identity, whole_block, write_block
from sbi_physics.simulation.pool import Pool
from sbi_physics.simulation.resolve import load_file, resolve_simulator
from sbi_physics.simulation.worker import Call, Job, Written

__all__ = ["Parcel", "Report", "folder_is_missing", "make_blocks", "make_row", "why_not_loaded"]

_IDLE_SECONDS = 15.0
_VISIBLE_SECONDS = 5.0


@dataclass(frozen=True)
class Parcel:
    """What a run sends to each Dask worker once.

    Attributes:
        run: a name that no other run has.
        job: what a child process is started with.
        sources: text of the files that the user named, by module name.
        timeout: seconds that one call of the simulator may take.
    """

    run: str
    job: Job
    sources: dict[str, str]
    timeout: float | None


@dataclass(frozen=True)
class Report:
    """What a task made.

    Attributes:
        made: by block: the counts of a block that is in its file, the block itself where there is no folder.
        seconds: that it took, without the start of the child process.
    """

    made: dict[int, Made]
    seconds: float


class _Abandoned(Exception):
    """Nobody waits for this task any more."""


def make_blocks(parcel: Parcel, numbers: list[int], given: Mapping[int, NDArray[np.float32]] | None) -> Report:
    """Make blocks, the body of a task.

    Args:
        parcel: of the run.
        numbers: of the blocks.
        given: parameters by block where the user gave them.

    Raises:
        CannotStart, SimulationError, StoreError: as of `Pool.wait`; the message names the worker.
    """
    with _errors_named(), _child(parcel) as (pool, identity):
        start, folder, made = time.monotonic(), parcel.job.folder, dict[int, Made]()
        if folder is not None:
            for number in numbers:
                # A task of a worker that died, or of a driver that did, may have come as far as this.
                there = whole_block(folder, number, partial(theta_of, identity.plan, number, given))
                if there is not None:
                    made[number] = Written.of(there)
        left = [number for number in numbers if number not in made]
        for number, one in Maker(pool, identity.plan, given).make(left):
            if folder is not None and not isinstance(one, Written):
                write_block(folder, number, one, identity)
                one = Written.of(one)
            made[number] = one
        return Report(made, time.monotonic() - start)


def make_row(parcel: Parcel, call: Call) -> Outcome:
    """Make one row of a block that ended Dask workers before."""
    with _errors_named(), _child(parcel) as (pool, _):
        pool.submit(call)
        while True:
            for _, answer in pool.wait():
                if not isinstance(answer, Outcome):
                    raise TypeError(f"expected the outcome of a row, got {type(answer).__name__}")
                return answer


def why_not_loaded(spec: str, sources: Mapping[str, str]) -> str:
    """Why this worker cannot load the simulator that `spec` names; empty where it can.

    Args:
        spec: the name of an installed one; where there are `sources`, what a file of the user defines.
        sources: text of the files that the user named, by path.
    """
    try:
        for path, text in sources.items():
            spec = f"{_at_hand(path, text)}:{spec.rpartition(':')[2]}"
        resolve_simulator(spec)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def folder_is_missing(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether this worker does not see the folder of a run; network file systems get some seconds."""
    end = time.monotonic() + _VISIBLE_SECONDS
    while True:
        with suppress(OSError, ValueError):
            there = json.loads((folder / "run.json").read_text())
            # It says more than the identity.
            if {key: there.get(key) for key in identity} == identity and os.access(folder, os.W_OK):
                return False
        if time.monotonic() > end:
            return True
        time.sleep(0.2)


@contextmanager
def _errors_named() -> Iterator[None]:
    """Add the address of this worker to the message of an error of ours."""
    try:
        yield
    except SBIPhysicsError as error:
        from distributed import get_worker

        raise type(error)(f"{error} (Dask worker {get_worker().address})") from error


_lock = threading.Lock()
_idle: dict[str, list[tuple[Pool, threading.Timer]]] = {}
_loaded: dict[str, str] = {}
_copies: dict[tuple[str, str], tempfile.TemporaryDirectory[str]] = {}


@contextmanager
def _child(parcel: Parcel) -> Iterator[tuple[Pool, Identity]]:
    """A pool of one process, ready, for the thread of this task; one that an error went through is not used again."""
    with _lock:
        files = _load(parcel)
        identity: Identity = pickle.loads(parcel.job.identity)
    folder = parcel.job.folder
    if folder is not None and folder_is_missing(folder, identity.to_dict()):
        raise StoreError(f"{folder}: cannot be seen or written here; out must lie where driver and workers share files")
    pool = _taken(parcel.run) or _started(replace(parcel.job, files=files), parcel.timeout)
    pool.watch = _watch()
    try:
        while not pool.ready:
            pool.wait()
        yield pool, identity
    except BaseException:
        pool.close()
        raise
    _put_back(parcel.run, pool)


def _load(parcel: Parcel) -> dict[str, str]:
    """Load the files of the user, whose classes may stand in a prior; return where they are on this machine."""
    files = {}
    for name, text in parcel.sources.items():
        files[name] = _at_hand(parcel.job.files[name], text)
        if _loaded.get(name) != text:
            load_file(Path(files[name]), name)
            _loaded[name] = text
    return files


def _at_hand(path: str, text: str) -> str:
    """The path itself where it holds the text on this machine, too, else that of a copy."""
    with suppress(OSError, UnicodeDecodeError):
        if Path(path).read_text(encoding="utf-8") == text:
            return path
    if (path, text) not in _copies:
        folder = tempfile.TemporaryDirectory(prefix="sbi-physics-")
        (Path(folder.name) / Path(path).name).write_text(text, encoding="utf-8")
        _copies[path, text] = folder
    return str(Path(_copies[path, text].name) / Path(path).name)


def _started(job: Job, timeout: float | None) -> Pool:
    process = multiprocessing.current_process()
    if process.daemon:
        # Dask's nanny marks its worker so; our children need no such care, they go when their parent does.
        process.daemon = False
    return Pool(job, 1, timeout)


def _taken(run: str) -> Pool | None:
    with _lock:
        if not _idle.get(run):
            return None
        pool, timer = _idle[run].pop()
    timer.cancel()
    return pool


def _put_back(run: str, pool: Pool) -> None:
    timer = threading.Timer(_IDLE_SECONDS, _expire, (run, pool))
    timer.daemon = True
    with _lock:
        _idle.setdefault(run, []).append((pool, timer))
    timer.start()


def _expire(run: str, pool: Pool) -> None:
    with _lock:
        kept = [entry for entry in _idle.get(run, []) if entry[0] is not pool]
        gone = len(kept) < len(_idle.get(run, []))
        _idle[run] = kept
        if not kept:
            del _idle[run]
    if gone:
        pool.close()


def _close_all() -> None:
    with _lock:
        pools = [pool for entries in _idle.values() for pool, _ in entries]
        _idle.clear()
    for pool in pools:
        pool.close()


# Before multiprocessing waits for its children at the end of the process.
Finalize(None, _close_all, exitpriority=100)


def _watch() -> Any:
    """What looks at the child of this task: raises where nobody waits for it, says where it takes too much memory."""
    import psutil
    from distributed import get_worker

    worker: Any = get_worker()
    key = worker.get_current_task()
    limit = worker.memory_manager.memory_limit
    share = limit / worker.state.nthreads if limit else None

    def watch(pid: int) -> str | None:
        task = worker.state.tasks.get(key)
        if task is None or task.state in ("cancelled", "released", "forgotten"):
            raise _Abandoned
        if share is None:
            return None
        used = 0
        with suppress(psutil.Error):
            child = psutil.Process(pid)
            for process in (child, *child.children(recursive=True)):
                with suppress(psutil.Error):
                    used += process.memory_info().rss
        if used > share:
            return (
                f"the call took more than {share / 1e6:.0f} MB, the share of a thread in the memory limit of its worker"
            )
        return None

    return watch
