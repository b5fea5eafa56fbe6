"""Rounds of simulations for one observation."""

import pytest
import torch

import sbi_physics as sp
from sbi_physics.posterior.truncated import TruncatedPrior
from sbi_physics.train.config import TrainConfig
from simulators.gaussian_linear import GaussianLinearUniform

X_OBS = torch.tensor([0.3, -0.2])
SMALL = {"transforms": 2, "hidden_features": 16, "config": TrainConfig(epochs=20)}


@pytest.fixture(scope="module")
def narrow():
    """Noise of a tenth of the prior's width: most of the prior is ruled out."""
    return GaussianLinearUniform(dims=2, noise_variance=0.01)


@pytest.fixture(scope="module")
def posterior(narrow):
    return sp.TSNPE(narrow.parameters, **SMALL).fit(
        narrow, X_OBS, simulations=1500, rounds=3, seed=1, workers=1, progress=False
    )


def test_the_posterior_is_the_exact_one(posterior, narrow):
    exact = narrow.sample_posterior(4000, X_OBS, seed=2).double()
    found = posterior.sample(4000, seed=3).values.double()
    assert ((found.mean(0) - exact.mean(0)).abs() / exact.std(0) < 0.25).all()
    assert ((found.std(0) / exact.std(0) - 1).abs() < 0.25).all()


def test_a_learned_likelihood_refines_the_last_round(narrow):
    """Noise that adds up is learned in a few epochs, a posterior network needs more."""
    exact = narrow.sample_posterior(4000, X_OBS, seed=2).double()
    short = {"transforms": 1, "hidden_features": 8, "config": TrainConfig(epochs=4)}
    off = {}
    for augment in (False, True):
        estimator = sp.TSNPE(narrow.parameters, **short, augment=augment)
        fit = estimator.fit(narrow, X_OBS, simulations=1000, rounds=2, seed=1, workers=1, progress=False)
        assert fit.provenance["augmented"] is augment
        off[augment] = float((fit.sample(4000, seed=3).values.double().std(0) / exact.std(0) - 1).abs().max())
    assert off[True] < 0.15 < off[False]


def test_failures_leave_the_last_round_to_the_simulations(narrow):
    """Draws of a likelihood would not know where simulations fail."""

    class Failing:
        name, parameters = "failing", narrow.parameters

        def __call__(self, theta, *, seed):
            x = narrow(theta, seed=seed)
            return torch.where(theta[:, :1] > 0.9, torch.nan, x)

    estimator = sp.TSNPE(narrow.parameters, transforms=1, hidden_features=8, config=TrainConfig(epochs=2), augment=True)
    options = {"simulations": 400, "rounds": 2, "workers": 1, "progress": False, "seed": 1}
    assert estimator.fit(Failing(), X_OBS, failed="correct", **options).provenance["augmented"] is False


def test_the_budget_is_kept_and_each_region_is_inside_the_last(posterior):
    rounds = posterior.provenance["rounds"]
    assert [r["simulations"] for r in rounds] == [500, 500, 500]
    shares = [r["share_of_prior"] for r in rounds]
    assert shares[0] == 1.0
    assert 0 < shares[2] <= shares[1] < 0.6


def test_it_is_for_one_observation(posterior, tmp_path):
    assert torch.equal(posterior.sample(5, X_OBS).values, posterior.sample(5).values)
    with pytest.raises(sp.UsageError, match="was fitted for one observation"):
        posterior.sample(5, X_OBS + 0.1)
    posterior.save(tmp_path / "p.st")
    again = sp.load(tmp_path / "p.st")
    assert torch.equal(again.sample(5).values, posterior.sample(5).values)
    with pytest.raises(sp.UsageError, match="was fitted for one observation"):
        again.log_prob([[0.0, 0.0]], X_OBS + 0.1)
    assert "one x of shape (2,)" in repr(again)


def test_same_seed_same_bytes(narrow):
    fit = {"simulations": 100, "rounds": 2, "workers": 1, "progress": False}
    quick = {"transforms": 1, "hidden_features": 8, "config": TrainConfig(epochs=2)}
    first, second, other = (sp.TSNPE(narrow.parameters, **quick).fit(narrow, X_OBS, seed=s, **fit) for s in (4, 4, 5))
    assert torch.equal(first.sample(5).values, second.sample(5).values)
    assert not torch.equal(first.sample(5).values, other.sample(5).values)


def test_a_region_too_small_for_rejection_is_resampled(posterior, narrow):
    prior = TruncatedPrior(narrow.parameters, X_OBS.unsqueeze(0)).cut(posterior, 1e-3, seed=6)
    rejected, share = prior.sample(2000, seed=7)
    resampled = prior._resampled(2000, seed=8)
    assert bool(prior.within(rejected).all())
    assert bool(prior.within(resampled).all())
    assert 0 < share < 0.5
    # Both are uniform on the same region.
    assert ((rejected.mean(0) - resampled.mean(0)).abs() / rejected.std(0) < 0.15).all()
    assert ((resampled.std(0) / rejected.std(0) - 1).abs() < 0.15).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rounds": 0}, sp.UsageError, "rounds: expected an integer of at least 1"),
        ({"simulations": 20}, sp.UsageError, "expected at least 10 for each of 5 rounds, got 20"),
        ({"epsilon": 0.0}, sp.UsageError, "epsilon: expected a number between 0 and 1"),
        ({"x_obs": [0.1, 0.2, 0.3]}, sp.ShapeError, r"x_obs: expected shape \(2,\)"),
        ({"x_obs": [0.1, float("nan")]}, sp.NonFiniteError, "x_obs: expected finite"),
    ],
)
def test_wrong_arguments_are_named(options, error, message, narrow):
    options = {"x_obs": X_OBS, "simulations": 100, **options}
    with pytest.raises(error, match=message):
        sp.TSNPE(narrow.parameters, **SMALL).fit(narrow, workers=1, progress=False, **options)
