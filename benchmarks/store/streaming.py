"""Training on more simulations than memory holds.

Claim: fits of NPE, NLE and a surrogate on a file of 6 GB (4 million rows of 368 numbers) peak below 1.5 GB of resident
memory, and an epoch that streams costs at most 1.3 times one in memory, on a file of 60 MB where both fit.  The price
is scratch files twice as large as x.  Peaks are those of a process of its own (the high-water mark of resident memory);
an epoch is the difference between fits of eleven epochs and of one, the best of turns that alternate, by the clock and
in seconds of the processor (the clock of a shared machine tells of its other work, too).

    python -m benchmarks.store.streaming [--part epochs|large] [--gigabytes 6] [--folder FOLDER] [--of npe nle ...]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributions import Uniform

import sbi_physics as sp
from benchmarks.machine import RESULTS, describe_machine, write_result
from sbi_physics.store import layout
from sbi_physics.store.layout import Header, Rows
from sbi_physics.train.config import TrainConfig

NAME = "store_streaming"
WIDTH, PARAMETERS, BLOCK = 368, 4, 16384
SMALL_ROWS = 40_000
TURNS = 5
EPOCHS = 11
ESTIMATORS = ["npe", "nle", "surrogate"]
IN_MEMORY, STREAMED = 10**12, 1


def prior() -> sp.Parameters:
    return sp.Parameters([sp.Parameter(f"theta_{i}", Uniform(-1.0, 1.0)) for i in range(PARAMETERS)])


def make(path: Path, rows: int) -> None:
    """A file of noisy linear functions of the parameters."""
    design = np.random.default_rng(0).normal(size=(PARAMETERS, WIDTH)).astype("f4")

    def blocks() -> Iterator[Rows]:
        for start in range(0, rows, BLOCK):
            n = min(BLOCK, rows - start)
            random = np.random.default_rng([1, start])
            theta = random.uniform(-1, 1, (n, PARAMETERS)).astype("f4")
            x = theta @ design + random.standard_normal((n, WIDTH), dtype="f4")
            yield Rows(theta, {"x": x}, np.zeros(n, "u1"), np.full(n, start + 1, "u8"))

    layout.write(path, Header(prior(), "lines", block_size=BLOCK, shapes={"x": (WIDTH,)}), rows, blocks())


def estimator(of: str, settings: dict[str, int]) -> Any:
    """Something to fit: small networks, since it is the data that are large."""
    if of == "npe":
        return sp.NPE(prior(), "mixture", embedding="residual", augment=False, config=TrainConfig(**settings))
    if of == "nle":
        return sp.NLE(prior(), "maf", transforms=1, hidden_features=32, config=TrainConfig(**settings))
    return sp.Surrogate("vae", prior=prior(), hidden_features=32, config=settings)


def fit(of: str, path: Path, epochs: int, memory: int, batch: int) -> np.ndarray:
    """Seconds of a fit, by the clock and of the processor, all threads together."""
    began = np.array([time.perf_counter(), time.process_time()])
    estimator(of, {"epochs": epochs, "memory": memory, "batch_size": batch}).fit(path, progress=False)
    return np.array([time.perf_counter(), time.process_time()]) - began


def peak() -> float:
    """The high-water mark of resident memory of this process in MB; that of `getrusage` may be its parent's."""
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) / 1024


def in_a_process(of: str, path: Path, epochs: int, memory: int, batch: int) -> dict[str, float]:
    """Seconds and peak of a fit in a process of its own."""
    words = [of, str(path), str(epochs), str(memory), str(batch)]
    done = subprocess.run([sys.executable, "-m", __spec__.name, "--fit", *words], capture_output=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def epochs_of(path: Path) -> dict[str, Any]:
    """Seconds of an epoch, in memory and streamed."""
    kinds = {"in_memory": IN_MEMORY, "streamed": STREAMED}
    seconds: dict[str, list[list[np.ndarray]]] = {kind: [] for kind in kinds}
    fit("npe", path, 1, IN_MEMORY, 512)  # what is compiled and loaded once
    for turn in range(TURNS):
        for kind in sorted(kinds, reverse=bool(turn % 2)):
            seconds[kind].append([fit("npe", path, epochs, kinds[kind], 512) for epochs in (1, EPOCHS)])
            print(kind, *seconds[kind][-1], flush=True)
    # The best of the short and of the long fits each: the best of their differences is that of a disturbed short one.
    best = {kind: np.array(found).min(0) for kind, found in seconds.items()}
    epochs = {kind: (found[1] - found[0]) / (EPOCHS - 1) for kind, found in best.items()}
    clock, processor = epochs["streamed"] / epochs["in_memory"]
    return {
        "rows": SMALL_ROWS,
        "epoch_clock_s": {kind: float(found[0]) for kind, found in epochs.items()},
        "epoch_processor_s": {kind: float(found[1]) for kind, found in epochs.items()},
        "ratio_of_clock": float(clock),
        "ratio_of_processor": float(processor),
        "fits": {kind: np.array(found).tolist() for kind, found in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("epochs", "large"), default=None)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--fit", nargs=5, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--of", nargs="+", choices=ESTIMATORS, default=ESTIMATORS, help="fits of the large part")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.fit:
        of, path, *numbers = chosen.fit
        seconds = fit(of, Path(path), *map(int, numbers))
        print(json.dumps({"seconds": float(seconds[0]), "peak_mb": peak()}))
        return
    written = RESULTS / f"{NAME}.json"
    result = json.loads(written.read_text()) if written.exists() else {}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        if chosen.part in (None, "epochs"):
            small = Path(folder) / "small.h5"
            make(small, SMALL_ROWS)
            result["epochs"] = epochs_of(small)
        if chosen.part in (None, "large"):
            found = large_fits(Path(folder), chosen.gigabytes, chosen.of)
            result["large"] = {**result.get("large", {}), **found}
    print(json.dumps(result, indent=2))
    write_result(NAME, {**result, "machine": describe_machine("h5py")})


def large_fits(folder: Path, gigabytes: float, of: list[str]) -> dict[str, Any]:
    """The peaks of fits of one epoch on a file of that size."""
    free = shutil.disk_usage(folder).free
    if free < 3.5e9 * gigabytes:
        sys.exit(f"{folder}: {free / 1e9:.1f} GB free, {3.5 * gigabytes:.1f} GB needed")
    path, rows = folder / "large.h5", int(gigabytes * 1e9 / (4 * (WIDTH + PARAMETERS)))
    began = time.perf_counter()
    make(path, rows)
    made = time.perf_counter() - began
    result: dict[str, Any] = {"rows": rows, "bytes": path.stat().st_size, "written_s": made}
    for name in of:
        found = in_a_process(name, path, 1, STREAMED, 4096)
        result[name] = {"fit_of_one_epoch_s": found["seconds"], "peak_resident_mb": found["peak_mb"]}
        print(name, result[name], flush=True)
    return result


if __name__ == "__main__":
    main()
