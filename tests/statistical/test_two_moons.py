"""The defaults are good enough for a posterior of two thin crescents, which MCMC finds hard."""

import pytest
import torch

import sbi_physics as sp
from simulators.two_moons import TwoMoons

pytestmark = pytest.mark.slow

N = 4000


@pytest.fixture(scope="module")
def posterior():
    simulator = TwoMoons()
    return sp.NPE(simulator.parameters).fit(
        sp.simulate(simulator, 10_000, seed=21, workers=1, progress=False), seed=22, progress=False
    )


@pytest.mark.parametrize("row", [0, 1])
def test_two_moons_cannot_be_told_from_the_exact_posterior(row, posterior):
    simulator = TwoMoons()
    theta = torch.tensor([[0.2, -0.3], [-0.4, -0.1]])
    x_obs = simulator(theta, seed=23)[row]
    exact = simulator.sample_posterior(N, x_obs, seed=24)
    accuracy = sp.diagnostics.c2st(exact, posterior.sample(N, x_obs, seed=25).values)
    # Equal distributions give 0.5 +- 0.5 / sqrt(2 N) = 0.006.
    assert 0.47 < accuracy <= 0.60
