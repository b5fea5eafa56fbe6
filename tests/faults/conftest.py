import hashlib
import sys
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
