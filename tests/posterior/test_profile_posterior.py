"""The two ways to be rid of a nuisance parameter of a learned posterior: the marginal, and the profile."""

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.posterior.profile_posterior import profile_posterior
from sbi_physics.train.config import TrainConfig

X_OBS = torch.tensor([0.2, -0.3])
QUICK = {"points": 7, "ranges": {"theta_0": (-0.3, 0.5)}, "starts": 3, "steps": 30}


def exact(profile):
    """Of N(x / 2, 0.05) in each of two directions: marginal and profile are the same but for a constant."""
    return -((profile.points[:, 0] - 0.1) ** 2) / (2 * 0.05)


@pytest.mark.parametrize("estimator", ["npe", "nle"])
def test_gaussian(estimator, good, gaussian, gaussian_pairs):
    posterior = good
    if estimator == "nle":
        learned = sp.NLE(gaussian.parameters, config=TrainConfig(epochs=8))
        posterior = learned.fit(*gaussian_pairs, seed=5, progress=False)
    profile = profile_posterior(posterior, "theta_0", X_OBS, **QUICK)
    assert (profile.log_likelihood - exact(profile)).abs().max() < 0.4
    assert (profile.estimate - torch.tensor([0.1, -0.15], dtype=torch.float64)).abs().max() < 0.1
    # The profile of the likelihood, which knows no prior, is centred elsewhere: at x.
    assert (profile.log_likelihood + (profile.points[:, 0] - 0.2) ** 2 / 0.2).abs().max() > 1


def test_marginal_and_profile_differ_where_the_volume_of_the_nuisance_parameter_does(good):
    """A funnel: ln b ~ N(0, 1) and a ~ N(0, b); the marginal of ln b is standard, its profile leans to small b."""
    scale = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    draws = torch.stack([scale, torch.exp(scale) * torch.randn(4000)], 1)
    marginal = sp.Samples(draws, ("scale", "a")).select("scale")
    assert marginal.names == ("scale",)
    assert abs(float(marginal.values.mean())) < 5 / 4000**0.5

    def funnel(theta):
        return -0.5 * theta[:, 0] ** 2 - theta[:, 0] - 0.5 * (theta[:, 1] / theta[:, 0].exp()) ** 2

    prior = sp.Parameters([sp.Parameter("scale", td.Uniform(-6.0, 6.0)), sp.Parameter("a", td.Uniform(-9.0, 9.0))])
    profile = sp.profile_likelihood(funnel, prior, "scale", points=[-1.0, 0.0, 1.0])
    assert float(profile.estimate[0]) == pytest.approx(-1, abs=0.02)
    expected = torch.tensor([0.0, -0.5, -2.0], dtype=torch.float64)
    torch.testing.assert_close(profile.log_likelihood, expected, rtol=0, atol=1e-3)


def test_wrong_arguments(good):
    with pytest.raises(sp.UsageError, match="expected one observation, got 2 separate ones"):
        profile_posterior(good, "theta_0", torch.zeros(2, 2))
    with pytest.raises(sp.UsageError, match="expected one of theta_0, theta_1; got 'mass'"):
        profile_posterior(good, "mass", X_OBS)


@pytest.mark.parametrize("x", [4.95, 5.02])
def test_next_to_a_bound(x):
    """A measurement of sigma 0.1 next to the upper bound 5: the density of a flow may rise there without limit."""
    prior = sp.Parameters([sp.Parameter("a", td.Uniform(0.0, 5.0)), sp.Parameter("b", td.Uniform(0.0, 5.0))])
    theta = prior.sample(6000, seed=1)
    data = theta + 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(2))
    posterior = sp.NPE(prior, config=TrainConfig(epochs=15)).fit(theta, data, seed=3, progress=False)
    profile = profile_posterior(posterior, "a", torch.tensor([x, 2.5]))
    low, high = profile.interval()[0].tolist()
    # Exactly: from one sigma below the mode, the smaller of x and 5, up to the bound.
    mode = min(x, 5.0)
    edge = 5 - ((5 - x) ** 2 + 0.01) ** 0.5 if x > 5 else x - 0.1
    assert abs(low - edge) < 0.05
    assert low < mode - 0.04
    assert 4.97 < high <= 5
