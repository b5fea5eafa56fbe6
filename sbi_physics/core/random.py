"""Random streams: every random number comes from one integer seed given at the front door.

`derive` makes the seed of a sub-task from the seed of its task and a path of keys (integers or words), so that
streams never overlap and never depend on the order of execution (numpy's `SeedSequence`).  `seeded` runs a block
of torch code on its own stream and leaves the global generators as they were.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from sbi_physics.core.errors import UsageError

__all__ = ["check_seed", "derive", "numpy_generator", "seeded"]


def check_seed(seed: int) -> int:
    """Return `seed` if it is an integer in [0, 2**63), else raise `UsageError`."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**63:
        raise UsageError(f"seed: expected an integer in [0, 2**63), got {seed!r}")
    return int(seed)


def derive(seed: int, *path: int | str) -> int:
    """Derive the seed of a sub-task, in [0, 2**63), from a seed and a path of integers and words."""
    words = [key if isinstance(key, int) else _word(key) for key in path]
    state = np.random.SeedSequence(check_seed(seed), spawn_key=words).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def _word(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")


def numpy_generator(seed: int) -> np.random.Generator:
    """Return a numpy generator on the stream of `seed`."""
    return np.random.default_rng(check_seed(seed))


@contextmanager
def seeded(seed: int | None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block on the torch stream of `seed`; the global generators are as before afterwards.

    With ``seed=None`` the block draws from the global generators.
    """
    if seed is None:
        yield
        return
    device = torch.device(device)
    devices = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which would also seed the devices that are not restored afterwards.
        torch.default_generator.manual_seed(check_seed(seed))
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
