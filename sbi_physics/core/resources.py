"""What this machine offers: the cores to use, and the small tables that ship with the package."""

import os
from pathlib import Path

from sbi_physics.core.errors import StoreError

__all__ = ["cores", "physical_memory", "shipped"]

_PACKAGE = Path(__file__).resolve().parent.parent


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shipped(name: str) -> Path:
    """Return the path of a file of the shipped `data/` folder, such as ``"radial_velocity/epic203771098.csv"``.

    Raises:
        StoreError: there is no such file; the message lists those that are there.
    """
    for folder in (_PACKAGE / "_data", _PACKAGE.parent / "data"):
        path = folder / name
        if path.is_file():
            return path
        if folder.is_dir():
            there = ", ".join(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))
            raise StoreError(f"no shipped data file {name!r}; there are: {there}")
    raise StoreError("the shipped data folder is missing; install sbi-physics again")


def physical_memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
