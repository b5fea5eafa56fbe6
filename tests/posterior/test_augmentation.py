"""Draws of a learned likelihood beside the simulations: only where they help, and never where they cannot be right."""

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.random import seeded
from sbi_physics.posterior.augmentation import synthetic_pairs, worth_trying
from sbi_physics.train.config import TrainConfig
from simulators.gaussian_linear import GaussianLinear
from simulators.slcp import SLCP

TINY = {"transforms": 1, "hidden_features": 8, "blocks": 1, "config": TrainConfig(epochs=2)}


def test_it_is_tried_where_observables_are_few_and_simulations_too():
    generator = torch.Generator().manual_seed(0)
    assert worth_trying(torch.randn(100, 4, 5, generator=generator))
    assert not worth_trying(torch.randn(100, 21, generator=generator))
    assert worth_trying(torch.cat([torch.randn(100, 20, generator=generator), torch.ones(100, 30)], 1))
    assert not worth_trying(torch.ones(100, 3))
    assert not worth_trying(torch.randn(20_001, 1, generator=generator))


def test_synthetic_pairs_follow_the_simulator(gaussian, gaussian_pairs):
    made = synthetic_pairs(
        gaussian.parameters,
        *gaussian_pairs,
        config=TrainConfig(epochs=10),
        device=torch.device("cpu"),
        seed=1,
        progress=False,
    )
    assert made.theta.shape == made.x.shape == (20_000, 2)
    residual = (made.x - made.theta) / gaussian.noise_variance**0.5
    # 20,000 draws: 0.007; what 4,000 simulations teach of the noise is worth two or three times that.
    assert (residual.mean(0).abs() < 0.06).all()
    assert ((residual.std(0) - 1).abs() < 0.06).all()
    prior = made.theta.std(0) / gaussian.prior_variance**0.5
    assert ((prior - 1).abs() < 0.03).all()


def test_the_better_of_the_two_fits_is_kept(uniform, uniform_pairs):
    plain = sp.NPE(uniform.parameters, **TINY, augment=False).fit(*uniform_pairs, progress=False)
    both = sp.NPE(uniform.parameters, **TINY, augment=True).fit(*uniform_pairs, progress=False)
    again = sp.NPE(uniform.parameters, **TINY, augment="auto").fit(*uniform_pairs, progress=False)
    assert plain.provenance["augmented"] is False
    assert both.provenance["validation_log_prob"] >= plain.provenance["validation_log_prob"]
    probes = torch.zeros(3, 2)
    assert torch.equal(both.log_prob(probes, [0.1, 0.2]), again.log_prob(probes, [0.1, 0.2]))


def test_a_likelihood_that_is_hard_to_learn_is_noticed():
    """A thin ring of radius theta: a flow makes it too wide, and the simulations alone teach more."""
    with seeded(3):
        theta, angle, noise = 1 + torch.rand(2000, 1), 6.283 * torch.rand(2000, 1), torch.randn(2000, 1)
    x = theta * (1 + 0.001 * noise) * torch.cat([angle.cos(), angle.sin()], 1)
    prior = td.Independent(td.Uniform(torch.ones(1), 2 * torch.ones(1)), 1)
    fit = sp.NPE(prior, augment=True).fit(theta, x, progress=False)
    assert fit.provenance["augmented"] is False
    # Its own network is the one that is trained without.
    plain = sp.NPE(prior, augment=False).fit(theta, x, progress=False)
    assert torch.equal(fit.log_prob([[1.5]], [1.0, 1.0]), plain.log_prob([[1.5]], [1.0, 1.0]))


def test_it_is_not_for_weights_failures_or_budgets(uniform, uniform_pairs):
    theta, x = uniform_pairs
    spoilt = x.clone()
    spoilt[3] = torch.nan
    estimator = sp.NPE(uniform.parameters, **TINY, augment=True)
    for options in ({"weights": torch.ones(500)}, {"failed": "correct"}):
        with pytest.raises(
            sp.UsageError, match="augment: expected simulations in memory, without weights and without failures"
        ):
            estimator.fit(theta, spoilt if "failed" in options else x, progress=False, **options)
    silent = sp.NPE(uniform.parameters, **TINY).fit(theta, x, weights=torch.ones(500), progress=False)
    assert silent.provenance["augmented"] is False
    with pytest.raises(sp.UsageError, match="augment: expected True, False or 'auto', got 'never'"):
        sp.NPE(uniform.parameters, augment="never")


@pytest.mark.slow
def test_a_simple_likelihood_behind_a_complex_posterior_is_what_it_is_for():
    slcp = SLCP()
    pairs = sp.simulate(slcp, 2000, seed=1, workers=1, progress=False).training_set()
    fresh = sp.simulate(slcp, 2000, seed=2, workers=1, progress=False).training_set()
    found = {
        augment: float(
            sp.NPE(slcp.parameters, augment=augment).fit(*pairs, seed=3, progress=False).log_prob(*fresh).mean()
        )
        for augment in (False, "auto")
    }
    # Seeds scatter by 0.1 nats.
    assert found["auto"] > found[False] + 0.3


def test_a_simulator_of_many_numbers_is_left_alone():
    gaussian = GaussianLinear(dims=21)
    pairs = sp.simulate(gaussian, 100, seed=1, workers=1, progress=False).training_set()
    assert sp.NPE(gaussian.parameters, **TINY).fit(*pairs, progress=False).provenance["augmented"] is False
