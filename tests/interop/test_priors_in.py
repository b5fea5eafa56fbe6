"""Any distribution of torch as a prior: beyond the families of ``core/test_parameters.py``, those built of others.

Each goes through training data, a fit and draws, which must lie inside its support, and its density must be torch's.
"""

import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.errors import SupportError
from sbi_physics.core.parameters import Parameters
from sbi_physics.train.config import TrainConfig

INF = math.inf
ONE = torch.ones(2)
PRIORS = {
    "Independent": (td.Independent(td.Uniform(-ONE, 2 * ONE), 1), (-1, 2)),
    "LogNormal": (td.LogNormal(0 * ONE, ONE), (0, INF)),
    "Gamma": (td.Gamma(2 * ONE, 3 * ONE), (0, INF)),
    "InverseGamma": (td.InverseGamma(3 * ONE, ONE), (0, INF)),
    "Beta": (td.Beta(2 * ONE, 5 * ONE), (0, 1)),
    "Kumaraswamy": (td.Kumaraswamy(2 * ONE, 3 * ONE), (0, 1)),
    "Weibull": (td.Weibull(ONE, 1.5 * ONE), (0, INF)),
    "Gumbel": (td.Gumbel(0 * ONE, ONE), (-INF, INF)),
    "a shifted Beta": (
        td.TransformedDistribution(td.Beta(2 * ONE, 2 * ONE), td.AffineTransform(-3 * ONE, 5 * ONE)),
        (-3, 2),
    ),
    "a mirrored log-normal": (
        td.TransformedDistribution(td.LogNormal(0 * ONE, ONE), td.AffineTransform(2.0, -1.0)),
        (-INF, 2),
    ),
    "a transformed one among others": (
        td.Independent(td.TransformedDistribution(td.Uniform(0 * ONE, ONE), td.AffineTransform(1.0, 2.0)), 1),
        (1, 3),
    ),
    "a linear map": (
        td.TransformedDistribution(
            td.Independent(td.Normal(0 * ONE, ONE), 1),
            td.AffineTransform(ONE, 2 * ONE, event_dim=1),
        ),
        (-INF, INF),
    ),
    "a power law": (
        td.TransformedDistribution(td.Exponential(ONE), [td.ExpTransform(), td.AffineTransform(0.0, 10.0)]),
        (10, INF),
    ),
    "a logit-normal": (td.TransformedDistribution(td.Normal(0 * ONE, ONE), td.SigmoidTransform()), (0, 1)),
}


class Rotation(td.Transform):
    domain = codomain = td.constraints.real_vector
    bijective = True

    def _call(self, x):
        return torch.stack([x[..., 0] + x[..., 1], x[..., 0] - x[..., 1]], -1) / math.sqrt(2)


def test_a_support_that_is_no_box_any_more_is_refused():
    box = td.Independent(td.Uniform(0 * ONE, ONE), 1)
    with pytest.raises(SupportError, match="after Rotation"):
        Parameters.from_prior(td.TransformedDistribution(box, Rotation()))
    normal = td.Independent(td.Normal(0 * ONE, ONE), 1)
    assert Parameters.from_prior(td.TransformedDistribution(normal, Rotation())).bounds.isinf().all()


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_of_torch_is_taken(name):
    prior, (low, high) = PRIORS[name]
    parameters = Parameters.from_prior(prior)
    assert parameters.bounds.tolist() == [[low, high]] * 2
    theta = parameters.sample(256, seed=1)
    expected = prior.log_prob(theta)
    torch.testing.assert_close(parameters.log_prob(theta), expected.sum(-1) if expected.ndim == 2 else expected)
    x = theta + torch.randn(theta.shape, generator=torch.Generator().manual_seed(2))
    posterior = sp.NPE(
        prior, transforms=1, hidden_features=8, blocks=1, config=TrainConfig(epochs=1), augment=False
    ).fit(theta, x, progress=False)
    draws = posterior.sample(200, x[0])
    assert bool(parameters.within(draws.values).all())
    assert bool(torch.isfinite(posterior.log_prob(draws.values, x[0])).all())
