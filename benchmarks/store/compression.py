"""What compression saves and costs: showers, mostly zeros, and dense numbers, which are noise to a compressor.

Claim: none; the table says which setting suits which data.  Files are written and read with checksums, in chunks as
those of `store.layout`, from and to memory that the operating system keeps; the best of three turns counts.

    python -m benchmarks.store.compression [--megabytes 64]
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from benchmarks.machine import describe_machine, write_result
from simulators.calorimeter import ElectromagneticShowers

NAME = "store_compression"
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzf": {"compression": "lzf"},
    "lzf + shuffle": {"compression": "lzf", "shuffle": True},
    "gzip 1": {"compression": 1},
    "gzip 1 + shuffle": {"compression": 1, "shuffle": True},
    "gzip 4": {"compression": 4},
    "gzip 4 + shuffle": {"compression": 4, "shuffle": True},
}
TURNS = 3


def showers(rows: int) -> np.ndarray:
    simulator = ElectromagneticShowers()
    few = simulator(simulator.parameters.sample(2000, seed=1), seed=2).numpy()
    return np.concatenate([few] * -(-rows // len(few)))[:rows].astype("f4")


def measure(values: np.ndarray, path: Path, options: dict[str, Any]) -> dict[str, float]:
    """Bytes per byte of data, and MB/s of writing and reading."""
    megabytes, writing, reading = values.nbytes / 1e6, [], []
    chunk = (max(1, 2**18 // values[0].nbytes), *values.shape[1:])
    for _ in range(TURNS):
        began = time.perf_counter()
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            file.create_dataset("x", values.shape, "f4", chunks=chunk, fletcher32=True, **options)
            for start in range(0, len(values), 1024):
                file["x"][start : start + 1024] = values[start : start + 1024]
        writing.append(time.perf_counter() - began)
        began = time.perf_counter()
        with h5py.File(path, "r") as file:
            for start in range(0, len(values), 1024):
                file["x"][start : start + 1024]
        reading.append(time.perf_counter() - began)
    size = path.stat().st_size / values.nbytes
    return {"size": size, "write_mb_per_s": megabytes / min(writing), "read_mb_per_s": megabytes / min(reading)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64)
    size = parser.parse_args().megabytes * 1_000_000
    torch.set_num_threads(1)
    data = {
        "showers (368 voxels)": showers(size // (4 * 368)),
        "dense (100 numbers)": np.random.default_rng(0).normal(size=(size // 400, 100)).astype("f4"),
    }
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, values in data.items():
            for name, options in SETTINGS.items():
                rows[f"{kind}, {name}"] = measure(values, Path(folder) / "x.h5", options)
                print(kind, name, rows[f"{kind}, {name}"], flush=True)
    zeros = {kind: float((values == 0).mean()) for kind, values in data.items()}
    write_result(NAME, {"machine": describe_machine("h5py"), "bytes": size, "zeros": zeros, "rows": rows})


if __name__ == "__main__":
    main()
