"""Simulators as a user writes them, in a file of their own; some misbehave."""

import os
import resource
import signal
import time

import numpy as np
import torch
from torch.distributions import Normal, Uniform

from sbi_physics.core.parameters import Parameter, Parameters


class Good:
    parameters = Parameters([Parameter("a", Uniform(0.0, 1.0), unit="m / s"), Parameter("b", Normal(0.0, 1.0))])

    def __call__(self, theta, *, seed):
        noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed))
        return theta + 0.1 * noise


class Slow(Good):
    def __call__(self, theta, *, seed):
        time.sleep(0.03)
        return super().__call__(theta, seed=seed)


class Named(Good):
    def __call__(self, theta, *, seed):
        x = super().__call__(theta, seed=seed)
        return {"velocity": x[:, 0].double(), "image": np.ones((len(x), 2, 3))}


class Global(Good):
    """Draws from the global generators, as old code does."""

    def __call__(self, theta, *, seed):
        legacy = torch.from_numpy(np.random.normal(size=theta.shape))  # noqa: NPY002
        return theta + torch.randn(theta.shape) + legacy


class Raises(Good):
    def __call__(self, theta, *, seed):
        if bool((theta[:, 0] > 0.95).any()):
            raise ValueError("the orbit\n is not bound")
        x = super().__call__(theta, seed=seed)
        x[theta[:, 0] < 0.05] = torch.nan
        return x


class NeverWorks(Good):
    def __call__(self, theta, *, seed):
        raise RuntimeError("no licence")


class Ragged(Good):
    """Rows with a large a have one number too many."""

    def __call__(self, theta, *, seed):
        wide = bool((theta[:, 0] > 0.9).any())
        if wide and len(theta) > 1:
            return torch.zeros(len(theta) + 1, 2)
        return torch.zeros(len(theta), 3 if wide else 2)


class WideBlocks(Good):
    """Blocks other than the first give three numbers for each row."""

    def __call__(self, theta, *, seed):
        return torch.zeros(len(theta), 2 if os.environ.get("SBI_TEST_FIRST") == str(seed) else 3)


class Hangs(Good):
    def __call__(self, theta, *, seed):
        if bool((theta[:, 0] > 0.9).any()):
            time.sleep(1000)
        return super().__call__(theta, seed=seed)


class HangsAlways(Good):
    """Says in a file that it hangs."""

    def __call__(self, theta, *, seed):
        open(os.environ["SBI_TEST_FLAG"], "w").close()
        time.sleep(1000)


class Dies(Good):
    def __call__(self, theta, *, seed):
        if bool((theta[:, 0] > 0.9).any()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(theta, seed=seed)


class DiesOnce(Good):
    """The first call that finds no file at `path` makes it and dies, as if killed from outside."""

    def __init__(self, path):
        self.path = path

    def __call__(self, theta, *, seed):
        if not os.path.exists(self.path):
            open(self.path, "w").close()
            os._exit(3)
        return super().__call__(theta, seed=seed)


class KillsItsWorker(Good):
    """Ends the process that its own was started by, as a simulation may that takes the memory of a whole machine."""

    def __call__(self, theta, *, seed):
        if bool((theta[:, 0] > 0.9).any()):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(1000)
        return super().__call__(theta, seed=seed)


class Greedy(Good):
    """Takes more and more memory; with a `limit`, its process is refused more than so many bytes beyond what it has."""

    def __init__(self, limit=None):
        self.limit = limit

    def __call__(self, theta, *, seed):
        if self.limit:
            with open("/proc/self/statm") as file:
                most = int(file.read().split()[0]) * resource.getpagesize() + self.limit
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
        hoard = []
        while bool((theta[:, 0] > 0.9).any()):
            hoard.append(np.ones(2**22))
            time.sleep(0.002)
        return super().__call__(theta, seed=seed)


class Chatty(Good):
    def __call__(self, theta, *, seed):
        print("step 1 of 7")
        return super().__call__(theta, seed=seed)


def make():
    return Good()


good = Good()
not_a_simulator = 3


def broken():
    raise RuntimeError("no such table")
