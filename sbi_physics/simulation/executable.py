"""`ExecutableSimulator`: any program as a simulator, untouched.

    simulations = sp.simulate("decay.toml", 10_000, out="decay.h5")

One row is one run of the program, in a scratch folder of its own, without a shell.  Values go to it as arguments,
environment variables or rendered input files; numbers come back from its files or its standard output (`description`
tells the TOML file, `store.program_outputs` the formats).  A run that ends with an exit code of failure, is ended by a
signal, takes too long, exceeds its memory or leaves no numbers is recorded with its status and the last words of the
program, and is not run again.
"""

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite
from sbi_physics.core.errors import SimulationError, StoreError
from sbi_physics.core.random import derive
from sbi_physics.simulation.description import Output, read_description
from sbi_physics.simulation.programs import Ended, ProgramRunner, Request
from sbi_physics.simulation.rowwise import RowResult
from sbi_physics.simulation.templates import Value, fill
from sbi_physics.store.layout import Status
from sbi_physics.store.program_outputs import read_output

__all__ = ["ExecutableSimulator"]

_LAST_WORDS = 200


class ExecutableSimulator:
    """A program that simulates one row in each run.

    Args:
        description: a TOML file, or what would be in one; see `simulation.description.Description` for its keys.
        folder: from which programs, templates and links are named; that of the file, or the working folder, where None.

    Attributes:
        parameters: names, units and priors.
        name: of the simulator, with a checksum of its description: a run of another is not taken up by mistake.
        command: the program and its arguments, with places for values.

    Raises:
        UsageError: naming the key that is wrong.
        StoreError: the file cannot be read.
    """

    def __init__(self, description: str | Path | Mapping[str, Any], *, folder: str | Path | None = None) -> None:
        if folder is None:
            folder = Path() if isinstance(description, Mapping) else Path(description).parent
        self._folder = Path(folder).resolve()
        self._description, self._texts, program = read_description(description, self._folder)
        self.parameters = self._description.made_parameters()
        self.command = [program, *self._description.command[1:]]
        self.name = self._made_name()
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._local = threading.local()

    def __repr__(self) -> str:
        return f"ExecutableSimulator({self.name}; {' '.join(self._description.command)}; {self.parameters})"

    def __call__(self, theta: Tensor, *, seed: int) -> Tensor | dict[str, Tensor]:
        """Run the program for each row of theta ``(n, P)``; NaN where a run failed.

        Raises:
            SimulationError: all runs failed, or they gave outputs of different shapes.
        """
        results = self._runs(theta, seed)
        good = [result.x for result in results if result.x is not None]
        if not good:
            raise SimulationError(f"none of {len(results)} runs succeeded: {results[0].error if results else ''}")
        if len({tuple((k, v.shape) for k, v in x.items()) for x in good}) > 1:
            raise SimulationError("the runs gave outputs of different shapes")
        blank = {name: np.full(values.shape, np.nan) for name, values in good[0].items()}
        rows = [blank if result.x is None else result.x for result in results]
        x = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in blank}
        return x if self._named else x["x"]

    def simulate_rows(self, theta: Tensor, *, seed: int) -> list[RowResult]:
        """Run the program for each row of theta ``(n, P)``: its numbers, or what went wrong."""
        results = self._runs(theta, seed)
        return results if self._named else [replace(r, x=None if r.x is None else r.x["x"]) for r in results]

    def _runs(self, theta: Tensor, seed: int) -> list[RowResult]:
        rows = finite(batch_of(as_tensor(theta, "theta"), (len(self.parameters),), "theta", minimum=0), "theta")
        runner, bits = self._runner(), self._description.seed_bits
        results = []
        for i, row in enumerate(rows.tolist()):
            own = derive(seed, "run", i) >> (63 - bits)
            results.append(self._run(runner, row, own))
        return results

    @property
    def _named(self) -> bool:
        return [output.name for output in self._description.outputs] != ["x"]

    def _made_name(self) -> str:
        described = self._description.model_dump(exclude={"scratch", "keep_failed", "name"})
        content = json.dumps([described, self._texts], sort_keys=True)
        name = self._description.name or Path(self._description.command[0]).stem
        return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def _runner(self) -> ProgramRunner:
        """The runner of this thread of this process."""
        runner: ProgramRunner | None = getattr(self._local, "runner", None)
        if runner is None or not runner.usable:
            base = None if self._description.scratch is None else Path(self._description.scratch)
            runner = self._local.runner = ProgramRunner(base)
        return runner

    def _run(self, runner: ProgramRunner, row: list[float], seed: int) -> RowResult:
        values: dict[str, Value] = dict(zip(self.parameters.names, row, strict=True))
        values |= {"seed": seed, "scratch": str(runner.folder), "here": str(self._folder)}
        description = self._description
        try:
            self._prepare(runner.folder, values)
            command = [fill(word, values) for word in self.command]
            environment = {key: fill(text, values) for key, text in description.environment.items()}
            inherit, timeout, memory = description.inherit_environment, description.timeout, description.memory_limit
            ended = runner.run(Request(command, environment, inherit, timeout, memory))
            status, text = self._judge(ended)
            x = None
            if not text:
                try:
                    x = {output.name: self._read(output, runner) for output in description.outputs}
                except StoreError as error:
                    status, text = Status.FAILED, str(error)
            if x is None:
                text = f"{text}{_last_words(runner)}".replace(f"{runner.folder}/", "")
                text = text.replace(str(runner.stdout), "standard output")
                self._keep(runner, seed)
                return RowResult(None, status, text, seed)
            return RowResult(x, seed=seed)
        except OSError as error:
            raise SimulationError(f"the folder of a run cannot be used: {error}") from error
        finally:
            _empty(runner.folder)

    def _prepare(self, folder: Path, values: Mapping[str, Value]) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in self._description.links:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(self._folder / name)
        for name, text in self._texts.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(fill(text, values), encoding="utf-8")

    def _judge(self, ended: Ended) -> tuple[Status, str]:
        """What became of a run, and why it failed; no text where it did not."""
        if ended.error:
            return Status.FAILED, ended.error
        if ended.late:
            return Status.TIMEOUT, f"took longer than {self._description.timeout:g} seconds"
        code, codes = ended.code or 0, self._description.failure_codes
        if code < 0:
            name = f"{-code}"
            with suppress(ValueError):
                name = signal.Signals(-code).name
            return Status.CRASHED, f"ended by signal {name}"
        failed = code != 0 if codes is None else code in codes
        return Status.FAILED, f"exit code {code}" if failed else ""

    def _read(self, output: Output, runner: ProgramRunner) -> NDArray[np.float64]:
        path = runner.stdout if output.file is None else runner.folder / output.file
        values = read_output(path, str(output.kind), where=output.where, columns=output.columns)
        if output.shape is None:
            return values
        if values.size != int(np.prod(output.shape)):
            raise StoreError(f"{path}: expected numbers of shape {tuple(output.shape)}, got {values.shape}")
        return values.reshape(output.shape)

    def _keep(self, runner: ProgramRunner, seed: int) -> None:
        if self._description.keep_failed is None:
            return
        kept = Path(self._description.keep_failed) / f"run-{seed}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(runner.folder, kept)
        for stream in (runner.stdout, runner.stderr):
            if stream.exists():
                shutil.copy(stream, kept / f"{stream.name}.txt")


def _empty(folder: Path) -> None:
    """Remove a folder with anything in it; an empty one can serve again, which is faster than to make one anew."""
    with suppress(OSError), os.scandir(folder) as entries:
        if next(entries, None) is None:
            return
    shutil.rmtree(folder, ignore_errors=True)


def _last_words(runner: ProgramRunner) -> str:
    """The end of what a program wrote to standard error, or else to standard output."""
    for stream in (runner.stderr, runner.stdout):
        with suppress(OSError), stream.open("rb") as file:
            file.seek(max(0, stream.stat().st_size - 4 * _LAST_WORDS))
            words = " ".join(file.read().decode(errors="replace").split())
            if words:
                return f": {words[-_LAST_WORDS:]}"
    return ""
