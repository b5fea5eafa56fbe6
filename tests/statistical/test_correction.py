"""Poor fits, corrected: as good as the exact posterior where the weights can be trusted, refused where they cannot."""

import pytest
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.errors import ConvergenceError
from sbi_physics.train.config import TrainConfig
from simulators.gaussian_linear import GaussianLinear

pytestmark = pytest.mark.slow

DRAWS, OBSERVATIONS = 100_000, 3
# Draws without replacement keep to the weights where they are few of the effective ones.
COMPARED, SHARE = 2000, 0.25


@pytest.fixture(scope="module", params=[2, 3])
def problem(request):
    simulator = GaussianLinear(dims=request.param)
    training = sp.simulate(simulator, 2000, seed=71, workers=1, progress=False)
    poor = sp.NPE(simulator.parameters, augment=False, config=TrainConfig(epochs=2))
    observed = sp.simulate(simulator, OBSERVATIONS, seed=72, workers=1, progress=False).x
    return simulator, poor.fit(training, seed=73, progress=False), observed


def test_what_is_not_refused_is_exact_and_so_is_its_evidence(problem):
    simulator, poor, observed = problem
    spread = (simulator.prior_variance + simulator.noise_variance) ** 0.5
    refusals, pulls, distances = [], [], []
    for i, x in enumerate(observed):
        try:
            corrected = poor.correct(simulator.log_likelihood, x, n=DRAWS, seed=74)
        except ConvergenceError as error:
            refusals.append(str(error))
            continue
        assert corrected.diagnostics["pareto_k"] < 0.7
        number = min(COMPARED, int(SHARE * float(corrected.effective_sample_size)))
        independent = corrected.resample(number, seed=75, replace=False).values.float()
        exact = simulator.sample_posterior(number, x, seed=76 + i)
        distances.append(round(sp.diagnostics.c2st(exact, independent, seed=77), 3))
        evidence = float(td.Normal(0.0, spread).log_prob(x.double()).sum())
        pulls.append((corrected.diagnostics["log_evidence"] - evidence) / corrected.diagnostics["log_evidence_error"])
    assert len(refusals) < OBSERVATIONS
    assert all("Pareto k" in message and "more simulations" in message for message in refusals)
    assert max(distances) < 0.53, distances
    assert all(abs(pull) < 3 for pull in pulls), pulls
