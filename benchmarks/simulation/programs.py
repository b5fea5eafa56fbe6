"""What a run of a program costs by `ExecutableSimulator`, beside a plain loop over `subprocess.run`.

Claim: a run of a program that does nothing but print two numbers costs at most 3 milliseconds of the processor more by
`ExecutableSimulator` than by the shortest loop that starts it and reads its numbers.  Beside them is a loop which gives
each run, as ours does, a folder of its own, files for what is printed, and a limit of time.

Ways are timed in turns.  Seconds of the processor are those of all processes, and medians of the turns; ours have the
start and the end of the process that runs programs among them.  Seconds of the clock are of the fastest turn: where
other programs keep the processors busy, ours waits longer, as two processes take turns at it.

    python -m benchmarks.simulation.programs [--runs 200] [--repeats 9]
"""

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import describe_machine, write_result

UNIFORM = {"family": "Uniform", "low": 0.0, "high": 1.0}
PROGRAM = "printf"
SECONDS = 10.0


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    description = {
        "command": [PROGRAM, "%s %s\\n", "{a}", "{b}"],
        "parameters": [{"name": name, "prior": UNIFORM} for name in "ab"],
        "timeout": SECONDS,
    }
    simulator = sp.ExecutableSimulator(description)
    theta = simulator.parameters.sample(options.runs, seed=0)
    ways: dict[str, Callable[[], Tensor]] = {
        "subprocess.run": lambda: _plain(theta),
        "subprocess.run with folder, files and timeout": lambda: _careful(theta),
        "ExecutableSimulator": lambda: _ours(description, theta),
    }
    expected = theta.double()
    turns: dict[str, list[list[float]]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way, work in ways.items():
            turns[way].append([1e6 * seconds / options.runs for seconds in _timed(work, expected)])
    rows = {
        way: {"clock": min(clock), "processor": statistics.median(processor)}
        for way, (clock, processor) in ((way, zip(*values, strict=True)) for way, values in turns.items())
    }
    print(rows)
    result = {
        "program": PROGRAM,
        "runs": options.runs,
        "microseconds": rows,
        "turns": {way: [[round(number) for number in pair] for pair in values] for way, values in turns.items()},
        "machine": describe_machine(),
    }
    print(f"written to {write_result('simulation_programs', result)}")


def _ours(description: dict[str, Any], theta: Tensor) -> Tensor:
    x = sp.ExecutableSimulator(description)(theta, seed=0)
    # What runs programs for a simulator ends with it, and only then its time is known.
    gc.collect()
    if isinstance(x, dict):
        raise TypeError("expected one output")
    return x


def _plain(theta: Tensor) -> Tensor:
    rows = []
    for a, b in theta.tolist():
        done = subprocess.run([PROGRAM, "%s %s\\n", repr(a), repr(b)], capture_output=True, check=True)
        rows.append([float(word) for word in done.stdout.split()])
    return torch.tensor(rows, dtype=torch.float64)


def _careful(theta: Tensor) -> Tensor:
    rows = []
    for a, b in theta.tolist():
        folder = Path(tempfile.mkdtemp())
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            subprocess.run(
                [PROGRAM, "%s %s\\n", repr(a), repr(b)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=SECONDS,
                start_new_session=True,
                check=True,
            )
        rows.append([float(word) for word in (folder / "stdout").read_text(encoding="utf-8").split()])
        shutil.rmtree(folder)
    return torch.tensor(rows, dtype=torch.float64)


def _timed(work: Callable[[], Tensor], expected: Tensor) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    before, began = os.times(), time.perf_counter()
    found = work()
    clock, after = time.perf_counter() - began, os.times()
    if not torch.equal(found.double(), expected):
        raise ValueError("expected the numbers that were passed")
    return clock, sum(after[:4]) - sum(before[:4])


if __name__ == "__main__":
    main()
