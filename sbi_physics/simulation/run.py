"""`simulate`: run a simulator many times, on the cores of this machine or of a cluster.

The rows come in fixed seeded blocks (see `blocks`), each made in this process, in one of a pool of workers (see
`pool`) or by a cluster (see `cluster`), and collected in memory or in a folder beside the file to be (see `parts`).
Same simulator, n and seed give the same bytes, whatever the number of workers and however often the run was killed and
taken up again.  Only the blocks in the making are in memory, a few megabytes each; the folder and the file are both on
the disk for a moment.
"""

import dataclasses
import hashlib
import logging
import math
import multiprocessing
import pickle
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbi_physics.core.checks import as_tensor, batch_of, finite, positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.core.progress import Advance, progress_bar
from sbi_physics.core.protocols import Simulator
from sbi_physics.core.random import check_seed
from sbi_physics.core.resources import cores
from sbi_physics.simulation.blocks import (
    Block,
    Plan,
    conform,
    default_block_size,
    one_thread,
    run_block,
)
from sbi_physics.simulation.cluster import Farm, check_folder, connected
from sbi_physics.simulation.maker import Made, Maker
from sbi_physics.simulation.parts import Identity, Parts, finished, parts_folder, write_block
from sbi_physics.simulation.pool import CannotStart, Pool
from sbi_physics.simulation.resolve import resolve_simulator, simulator_name, user_files
from sbi_physics.simulation.worker import Job, Written
from sbi_physics.store.layout import Rows, Status
from sbi_physics.store.simulations import Simulations

__all__ = ["run_identity", "simulate"]

_log = logging.getLogger(__name__)
_WORTH_A_POOL_SECONDS = 10.0


