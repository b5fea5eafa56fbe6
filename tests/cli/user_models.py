"""Simulators as a user writes them."""

import os
import subprocess

import torch
from torch.distributions import Uniform

from sbi_physics.core.parameters import Parameter, Parameters


class Line:
    parameters = Parameters([Parameter("slope", Uniform(-1.0, 1.0), unit="m / s")])

    def __call__(self, theta, *, seed):
        return theta + 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed))

    def log_likelihood(self, theta, x):
        print("evaluating")
        return -50 * ((x - theta.double()) ** 2).sum(-1)


class Chatty(Line):
    """Prints from Python, past it, and from a program that it starts."""

    def __call__(self, theta, *, seed):
        print("step 1 of 7")
        os.write(1, b"step 2 of 7\n")
        subprocess.run(["echo", "step 3 of 7"], check=True)
        return super().__call__(theta, seed=seed)


class NeverWorks(Line):
    def __call__(self, theta, *, seed):
        raise RuntimeError("no licence")
