"""The stage engine: what is done already, what is to be done and why, and how it is done once and whole.

A stage makes files in a folder of its own from its settings, its seed, files of the user and the folders of other
stages.  Its key is a checksum of all of those,

    key = sha256(name, format, settings, seed, sha256 of user files, keys of the inputs),

so that a stage whose key is that of its record, and whose files have the checksums of its record, need not be made
again.  A folder is made under another name and renamed when it is whole; one that was not finished stays, and a stage
that can go on from what it finds there does.

==============================  ======================================================================
``DIR/<stage>/``                what the stage made
``DIR/<stage>/stage.json``      its record: what the key is made of, checksums, seconds
``DIR/.partial/<stage>-<key>``  the same in the making
``DIR/.lock``                   held (flock) by the process that works in DIR
==============================  ======================================================================
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sbi_physics.core.errors import StoreError
from sbi_physics.run.records import Record, changes, digest_of, file_hash
from sbi_physics.store.atomic import sync_folder

__all__ = ["Engine", "Stage", "Step", "Work", "locked"]

_PARTIAL = ".partial"
_KEY_DIGITS = 16


@dataclass(frozen=True)
class Work:
    """What a stage is given to do its work.

    Attributes:
        folder: where its files go; whatever an earlier, interrupted attempt left is in it.
        inputs: the folders of its inputs, by their names.
        seed: of everything random.
        progress: whether to show progress bars.
        say: tells a human, on standard error.
        memory: what stages of the same run leave for later ones beside their files, by the name of the stage.
    """

    folder: Path
    inputs: Mapping[str, Path]
    seed: int
    progress: bool
    say: Callable[[str], None]
    memory: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One step of an analysis.

    Attributes:
        name: of the stage and its folder.
        make: does the work: writes files into the folder that it is given.
        settings: the part of the configuration that decides what comes out, in types that JSON knows.
        inputs: names of the stages that it reads.
        seed: of everything random in it.
        files: files of the user that it reads, by the names under which they are recorded.
        check: is given the folders of the stages that are made and stand, by name, before the work begins, and looks
            for what would be found out too late; it decides nothing of what comes out.
        scratch: patterns of files in the folder that are there to go on from, and go when it is whole.
        format: raised whenever what the stage writes changes.
    """

    name: str
    make: Callable[[Work], None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    seed: int = 0
    files: Mapping[str, Path] = field(default_factory=dict)
    check: Callable[[Mapping[str, Path]], None] | None = None
    scratch: tuple[str, ...] = ()
    format: int = 1

    def identity(self, keys: Mapping[str, str]) -> dict[str, Any]:
        """What the key is made of, given the keys of the inputs, in types that JSON knows."""
        identity = {
            "stage": self.name,
            "format": self.format,
            "seed": self.seed,
            "settings": self.settings,
            "files": {name: file_hash(path) for name, path in sorted(self.files.items())},
            "inputs": {name: keys[name] for name in self.inputs},
        }
        plain: dict[str, Any] = json.loads(json.dumps(identity, sort_keys=True, allow_nan=False))
        return plain


@dataclass(frozen=True)
class Step:
    """A stage in a plan, or after a run.

    Attributes:
        name: of the stage.
        status: ``"done"`` where there is nothing to do, ``"to do"`` in a plan, ``"made"`` after a run.
        reason: why there is something to do; empty where there is not.
        seconds: that it took, in this run or when it was made; None where it was never.
    """

    name: str
    status: str
    reason: str = ""
    seconds: float | None = None


class Engine:
    """The stages of one analysis in one folder.

    Args:
        folder: where the folders of the stages are.
        stages: in an order in which they can be made.
        say: tells a human.
        progress: whether to show progress bars.
    """

    def __init__(
        self,
        folder: Path,
        stages: Sequence[Stage],
        *,
        say: Callable[[str], None] = lambda text: None,
        progress: bool = False,
    ) -> None:
        self.folder, self.stages, self._say, self._progress = folder, list(stages), say, progress
        self.identities: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        for stage in self.stages:
            self.identities[stage.name] = stage.identity(self.keys)
            self.keys[stage.name] = digest_of(self.identities[stage.name])

    def plan(self) -> list[Step]:
        """What would be done, and why.

        Raises:
            SBIPhysicsError: what is there already shows that it would fail.
        """
        steps: list[Step] = []
        for stage in self.stages:
            reason, record = self._reason(stage)
            steps.append(Step(stage.name, "to do" if reason else "done", reason, record.seconds if record else None))
        standing = {step.name: self.folder / step.name for step in steps if step.status == "done"}
        for stage in self.stages:
            if stage.check is not None and stage.name not in standing:
                stage.check(standing)
        return steps

    def run(self) -> list[Step]:
        """Do what is to be done.

        Raises:
            StoreError: a folder cannot be written.
            SBIPhysicsError: whatever a stage raises.
        """
        steps: list[Step] = []
        memory: dict[str, Any] = {}
        for stage in self.stages:
            reason, record = self._reason(stage)
            if reason:
                self._say(f"{stage.name}: begins ({reason})")
                record = self._make(stage, memory)
                self._say(f"{stage.name}: {record.seconds:.1f} s")
            else:
                self._say(f"{stage.name}: done already")
            steps.append(Step(stage.name, "made" if reason else "done", reason, record.seconds if record else None))
        self._sweep()
        return steps

    def record(self, name: str) -> Record:
        """The record of a stage that is made.

        Raises:
            StoreError: it is missing or damaged.
        """
        return Record.read(self.folder / name)

    def _reason(self, stage: Stage) -> tuple[str, Record | None]:
        """Why a stage must be made, in words, and its record if there is one; no words where it need not."""
        folder = self.folder / stage.name
        if not folder.exists():
            return ("it was interrupted" if self._partial(stage).exists() else "not made yet"), None
        try:
            record = Record.read(folder)
        except StoreError as error:
            return f"its record is damaged ({error})", None
        if record.key != self.keys[stage.name]:
            return changes(record.identity, self.identities[stage.name]), record
        damage = record.damage(folder)
        if damage:
            return damage, record
        for name in stage.inputs:
            there = self.folder / name
            if there.exists() and Record.digest_in(there) not in (None, record.input_digests.get(name)):
                return f"{name} was made again, and differs", record
        return "", record

    def _make(self, stage: Stage, memory: dict[str, Any]) -> Record:
        if stage.check is not None:
            stage.check({one.name: self.folder / one.name for one in self.stages if not self._reason(one)[0]})
        partial = self._partial(stage)
        resumed = partial.exists()
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{partial}: the folder cannot be made: {error.strerror}") from error
        work = Work(
            partial,
            {name: self.folder / name for name in stage.inputs},
            stage.seed,
            self._progress,
            self._say,
            memory,
        )
        began = time.monotonic()
        try:
            stage.make(work)
        except StoreError as error:
            if not resumed:
                raise
            self._say(f"{stage.name}: begun anew, what was left of it is of no use: {error}")
            _empty(partial)
            stage.make(work)
        return self._finish(stage, partial, time.monotonic() - began)

    def _finish(self, stage: Stage, partial: Path, seconds: float) -> Record:
        """Put a whole folder where it belongs."""
        for pattern in stage.scratch:
            for path in partial.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        digests = {name: self.record(name).digest for name in stage.inputs}
        record = Record.of(partial, self.identities[stage.name], self.keys[stage.name], digests, seconds)
        record.write(partial)
        final, old = self.folder / stage.name, self.folder / _PARTIAL / f"{stage.name}.old"
        try:
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                os.replace(final, old)
            os.replace(partial, final)
            sync_folder(self.folder)
        except OSError as error:
            raise StoreError(f"{final}: cannot be written: {error}") from error
        shutil.rmtree(old, ignore_errors=True)
        return record

    def _partial(self, stage: Stage) -> Path:
        return self.folder / _PARTIAL / f"{stage.name}-{self.keys[stage.name][:_KEY_DIGITS]}"

    def _sweep(self) -> None:
        """Remove what interrupted runs with other settings left."""
        shutil.rmtree(self.folder / _PARTIAL, ignore_errors=True)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process.

    Raises:
        StoreError: another process holds it, or nothing can be written there.
    """
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"{folder}: another process is working on this run") from None
    try:
        yield
    finally:
        os.close(descriptor)
