import hashlib
from pathlib import Path

import pytest

from sbi_physics.simulation.resolve import resolve_simulator
from sbi_physics.simulation.run import simulate

FILE = Path(__file__).parent / "user_simulators.py"


@pytest.fixture
def user():
    """Make the simulator of a class of user_simulators.py."""
    return lambda name: resolve_simulator(f"{FILE}:{name}")


@pytest.fixture
def user_file():
    return FILE


@pytest.fixture
def digest():
    return lambda path: hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def run():
    """Run `simulate` without a bar."""
    return lambda simulator, n, **more: simulate(simulator, n, progress=False, **more)