def simulate(
    simulator: Simulator | str,
    n: int,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    cluster: Any = None,
    timeout: float | None = None,
    block_size: int | None = None,
    theta: Any = None,
    progress: bool = True,
) -> Simulations:
    """Draw n rows of parameters from the prior of a simulator and simulate each.

    A simulation that raises, hangs, gives NaN or kills its process is recorded with its status and the text of its
    error; it never stops the run.

    Args:
        simulator: a simulator, the name of an installed one, ``"path/file.py:Class"``, ``"path/program.toml"`` or
            ``"path/surrogate.safetensors"``.  It may have an attribute ``rows_at_once``, how many rows it makes best in
            one call, and ``device``, where it computes.
        n: number of rows.
        out: HDF5 file to write; a run that was killed is taken up where it stood, a finished one is opened.  None
            keeps the result in memory.
        seed: integer that decides every random number.
        workers: number of processes; 1 runs in this process (a simulator that kills its process then ends the run);
            None starts one for each core when the run would take more than ten seconds, unless the simulator computes
            on a GPU.  Each computes with one thread, and takes about 0.3 GB of memory.
        cluster: a Dask cluster to simulate on, instead of this machine (extra ``cluster``): the address of its
            scheduler, as ``"tcp://host:8786"``, a ``distributed.Client``, a cluster object, or a dictionary that
            describes the jobs of a batch system (`simulation.batch_system`).  Its workers write to `out` themselves,
            which must lie where they and this process share files.  With 50 jobs of four cores::

                farm = {"system": "slurm", "jobs": 50, "cores": 4, "memory": "8GB", "walltime": "04:00:00"}
                sp.simulate("decay.py:Decay", 10_000_000, out="/shared/decay.h5", timeout=60, cluster=farm)
        timeout: seconds that one call of the simulator may take, for a block or, where that fails, for a single row.
        block_size: rows in a block, the unit of work, of writing and of resuming; chosen from n where None.
        theta: ``(n, P)`` to simulate at, instead of draws from the prior.
        progress: whether to show a bar where standard error is a terminal.

    Raises:
        UsageError: an argument is wrong, or the simulator cannot be found or sent to worker processes.
        StoreError: `out` holds another run, is in use by another process, or cannot be written, or by a worker.
        SupportError: a row of `theta` is outside the prior.
        SimulationError: the scheduler of the cluster is gone, or its tasks fail; what is written is kept.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # Not an error with a traceback: who started the worker says what is wrong.
        raise SystemExit("a worker process runs the script again; call simulate under if __name__ == '__main__'")
    if cluster is not None and workers is not None:
        raise UsageError("workers: a cluster has its own; give either workers or cluster")
    workers = None if workers is None else positive_integer(workers, "workers")
    timeout = None if timeout is None else _seconds(timeout)
    model = resolve_simulator(simulator)
    if workers is None and torch.device(getattr(model, "device", "cpu")).type != "cpu":
        workers = 1  # several processes would share the one device
    identity = _identity(model, n, seed, block_size, theta)
    plan = identity.plan
    with one_thread(), nullcontext() if cluster is None else connected(cluster) as client:
        means = _Means(workers, timeout, client)
        if out is None:
            run = _Run(model, identity, None, progress)
            run.work(list(range(plan.blocks)), means)
            return _warned(run.collect(), model)
        return _warned(_into_file(model, identity, Path(out), means, progress), model)


@dataclasses.dataclass(frozen=True)
class _Means:
    """What a run is made with: processes here, or the workers of a client."""

    workers: int | None
    timeout: float | None
    client: Any = None


def run_identity(simulator: Simulator, n: int, *, seed: int = 0, theta: Any = None) -> dict[str, Any]:
    """What decides every byte of a run of `simulate`, in types that JSON knows.

    Raises:
        UsageError, SupportError: as of `simulate`.
    """
    return _identity(resolve_simulator(simulator), n, seed, None, theta).to_dict()


def _identity(model: Simulator, n: int, seed: int, block_size: int | None, theta: Any) -> Identity:
    plan, source = _plan(model, n, seed, block_size, theta)
    return Identity(plan, simulator_name(model), source)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UsageError(f"timeout: expected a number of seconds above 0, got {value!r}")
    return float(value)


def _plan(model: Simulator, n: int, seed: int, block_size: int | None, theta: Any) -> tuple[Plan, str]:
    n, parameters = positive_integer(n, "n"), model.parameters
    if block_size is None:
        size = default_block_size(n, getattr(model, "rows_at_once", None))
    else:
        size = min(n, positive_integer(block_size, "block_size"))
    if theta is None:
        _ = parameters.prior  # a prior that is not there is an error now, not in a worker
        return Plan(parameters, n, check_seed(seed), size), "prior"
    values = finite(batch_of(as_tensor(theta, "theta"), (len(parameters),), "theta"), "theta").cpu()
    if len(values) != n:
        raise UsageError(f"theta: expected n = {n} rows, got {len(values)}")
    given = np.ascontiguousarray(parameters.check_within(values).numpy(), dtype=np.float32)
    return Plan(parameters, n, check_seed(seed), size, given), f"sha256:{hashlib.sha256(given.tobytes()).hexdigest()}"


def _into_file(model: Simulator, identity: Identity, out: Path, means: _Means, progress: bool) -> Simulations:
    done = finished(out, identity)
    if done is not None and not parts_folder(out).exists():
        _log.info("%s is complete: nothing is simulated", out)
        _warn_of_changes(model, out)
        return done
    parts = Parts(out, identity, _code_of(model))
    with parts.locked():
        # Looked at again, now that nobody else can finish it: a kill may also have come just before the clearing up.
        done = finished(out, identity)
        if done is None:
            blocks = set(parts.resume())
            if blocks:
                _log.info("%s: resuming, %d of %d blocks are done", out, len(blocks), identity.plan.blocks)
            if means.client is not None:
                check_folder(means.client, parts.folder, identity)
            run = _Run(model, identity, parts.folder.resolve(), progress)
            run.work([b for b in range(identity.plan.blocks) if b not in blocks], means)
            if means.client is not None:
                parts.await_blocks()
            with progress_bar(identity.plan.n, f"writing {out.name}", enabled=progress) as advance:
                parts.merge(advance)
        parts.remove()
    return Simulations.open(out)


def _code_of(model: Simulator) -> str | None:
    """A checksum of the user's file that a simulator comes from."""
    path = user_files().get(type(model).__module__)
    if path is None or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _warn_of_changes(model: Simulator, out: Path) -> None:
    """Say so where the file of the simulator is newer than what was made with it."""
    path = user_files().get(type(model).__module__)
    if path is not None and Path(path).exists() and Path(path).stat().st_mtime > out.stat().st_mtime:
        _log.warning(
            "%s was changed after %s was begun, whose simulations may be of the code before; remove that file, or "
            "choose another, to simulate with the code as it is",
            Path(path).name,
            out,
        )


def _warned(simulations: Simulations, model: Simulator) -> Simulations:
    counts = simulations.counts()
    # A simulator may say that NaN marks what it did not measure: its rows are not finite, and good.
    good = counts["ok"] + (counts["nonfinite"] if getattr(model, "missing", False) else 0)
    if not good:
        first = next(iter(simulations.errors.items()), None)
        reason = f"; row {first[0]}: {first[1]}" if first else ""
        if "values to unpack" in reason:
            reason += "; theta has one row for each simulation: theta.unbind(-1) gives its columns"
        _log.warning("none of %d simulations succeeded%s", len(simulations), reason)
    return simulations


