"""Networks trained further for one observation whose likelihood is known."""

import pytest
import torch

import sbi_physics as sp
from sbi_physics.core.errors import BudgetError, ConvergenceError, ShapeError, UsageError
from sbi_physics.train.config import TrainConfig


@pytest.fixture(scope="module")
def crude_gaussian(gaussian, gaussian_pairs):
    """Hardly trained."""
    estimator = sp.NPE(
        gaussian.parameters, transforms=2, hidden_features=16, config=TrainConfig(epochs=1), augment=False
    )
    return estimator.fit(*(each[:100] for each in gaussian_pairs), seed=3, progress=False)


@pytest.fixture(scope="module")
def x_obs(gaussian):
    return gaussian(torch.tensor([[0.6, -0.4]]), seed=5)[0]


def efficiency(posterior, gaussian, x_obs, seed=9):
    corrected = posterior.correct(gaussian.log_likelihood, x_obs, n=4000, seed=seed, max_pareto_k=10.0)
    return corrected.diagnostics["efficiency"]


def test_refinement_follows_the_exact_posterior(crude_gaussian, gaussian, x_obs):
    before = efficiency(crude_gaussian, gaussian, x_obs)
    refined = crude_gaussian.refine(gaussian.log_likelihood, x_obs, draws=3000, rounds=4, seed=1, progress=False)
    after = efficiency(refined, gaussian, x_obs)
    assert after > max(0.4, 1.3 * before)
    said = refined.provenance["refined"]
    assert said["likelihood_calls"] == 3000 * len(said["efficiency"])
    assert max(said["efficiency"]) > said["efficiency"][0]
    # The network that it came from is as it was.
    assert efficiency(crude_gaussian, gaussian, x_obs) == before


def test_it_ends_when_it_is_good_enough(good, gaussian, x_obs):
    refined = good.refine(gaussian.log_likelihood, x_obs, draws=1000, enough=0.3, progress=False)
    assert refined.provenance["refined"]["likelihood_calls"] == 1000


def test_it_is_for_one_observation(good, gaussian, x_obs, tmp_path):
    refined = good.refine(gaussian.log_likelihood, x_obs, draws=1000, rounds=1, progress=False)
    path = tmp_path / "refined.safetensors"
    refined.save(path)
    draws = sp.load(path).sample(10, seed=1).values
    torch.testing.assert_close(draws, refined.sample(10, x_obs, seed=1).values)
    with pytest.raises(UsageError, match="knows nothing of others"):
        refined.sample(10, x_obs + 1)


def test_wrong_use(good, gaussian, x_obs):
    with pytest.raises(ShapeError, match="expected one observation"):
        good.refine(gaussian.log_likelihood, torch.stack([x_obs, x_obs]), progress=False)
    with pytest.raises(BudgetError, match="does not allow"):
        good.refine(gaussian.log_likelihood, x_obs, draws=100, max_calls=50, progress=False)

    def nowhere(theta, x):
        return torch.full((len(theta),), -torch.inf)

    with pytest.raises(ConvergenceError, match="no"):
        good.refine(nowhere, x_obs, draws=100, progress=False)
