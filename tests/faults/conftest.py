import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sbi_physics.simulation.resolve import resolve_simulator
from sbi_physics.simulation.run import simulate

FILE = Path(__file__).parent.parent / "simulation" / "user_simulators.py"


@pytest.fixture
def user_file():
    return FILE


@pytest.fixture
def user():
    """Make the simulator of a class of user_simulators.py, with its arguments."""

    def make(name, *arguments):
        cls = type(resolve_simulator(f"{FILE}:good"))
        module = sys.modules[cls.__module__]
        return getattr(module, name)(*arguments)

    return make


@pytest.fixture
def digest():
    return lambda path: hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def run():
    """Run `simulate` without a bar."""
    return lambda simulator, n, **more: simulate(simulator, n, progress=False, **more)


class Dask:
    """A scheduler and workers of one thread, each a process of its own, on ports that the system chooses."""

    def __init__(self, folder, **settings):
        self.folder, self.workers, self.settings = folder, [], settings
        self.start_scheduler()

    def _start(self, program, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{program}", "--host", "127.0.0.1", "--no-dashboard"]
        with open(self.folder / f"{program}.log", "a") as log:
            return subprocess.Popen(
                [*command, *arguments],
                env={**os.environ, **self.settings},
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )

    def start_scheduler(self):
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(file))
        end = time.monotonic() + 60
        while True:
            try:
                self.address = json.loads(file.read_text())["address"]
                return
            except (OSError, ValueError):
                assert time.monotonic() < end, (self.folder / "scheduler.log").read_text()
                time.sleep(0.05)

    def start_worker(self, *arguments):
        arguments = arguments or ("--no-nanny",)
        here = ("--nthreads", "1", "--local-directory", str(self.folder))
        self.workers.append(self._start("worker", self.address, *here, *arguments))
        return self.workers[-1]

    def await_workers(self):
        end = time.monotonic() + 60
        while (self.folder / "worker.log").read_text().count("Registered to") < len(self.workers):
            assert time.monotonic() < end, (self.folder / "worker.log").read_text()
            time.sleep(0.05)

    def stop(self):
        for process in (*self.workers, self.scheduler):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def new_dask(tmp_path):
    """Start a scheduler of our own, with settings of Dask as environment variables."""
    started = []

    def start(**settings):
        folder = tmp_path / f"dask{len(started)}"
        folder.mkdir()
        started.append(Dask(folder, **settings))
        return started[-1]

    yield start
    for dask in started:
        dask.stop()


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    """A scheduler with two workers for the tests of a file that leave it alive."""
    dask = Dask(tmp_path_factory.mktemp("dask"))
    dask.start_worker()
    dask.start_worker()
    dask.await_workers()
    yield dask
    dask.stop()
