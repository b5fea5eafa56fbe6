"""The defaults are good enough for a posterior of two thin crescents, which MCMC finds hard."""

from statistics import median

import pytest
import torch

import sbi_physics as sp
from simulators.two_moons import TwoMoons

pytestmark = pytest.mark.slow

N = 2000


def test_two_moons_can_hardly_be_told_from_the_exact_posterior():
    simulator = TwoMoons()
    training = sp.simulate(simulator, 10_000, seed=21, workers=1, progress=False)
    posterior = sp.NPE(simulator.parameters).fit(training, seed=22, progress=False)
    observations = simulator(simulator.parameters.sample(5, seed=23), seed=24)
    accuracies = []
    for x_obs in observations:
        exact = simulator.sample_posterior(N, x_obs, seed=25)
        accuracies.append(sp.diagnostics.c2st(exact, posterior.sample(N, x_obs, seed=26).values))
    # Equal distributions give 0.5 +- 0.5 / sqrt(2 N) = 0.008.
    assert 0.47 < median(accuracies) <= 0.56, accuracies
    assert torch.tensor(accuracies).max() < 0.7
