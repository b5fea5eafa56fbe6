"""The folder of a run in progress, ``<out>.parts``, and how it becomes one file.

=====================  =================================================================
``lock``               held (flock) by the process that works on the run
``run.json``           the identity of the run: what decides every byte of its result
``block-000012.h5``    the rows of block 12: a whole file of simulations, or absent
=====================  =================================================================

A run that was killed leaves this folder; the same command takes up the blocks that are there.  When all are, they are
streamed into one file, which is renamed to ``<out>``, and the folder goes.  A block carries checksums and is read
through before it is taken up, so that it need not be flushed to the disk: where the power fails, blocks of the last
half minute may be missing or damaged, and are made again.
"""

import dataclasses
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbi_physics.core.errors import StoreError
from sbi_physics.core.progress import Advance
from sbi_physics.simulation.blocks import Block, Plan, conform, header_of
from sbi_physics.store import layout
from sbi_physics.store.atomic import atomic_path
from sbi_physics.store.layout import Header, Rows, Status
from sbi_physics.store.simulations import Simulations

__all__ = [
    "Identity",
    "Parts",
    "Progress",
    "finished",
    "progress_of",
    "read_block",
    "whole_block",
    "write_block",
]

_log = logging.getLogger(__name__)
_VISIBLE_SECONDS = 60.0


class Identity:
    """What decides every byte of the result of a run.

    Args:
        plan: rows, seed and blocks.
        simulator: name of the simulator.
        source: where theta comes from: ``"prior"``, or the checksum of what the user gave.
    """

    def __init__(self, plan: Plan, simulator: str, source: str) -> None:
        self.plan, self.simulator, self.source = plan, simulator, source

    def to_dict(self) -> dict[str, Any]:
        """The identity in JSON types."""
        return {
            "n": self.plan.n,
            "seed": self.plan.seed,
            "block_size": self.plan.block_size,
            "simulator": self.simulator,
            "theta": self.source,
            "parameters": self.plan.parameters.to_dict(),
            "schema": layout.SCHEMA,
        }

    def header(self, form: tuple[Any, ...] | None) -> Header:
        """The header of a file of this run."""
        return header_of(self.plan, self.simulator, self.source, form)

    def check(self, other: dict[str, Any], path: Path) -> None:
        """Raise `StoreError` naming the keys in which another identity, found at `path`, differs."""
        own = self.to_dict()
        differ = [key for key in own if other.get(key) != own[key]]
        if "n" in differ:  # which the default size of a block follows
            differ = [key for key in differ if key != "block_size"]
        if differ:
            advice = "choose another name or remove it"
            if differ == ["n"] and isinstance(there := other.get("n"), int) and there < self.plan.n:
                advice = (
                    f"for {self.plan.n - there} more, simulate them to another file with another --seed, and join both "
                    "with `sbi-physics store merge`"
                )
            words = "; ".join(
                key if key == "parameters" else f"{key}: {other.get(key)!r} there, {own[key]!r} now" for key in differ
            )
            raise StoreError(f"{path}: holds another run ({words}); {advice}")


def finished(out: Path, identity: Identity) -> Simulations | None:
    """The finished file of the run; None where there is none yet.

    Raises:
        StoreError: `out` is there and is damaged, or is the result of another run.
    """
    if not out.exists():
        return None
    simulations = Simulations.open(out)
    header = simulations.header
    there = Identity(
        Plan(header.parameters, len(simulations), header.seed, header.block_size), header.simulator, header.theta
    )
    identity.check(there.to_dict(), out)
    return simulations


def write_block(folder: Path, number: int, block: Block, identity: Identity) -> None:
    """Write the file of a block, whole or not at all."""
    path = _block_path(folder, number)
    # Processes of two machines may have the same number.
    temporary = folder / f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.tmp"
    with atomic_path(path, temporary=temporary, durable=False):
        header = identity.header(block.form)
        layout.write(temporary, header, len(block.rows), [conform(block, header, block.form)])


def read_block(folder: Path, number: int) -> Block:
    """Read the file of a block.

    Raises:
        StoreError: it is missing or damaged.
    """
    with layout.opened(_block_path(folder, number)) as file:
        header, n = layout.read_header(file)
        rows = layout.read_rows(file, header, slice(0, n))
        errors = layout.read_errors(file)
    form = (header.named, *((name, shape) for name, shape in sorted(header.shapes.items())))
    rows = Rows(rows.theta, rows.x, rows.status, rows.seed, errors)
    return Block(rows, form if _gave(rows.status) else None)


def whole_block(folder: Path, number: int, theta: Callable[[], NDArray[np.float32]]) -> Block | None:
    """The block in the folder, checked against its parameters; None where it is missing, damaged or another."""
    if not _block_path(folder, number).exists():
        return None
    try:
        block = read_block(folder, number)
    except StoreError as error:
        _log.warning("simulating block %d again: %s", number, error)
        return None
    return block if np.array_equal(block.rows.theta, theta()) else None


def _gave(status: Any) -> bool:
    return bool(np.isin(status, (Status.OK, Status.NONFINITE)).any())


def _block_path(folder: Path, number: int) -> Path:
    return folder / f"block-{number:06d}.h5"


