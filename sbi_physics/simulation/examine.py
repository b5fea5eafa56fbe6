"""Whether the workers of a cluster are fit for a run, asked before it and not after an hour of it.

The same seed gives the same bytes where Python, NumPy and torch are the same; a simulator must be found on each worker.
"""

import importlib
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sbi_physics.simulation.remote import why_not_loaded
from sbi_physics.simulation.resolve import resolve_simulator

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Examination", "examine", "versions"]

_PACKAGES = ("sbi_physics", "torch", "numpy", "h5py", "distributed")


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        workers: threads by address.
        problems: one line for each that was found, naming the worker; empty where all is well.
    """

    workers: dict[str, int]
    problems: list[str] = field(default_factory=list)


def examine(client: "Client", simulator: str | None = None) -> Examination:
    """Compare the versions of each worker with those of this process, and let each load a simulator.

    Args:
        client: of the cluster.
        simulator: name of an installed simulator, or ``"path/file.py:Class"``; None to compare versions alone.

    Raises:
        UsageError: the simulator cannot be loaded here, either.
    """
    if simulator is not None:
        resolve_simulator(simulator)
    workers = dict(client.nthreads())
    if not workers:
        return Examination({}, ["the cluster has no workers"])
    here, problems, able = versions(), [], []
    for address, there in sorted(client.run(versions, on_error="return").items()):
        if isinstance(there, Exception):
            problems.append(f"{address}: cannot import sbi_physics: {type(there).__name__}: {there}")
            continue
        able.append(address)
        problems += [
            f"{address}: {name} {there[name]}, here {here[name]}" for name in here if there[name] != here[name]
        ]
    if simulator is not None and able:
        path, colon, name = simulator.rpartition(":")
        sources = {path: Path(path).read_text(encoding="utf-8")} if colon and path.endswith(".py") else {}
        spec = name if sources else simulator
        answers = client.run(why_not_loaded, spec, sources, workers=able, on_error="return")
        for address, answer in sorted(answers.items()):
            if answer:
                problems.append(f"{address}: cannot load {simulator}: {answer}")
    return Examination(workers, problems)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the bytes of a run, in this process."""
    found = {name: str(importlib.import_module(name).__version__) for name in _PACKAGES}
    return {"python": platform.python_version(), **found}
