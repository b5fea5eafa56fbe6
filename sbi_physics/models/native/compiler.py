"""Compile a C source with the compiler of the machine, once, and keep the library; run it in PyTorch's threads.

A library takes one to two seconds to compile and a few milliseconds to load.  It is kept in the cache folder under a
hash of source, flags, compiler and processor, so that a folder shared by several machines is safe.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from sbi_physics.store.datasets import cache_folder

__all__ = ["Definitions", "find_compiler", "load_library", "team"]

_log = logging.getLogger(__name__)
_HEADERS = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-w")
_SECONDS = 120
_IMPORTED_BY = os.getpid()

# Macros of a source and their values, as text.
Definitions = tuple[tuple[str, str], ...]


@functools.cache
def load_library(source: Path, definitions: Definitions = ()) -> ctypes.CDLL | None:
    """The library of a C source, whose entry is ``run``; None where it cannot be compiled (said once, in the log)."""
    compiler = find_compiler()
    if compiler is None:
        _log_once("running without native code: no C compiler was found (cc, gcc or clang)")
        return None
    command = [*compiler[0], *_FLAGS, *(f"-D{name}={value}" for name, value in definitions)]
    texts = [path.read_text() for path in (source, *sorted(_HEADERS.glob("*.h")))]
    key = "\n".join([*texts, *command, compiler[1], _processor()])
    path = cache_folder() / "native" / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.so"
    try:
        if not path.exists():
            _compile([*command, f"-I{_HEADERS}"], source, path)
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        _log_once(f"running without native code: {' '.join(str(detail).split())[:300]}")
        return None
    library.run.restype = None
    return library


def team() -> ctypes.c_void_p:
    """The function of PyTorch's own OpenMP library that runs another in all its threads; null where there is none.

    A forked process has the library but not its threads, and would wait for them for ever.
    """
    return _parallel() if os.getpid() == _IMPORTED_BY else ctypes.c_void_p()


@functools.cache
def _parallel() -> ctypes.c_void_p:
    try:
        library = ctypes.CDLL(str(next(Path(torch.__file__).parent.joinpath("lib").glob("libtorch_cpu.*"))))
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p)
    except (OSError, StopIteration, AttributeError):
        return ctypes.c_void_p()


@functools.cache
def _log_once(message: str) -> None:
    _log.warning(message)


def _compile(command: list[str], source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        arguments = [*command, "-o", str(unfinished), str(source), "-lm"]
        subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=_SECONDS)
        # Another process may have been faster: either file will do.
        os.replace(unfinished, path)


@functools.cache
def find_compiler() -> tuple[list[str], str] | None:
    """The command of the C compiler, ``CC`` first, and its version; None where there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named, ["cc"], ["gcc"], ["clang"]]:
        if command and shutil.which(command[0]):
            version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
            return command, version.partition("\n")[0]
    return None


@functools.cache
def _processor() -> str:
    """What -march=native stands for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    )
