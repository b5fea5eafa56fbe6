from dataclasses import replace

import pytest

import sbi_physics as sp
from simulators.gaussian_linear import GaussianLinear


class Rescaled:
    """A posterior whose draws are shrunk or widened about their mean."""

    def __init__(self, posterior, factor):
        self.posterior, self.factor = posterior, factor

    def sample(self, n, x_obs, **options):
        samples = self.posterior.sample(n, x_obs, **options)
        mean = samples.values.mean(-2, keepdim=True)
        return replace(samples, values=mean + self.factor * (samples.values - mean))


@pytest.fixture(scope="session")
def rescaled():
    return Rescaled


@pytest.fixture(scope="session")
def gaussian():
    return GaussianLinear(dims=2)


@pytest.fixture(scope="session")
def posterior(gaussian):
    training = sp.simulate(gaussian, 20_000, seed=11, workers=1, progress=False)
    return sp.NPE(gaussian.parameters, "maf").fit(training, seed=12, progress=False)


@pytest.fixture(scope="session")
def fresh(gaussian):
    return sp.simulate(gaussian, 1000, seed=13, workers=1, progress=False).training_set()