class Parts:
    """The folder of a run in progress, locked.

    Args:
        out: the file to be.
        identity: of the run.
        code: a checksum of the code of the simulator; None where it is not known.
    """

    def __init__(self, out: Path, identity: Identity, code: str | None = None) -> None:
        self.out, self.identity, self._code = out, identity, code
        self.folder = parts_folder(out)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            StoreError: another process holds it, or it cannot be made.
        """
        try:
            descriptor = _lock(self.folder)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{self.out}: cannot be written: {error}") from error
        try:
            yield
        finally:
            os.close(descriptor)

    def resume(self) -> list[int]:
        """Check that the folder belongs to this run, or claim it; return the blocks that are done.

        Raises:
            StoreError: the folder belongs to another run, or the simulator was changed since it was begun.
        """
        path = self.folder / "run.json"
        if path.exists():
            try:
                there = json.loads(path.read_text())
            except (ValueError, OSError) as error:
                raise StoreError(f"{path}: cannot be read: {error}; remove {self.folder} to start anew") from error
            known = there if isinstance(there, dict) else {}
            self.identity.check(known, self.folder)
            if known.get("code", self._code) != self._code:
                self._begin_with_other_code(path)
        else:
            self._check_blocks()
            self._begin(path)
        self._remove("*.tmp")
        # Not a look at each: network file systems remember for half a minute that a file is not there.
        names = set(os.listdir(self.folder))
        plan = self.identity.plan
        candidates = [number for number in range(plan.blocks) if _block_path(self.folder, number).name in names]
        return [number for number in candidates if whole_block(self.folder, number, partial(plan.theta, number))]

    def _begin(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({**self.identity.to_dict(), "code": self._code}, sort_keys=True))

    def _begin_with_other_code(self, path: Path) -> None:
        if any(self.folder.glob("block-*.h5")):
            raise StoreError(
                f"{self.folder}: the simulator was changed since this run was begun, which would hold rows of both; "
                "remove that folder to begin anew, or bring the code back"
            )
        self._begin(path)

    def await_blocks(self) -> None:
        """Wait until the blocks that other machines wrote can be seen here.

        Raises:
            StoreError: some do not appear within a minute.
        """
        wanted = {_block_path(self.folder, number).name for number in range(self.identity.plan.blocks)}
        end = time.monotonic() + _VISIBLE_SECONDS
        while missing := wanted - set(os.listdir(self.folder)):
            if time.monotonic() > end:
                raise StoreError(
                    f"{self.folder}: {len(missing)} blocks that workers wrote are not there ({min(missing)} is one); "
                    "is it the same folder on all machines? Run again to make them anew"
                )
            time.sleep(0.5)

    def _check_blocks(self) -> None:
        """Where run.json is lost, the blocks themselves say which run they are of."""
        asked = self.identity.header(None)
        for path in sorted(self.folder.glob("block-*.h5")):
            try:
                header = Simulations.open(path).header
            except StoreError:
                continue  # a damaged block is made again
            if dataclasses.replace(header, named=asked.named, shapes=asked.shapes) != asked:
                raise StoreError(f"{self.folder}: holds blocks of another run; remove it to start anew")

    def merge(self, advance: Advance) -> None:
        """Stream all blocks into the file of the run, telling `advance` how many rows are in it."""
        numbers = range(self.identity.plan.blocks)
        form = next((f for f in (read_block(self.folder, b).form for b in numbers) if f is not None), None)
        header = self.identity.header(form)

        def blocks() -> Iterator[Rows]:
            for number in numbers:
                rows = conform(read_block(self.folder, number), header, form)
                yield rows
                advance(len(rows))

        with atomic_path(self.out, temporary=self.folder / "merged.tmp") as temporary:
            layout.write(temporary, header, self.identity.plan.n, blocks())

    def remove(self) -> None:
        """Remove the folder; whenever this is cut short, what is left can be resumed or removed."""
        self._remove("*.tmp", ".*.tmp", "block-*.h5", "run.json", "lock")
        with suppress(OSError):
            self.folder.rmdir()

    def _remove(self, *patterns: str) -> None:
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)


def parts_folder(out: Path) -> Path:
    """The folder of the run that makes `out`."""
    return out.with_name(out.name + ".parts")


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: of the run.
        done: rows in whole blocks.
        counts: rows by status, of those.
        running: whether a process works on it now.
        identity: of the run, see `Identity`; empty where its file is lost.
        blocks: the files of whole blocks, in order: files of simulations, which can be opened.
    """

    rows: int | None
    done: int
    counts: dict[str, int]
    running: bool
    identity: dict[str, Any]
    blocks: tuple[Path, ...]


def progress_of(out: Path) -> Progress:
    """Look at the run that makes `out`, without disturbing it.

    Raises:
        StoreError: there is none in progress.
    """
    folder = parts_folder(out)
    if not folder.is_dir():
        raise StoreError(f"{out}: no such file, and no run that makes it")
    identity: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        found = json.loads((folder / "run.json").read_text())
        identity = found if isinstance(found, dict) else {}
    counts, blocks = Counter({code.name.lower(): 0 for code in Status}), []
    for path in sorted(folder.glob("block-*.h5")):
        with suppress(StoreError):  # spoiled, or just gone as the run ended
            counts.update(Simulations.open(path).counts())
            blocks.append(path)
    rows = identity.get("n")
    n = rows if isinstance(rows, int) else None
    return Progress(n, counts.total(), dict(counts), _held(folder / "lock"), identity, tuple(blocks))


def _held(path: Path) -> bool:
    """Whether a process holds a lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(folder: Path) -> int:
    """Take the lock of the folder, making both; return its open descriptor."""
    if not folder.parent.is_dir():
        raise StoreError(f"{folder.parent}: no such folder")
    while True:
        folder.mkdir(exist_ok=True)
        path = folder / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # the run that held the folder has just finished and removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise StoreError(f"{folder}: another process is working on this run") from None
        except FileNotFoundError:
            pass
        os.close(descriptor)
