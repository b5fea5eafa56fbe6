"""A problem whose posterior is known, and posteriors that are wrong in known ways."""

import math

import pytest
import torch

from sbi_physics.core.samples import Samples

NAMES = ("K_b", "gamma", "log_jitter")
DEVIATION = math.sqrt(0.5)


class GaussianPosterior:
    """theta ~ N(0, 1) and x ~ N(theta, 1) in each of P directions, then entries of x that are noise alone.

    The posterior is N(x / 2, 1 / 2), here with a width and a shift (in its deviations) that err; with `where` they err
    only at observations for which it holds, and with ``blind=True`` it is the prior.
    """

    def __init__(self, width=1.0, shift=0.0, *, dims=3, where=None, blind=False):
        self.width, self.shift, self.dims, self.where, self.blind = width, shift, dims, where, blind
        self.calls = []

    def moments(self, x):
        x = x["x"] if isinstance(x, dict) else x
        wrong = torch.ones(len(x), dtype=torch.bool) if self.where is None else self.where(x)
        width = torch.where(wrong, self.width, 1.0).unsqueeze(1)
        if self.blind:
            return torch.zeros(len(x), self.dims), torch.ones(len(x), 1)
        return x[:, : self.dims] / 2 + torch.where(wrong, self.shift, 0.0).unsqueeze(1) * DEVIATION, DEVIATION * width

    def sample(self, n, x_obs, *, seed):
        mean, deviation = self.moments(x_obs)
        self.calls.append(len(mean))
        generator = torch.Generator().manual_seed(seed % 2**31)
        noise = torch.randn(len(mean), n, self.dims, generator=generator)
        values = mean.unsqueeze(1) + deviation.unsqueeze(1) * noise
        return Samples(values if len(mean) > 1 else values[0], NAMES[: self.dims])

    def log_prob(self, theta, x_obs):
        return torch.distributions.Normal(*self.moments(x_obs)).log_prob(theta).sum(-1)


@pytest.fixture(scope="session")
def gaussian():
    return GaussianPosterior


@pytest.fixture(scope="session")
def pairs():
    def make(n=400, seed=0, dims=3, entries=None):
        generator = torch.Generator().manual_seed(seed)
        theta = torch.randn(n, dims, generator=generator)
        x = torch.randn(n, entries or dims, generator=generator)
        x[:, :dims] += theta
        return theta, x

    return make
