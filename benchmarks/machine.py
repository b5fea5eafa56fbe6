"""The machine and the versions that a figure was measured with, and how a result is written."""

import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["DEVICE", "RESULTS", "describe_machine", "keep_row", "write_result"]

# `python -m benchmarks run` sends quick figures elsewhere, and says on which device Markov chains are to run.
RESULTS = Path(os.environ.get("SBI_PHYSICS_BENCHMARK_RESULTS") or Path(__file__).parent / "results")
DEVICE = os.environ.get("SBI_PHYSICS_BENCHMARK_DEVICE") or "cpu"


def describe_machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, threads, CUDA devices, Python, torch and the versions of the named packages."""
    names = ["torch", "numpy", "nflows", *packages]
    cuda = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write a result beside the others and return its path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return path


def keep_row(name: str, row: dict[str, Any], key: Sequence[str]) -> Path:
    """Write a row among those of earlier runs, in place of an earlier one of the same key; rows are sorted by it."""
    path = RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []

    def of(other: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(other[part] for part in key)

    rows = [other for other in earlier if of(other) != of(row)]
    return write_result(name, {"rows": sorted([*rows, row], key=of)})
