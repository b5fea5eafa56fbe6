"""A small process that runs programs, one after the other, and outlives whoever asked for them.

Run as a script with nothing but the standard library, so that it is small and starts its programs fast.  A request is a
line of JSON on standard input, the answer one on standard output.  Every program leads a process group of its own; when
it has ended, has taken too long, or the parent is gone (its end of the pipe is closed, however it died), the whole
group is killed.  At the end the folder of scratch files goes.
"""

import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["main"]


def main(root: str) -> None:
    """Answer requests until standard input is closed; then remove the folder `root`."""
    wake, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    waiting = b""
    try:
        while True:
            line, found, waiting = waiting.partition(b"\n")
            if not found:
                more = os.read(0, 1 << 16)
                if not more:
                    return
                waiting = line + more
                continue
            answer = _run(json.loads(line), wake)
            if answer is None:
                return
            os.write(1, json.dumps(answer).encode() + b"\n")
    except (BrokenPipeError, KeyboardInterrupt):
        return
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _run(request: dict[str, Any], wake: int) -> dict[str, Any] | None:
    """Run one program; None where the parent is gone."""
    environment = {**(os.environ if request["inherit"] else {}), **request["environment"]}
    try:
        with (
            open(request["stdout"], "wb") as stdout,
            open(request["stderr"], "wb") as stderr,
            _limited(request["memory"]),
        ):
            process = subprocess.Popen(
                request["command"],
                cwd=request["folder"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
    except (OSError, subprocess.SubprocessError, MemoryError) as error:
        return {"error": f"cannot be started: {error}"}
    how = _wait(process.pid, request["timeout"], wake)
    # Before it is reaped, so that its number cannot be that of somebody else.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    if how == "orphaned":
        return None
    return {"timeout": True} if how == "late" else {"code": code}


@contextmanager
def _limited(memory: int | None) -> Iterator[None]:
    """Lower the limit of this process for as long as it takes to start another, which inherits it.

    A function that runs between fork and exec would do it too, and make starting a program three times as slow.
    """
    if memory is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    new = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (new, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _wait(pid: int, timeout: float | None, wake: int) -> str:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return "ended"
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return "late"
        # The parent asks for nothing while a program runs: what can be read then is the end of the pipe.
        ready = select.select([0, wake], [], [], left)[0]
        if wake in ready:
            os.read(wake, 4096)
        if 0 in ready:
            return "orphaned"


if __name__ == "__main__":
    main(sys.argv[1])