class _Run:
    """The blocks of one run on their way, into a folder or into memory."""

    def __init__(self, simulator: Simulator, identity: Identity, folder: Path | None, progress: bool) -> None:
        self.simulator, self.identity, self.plan, self.folder = simulator, identity, identity.plan, folder
        self._blocks: dict[int, Block] = {}
        self._finished: set[int] = set()
        self._progress, self._failures = progress, 0
        self._advance: Advance

    def work(self, todo: list[int], means: _Means) -> None:
        """Make the blocks `todo`."""
        left, workers, timeout = deque(todo), means.workers, means.timeout
        with progress_bar(self.plan.n, self.identity.simulator, enabled=self._progress) as self._advance:
            self._advance(self.plan.n - sum(len(self.plan.rows(b)) for b in todo))
            if means.client is not None:
                self._far(todo, means)
                return
            if timeout is None and workers == 1:
                self._here(left, math.inf)
            elif timeout is None and workers is None:
                self._here(left, _WORTH_A_POOL_SECONDS if cores() > 1 else math.inf)
            if not left:
                return
            try:
                self._there(left, workers or cores(), timeout)
            except CannotStart as error:
                if workers is not None or timeout is not None:
                    raise
                _log.warning("simulating in one process: %s", error)
                self._here(deque(b for b in todo if b not in self._finished), math.inf)

    def collect(self) -> Simulations:
        """The run in memory."""
        blocks = [self._blocks[b] for b in range(self.plan.blocks)]
        form = next((block.form for block in blocks if block.form is not None), None)
        header = self.identity.header(form)
        rows = [conform(block, header, form) for block in blocks]
        starts = [self.plan.rows(b).start for b in range(self.plan.blocks)]
        errors = {
            start + row: text for start, r in zip(starts, rows, strict=True) for row, text in sorted(r.errors.items())
        }
        whole = Rows(
            np.concatenate([r.theta for r in rows]),
            {name: np.concatenate([r.x[name] for r in rows]) for name in header.shapes},
            np.concatenate([r.status for r in rows]),
            np.concatenate([r.seed for r in rows]),
            errors,
        )
        return Simulations(header, self.plan.n, rows=whole)

    def _here(self, left: deque[int], limit: float) -> None:
        """Make blocks in this process, while the rest would take less than `limit` seconds."""
        start, count = time.monotonic(), 0
        while left:
            if count and (time.monotonic() - start) / count * len(left) > limit:
                return
            number = left.popleft()
            self._keep(number, run_block(self.simulator, self.plan, number))
            count += 1

    def _there(self, left: deque[int], workers: int, timeout: float | None) -> None:
        """Make blocks in worker processes."""
        with Pool(self._job(), min(workers, len(left) * self.plan.block_size), timeout) as pool:
            for number, made in Maker(pool, self.plan).make(left):
                self._take(number, made)

    def _far(self, todo: list[int], means: _Means) -> None:
        """Make blocks with the workers of a cluster."""
        import cloudpickle

        # By value what stands in the user's own script, which workers do not have.
        job = self._job(cloudpickle.dumps)
        sources = {module: Path(path).read_text(encoding="utf-8") for module, path in job.files.items()}
        for number, made in Farm(means.client, job, sources, self.plan, means.timeout).make(todo):
            self._take(number, made)

    def _take(self, number: int, made: Made) -> None:
        if isinstance(made, Written):
            self._count(number, made.counts)
        else:
            self._keep(number, made)

    def _keep(self, number: int, block: Block) -> None:
        if self.folder is None:
            self._blocks[number] = block
        else:
            write_block(self.folder, number, block, self.identity)
        self._count(number, Written.of(block).counts)

    def _count(self, number: int, counts: Mapping[Status, int]) -> None:
        rows = len(self.plan.rows(number))
        self._finished.add(number)
        self._failures += rows - counts[Status.OK]
        self._advance(rows, f"{self._failures} failed" if self._failures else "")

    def _job(self, dumps: Callable[[Any], bytes] = pickle.dumps) -> Job:
        try:
            simulator = dumps(self.simulator)
            # A worker is told theta with each call.
            plan = dataclasses.replace(self.plan, given=None)
            identity = dumps(Identity(plan, self.identity.simulator, self.identity.source))
        except Exception as error:
            detail = " ".join(str(error).split())
            raise CannotStart(
                f"simulator: cannot be sent to worker processes ({detail}); define it in a module or a file, "
                "or use workers=1"
            ) from error
        files = {module: path for module, path in user_files().items() if module.encode() in simulator}
        return Job(files, simulator, self.folder, identity)
