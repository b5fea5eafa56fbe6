"""What a run of a program costs by `ExecutableSimulator`, beside a plain loop over `subprocess.run`.

Claim: a run of a program that does nothing but print two numbers takes at most 2 milliseconds longer by
`ExecutableSimulator` than by the shortest loop that starts it and reads its numbers, and no longer than by a loop which
gives each run, as ours does, a folder of its own, files for what is printed, and a limit of time and memory.

Ways are timed in turns, by the clock, and the medians of the turns are compared.

    python -m benchmarks.simulation.programs [--runs 300] [--repeats 7]
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import sbi_physics as sp
from benchmarks.machine import describe_machine, write_result

UNIFORM = {"family": "Uniform", "low": 0.0, "high": 1.0}
PROGRAM = "printf"
SECONDS, BYTES = 10.0, 500_000_000


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    description = {
        "command": [PROGRAM, "%s %s\\n", "{a}", "{b}"],
        "parameters": [{"name": name, "prior": UNIFORM} for name in "ab"],
        "timeout": SECONDS,
        "memory_limit": BYTES,
    }
    simulator = sp.ExecutableSimulator(description)
    theta = simulator.parameters.sample((options.runs,)).float()
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], object]] = {
            "subprocess.run": lambda: _plain(theta),
            "subprocess.run, folder, files, limits": lambda: _careful(theta),
            "ExecutableSimulator": lambda: simulator(theta, seed=0),
            "sp.simulate to a file, 1 worker": lambda: _simulated(simulator, options.runs, Path(folder) / "x.h5"),
        }
        same = torch.equal(simulator(theta, seed=0).float(), _plain(theta))
        turns: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, work in ways.items():
                turns[way].append(1e6 * _timed(work) / options.runs)
    microseconds = {way: statistics.median(values) for way, values in turns.items()}
    print(microseconds)
    result = {
        "program": PROGRAM,
        "runs": options.runs,
        "same_numbers": same,
        "microseconds": microseconds,
        "turns": {way: [round(value, 1) for value in values] for way, values in turns.items()},
        "machine": describe_machine(),
    }
    print(f"written to {write_result('simulation_programs', result)}")


def _plain(theta: Tensor) -> Tensor:
    rows = []
    for a, b in theta.tolist():
        done = subprocess.run([PROGRAM, "%s %s\\n", repr(a), repr(b)], capture_output=True, check=True)
        rows.append([float(word) for word in done.stdout.split()])
    return torch.tensor(rows)


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
                preexec_fn=_limited,
                check=True,
            )
        rows.append([float(word) for word in (folder / "stdout").read_text(encoding="utf-8").split()])
        shutil.rmtree(folder)
    return torch.tensor(rows)


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def _simulated(simulator: "sp.ExecutableSimulator", n: int, path: Path) -> None:
    sp.simulate(simulator, n, out=path, workers=1, progress=False)
    os.unlink(path)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
