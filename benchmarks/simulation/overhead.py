"""What the engine costs beyond the simulator itself, and how fast the store writes.

Claims: in blocks of 1,000 rows the engine takes at most 50 microseconds a simulation in this process, and at most 200
on a Dask cluster of two local processes, from the call to the finished file, the start of child processes included; and
a million rows of 5 + 100 numbers are written to a file of simulations, with checksums, at 60 % at least of the rate at
which h5py writes the same arrays to a plain chunked file.

The overhead is the wall time of `simulate` less that of the bare calls of the simulator with the same rows.  Writing is
timed in turns, ours and plain, and the medians are compared: until the file stands under its name, and (beside it, as
the disk may be slow) until all of it is on the disk.

    python -m benchmarks.simulation.overhead [--n 200000] [--rows 1000000] [--repeats 5] [--folder .]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.distributions import Normal

from benchmarks.machine import describe_machine, write_result
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.simulation.blocks import Plan
from sbi_physics.simulation.run import simulate
from sbi_physics.store.simulations import Simulations

BLOCK = 1000


class Linear:
    """100 numbers from 5 parameters, as cheap as a simulator can be."""

    parameters = Parameters([Parameter(f"a{i}", Normal(0.0, 1.0)) for i in range(5)])
    name = "linear"

    def __call__(self, theta, *, seed):
        """Simulate."""
        return theta @ torch.linspace(0.0, 1.0, 500).reshape(5, 100)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        overhead = _overheads(options.n, Path(folder), options.repeats)
        store = _store(options.rows, Path(folder), options.repeats)
    result = {
        "block": BLOCK,
        "simulations": options.n,
        "overhead_microseconds": overhead,
        "store": store,
        "machine": describe_machine("h5py", "distributed"),
    }
    print(f"written to {write_result('simulation_overhead', result)}")


def _overheads(n: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Microseconds a simulation beyond the simulator, medians of the repetitions."""
    from distributed import LocalCluster

    simulator = Linear()
    bare = statistics.median(_bare(simulator, n) for _ in range(repeats))
    rows: dict[str, Any] = {"simulator itself": bare / n * 1e6}
    ways: dict[str, dict[str, Any]] = {
        "in memory": {"workers": 1},
        "to a file": {"workers": 1, "out": folder / "x.h5"},
        "to a file, 2 workers": {"workers": 2, "out": folder / "x.h5"},
    }
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        ways["to a file, Dask, 2 processes"] = {"cluster": cluster, "out": folder / "x.h5"}
        for way, arguments in ways.items():
            seconds = [_simulated(simulator, n, arguments) for _ in range(repeats)]
            rows[way] = (statistics.median(seconds) - bare) / n * 1e6
            rows[f"{way}, all"] = [round((s - bare) / n * 1e6, 2) for s in seconds]
            print(f"{way}: {rows[way]:.1f} microseconds a simulation", flush=True)
    return rows


def _bare(simulator: Linear, n: int) -> float:
    plan = Plan(simulator.parameters, n, 0, BLOCK)
    thetas = [torch.from_numpy(plan.theta(block)) for block in range(plan.blocks)]
    return _timed(lambda: [simulator(theta, seed=0) for theta in thetas])


def _simulated(simulator: Linear, n: int, arguments: dict[str, Any]) -> float:
    seconds = _timed(lambda: simulate(simulator, n, block_size=BLOCK, progress=False, **arguments))
    if "out" in arguments:
        arguments["out"].unlink()
    return seconds


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _store(rows: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds to write the same arrays by the store and by plain h5py."""
    random = np.random.default_rng(0)
    theta, x = (random.standard_normal((rows, width), dtype=np.float32) for width in (5, 100))
    simulations = Simulations.from_arrays(theta, x, Linear.parameters)
    seconds: dict[str, list[float]] = {"store": [], "plain": [], "plain, on the disk": []}
    for _ in range(repeats):
        seconds["store"].append(_timed(lambda: simulations.save(folder / "store.h5")))
        (folder / "store.h5").unlink()
        seconds["plain"].append(_timed(lambda: _plain(folder / "plain.h5", theta, x)))
        os.sync()
        (folder / "plain.h5").unlink()
        seconds["plain, on the disk"].append(_timed(lambda: _plain(folder / "plain.h5", theta, x, sync=True)))
        (folder / "plain.h5").unlink()
    median = {way: statistics.median(all_) for way, all_ in seconds.items()}
    megabytes = (theta.nbytes + x.nbytes) / 1e6
    result = {
        "rows": rows,
        "megabytes_a_second": {way: megabytes / value for way, value in median.items()},
        "rate_over_plain": median["plain"] / median["store"],
        "rate_over_plain_on_the_disk": median["plain, on the disk"] / median["store"],
        "seconds": seconds,
    }
    print({key: value for key, value in result.items() if key != "seconds"}, flush=True)
    return result


def _plain(path: Path, theta: np.ndarray, x: np.ndarray, *, sync: bool = False) -> None:
    """Write in blocks of 1,000 rows to chunks of about 256 kB, as the store does."""
    with h5py.File(path, "w") as file:
        for name, values in (("theta", theta), ("x", x)):
            chunk = (2**18 // (4 * values.shape[1]), values.shape[1])
            data = file.create_dataset(name, values.shape, "f4", chunks=chunk)
            for start in range(0, len(values), BLOCK):
                data[start : start + BLOCK] = values[start : start + BLOCK]
    if sync:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


if __name__ == "__main__":
    main()
