"""How this process has programs run: through a `supervisor`, which ends them whatever becomes of us."""

import json
import os
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sbi_physics.core.errors import SimulationError, StoreError
from sbi_physics.simulation import supervisor

__all__ = ["Ended", "ProgramRunner", "Request"]

_FAREWELL_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """A program to run.

    Attributes:
        command: the program and its arguments.
        environment: variables that are set, beside those inherited.
        inherit: whether the variables of this process are.
        timeout: seconds; None for no limit.
        memory: bytes of address space; None for no limit.
    """

    command: list[str]
    environment: dict[str, str]
    inherit: bool = True
    timeout: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        code: its exit code, or minus the number of the signal that ended it; None where it was late or never started.
        late: whether it took longer than it may.
        error: why it could not be started.
    """

    code: int | None = None
    late: bool = False
    error: str = ""


class ProgramRunner:
    """A supervisor process with a folder for scratch files.

    Args:
        base: where that folder is made; None for the place of temporary files.

    Attributes:
        folder: in which programs are run; whoever asks makes and empties it.
        stdout: the file of what the last program wrote to standard output.
        stderr: and to standard error.

    Raises:
        StoreError: nothing can be written there.
    """

    def __init__(self, base: Path | None = None) -> None:
        try:
            root = Path(tempfile.mkdtemp(prefix="sbi-physics-", dir=base))
        except OSError as error:
            raise StoreError(f"{base}: no folder for scratch files can be made: {error}") from error
        self.owner, self.folder = os.getpid(), root / "run"
        self.stdout, self.stderr = root / "stdout", root / "stderr"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Whoever kills our process group must not hit the one who is to clear up.
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _end, self._process, self.owner)

    def run(self, request: Request) -> Ended:
        """Run a program in `folder` to its end.

        Raises:
            SimulationError: the supervisor is gone.
        """
        content = {
            **request.__dict__,
            "folder": str(self.folder),
            "stdout": str(self.stdout),
            "stderr": str(self.stderr),
        }
        stdin, stdout = self._process.stdin, self._process.stdout
        line = b""
        try:
            if stdin is not None and stdout is not None:
                stdin.write(json.dumps(content).encode() + b"\n")
                stdin.flush()
                line = stdout.readline()
        except BaseException as error:
            # What is still running is ended, and its answer is never taken for that of another.
            self.close()
            if not isinstance(error, OSError | ValueError):
                raise
        if not line:
            self.close()
            raise SimulationError("the process that runs programs was ended by another")
        answer = json.loads(line)
        return Ended(answer.get("code"), bool(answer.get("timeout")), answer.get("error", ""))

    @property
    def usable(self) -> bool:
        """Whether it can run programs for this process."""
        return self._end.alive and self.owner == os.getpid()

    def close(self) -> None:
        """End whatever is running, and remove the scratch files."""
        self._end()


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    if owner != os.getpid():
        process.returncode = 0  # a copy of the parent has no say in it
        return
    try:
        process.wait(_FAREWELL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
