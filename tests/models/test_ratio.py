"""The ratio of a problem of which it is known: theta one of the real numbers, x theta plus noise."""

import math

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError
from sbi_physics.models.ratio import RatioEstimator
from sbi_physics.models.success import SuccessProbability
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

FREE = torch.tensor([[-torch.inf, torch.inf]])
SIGMA = 0.5


def pairs(n, seed):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(n, 1, generator=generator)
    return theta, theta + SIGMA * torch.randn(n, 1, generator=generator)


def exact(theta, x):
    """ln p(x | theta) - ln p(x) with theta ~ N(0, 1)."""
    total = 1 + SIGMA**2
    return (-0.5 * ((x - theta) / SIGMA) ** 2 - math.log(SIGMA) + 0.5 * x**2 / total + 0.5 * math.log(total))[:, 0]


def trained(candidates, balance=0.0, epochs=12):
    torch.manual_seed(1)
    theta, x = pairs(8000, 1)
    ratio = RatioEstimator(FREE, (1,), candidates=candidates, balance=balance, hidden_features=32).fit_scaling(theta, x)
    data = [ratio.theta_scaling(theta), ratio.x_scaling(x)]
    train(ratio, ratio.loss, data, config=TrainConfig(epochs=epochs), progress=False)
    return ratio


@pytest.mark.parametrize("candidates", [1, 10])
def test_the_ratio_itself_is_learned_and_not_only_its_shape(candidates):
    ratio = trained(candidates)
    theta, x = pairs(2000, 2)
    with torch.no_grad():
        error = ratio.log_likelihood(theta, x) - exact(theta, x)
    # NRE-C has no free factor of x: the error has no offset either.
    assert abs(float(error.mean())) < 0.1
    assert float(error.square().mean().sqrt()) < 0.3


def test_the_exact_ratio_minimises_the_loss():
    theta, x = pairs(4000, 3)

    class Exact(RatioEstimator):
        factor = 1.0

        def _ratio(self, theta, summary):
            shape = theta.shape[:-1]
            return self.factor * exact(theta.reshape(-1, 1), summary.reshape(-1, 1)).reshape(shape)

    ratio = Exact(FREE, (1,), candidates=5)
    losses = {}
    for factor in (0.8, 1.0, 1.2):
        ratio.factor = factor
        losses[factor] = float(ratio.loss(theta, x).mean())
    assert losses[1.0] < min(losses[0.8], losses[1.2])


def test_the_penalty_balances_a_badly_trained_ratio():
    theta, x = pairs(4000, 4)

    def imbalance(ratio):
        with torch.no_grad():
            joint = torch.sigmoid(ratio.log_likelihood(theta, x)).mean()
            marginal = torch.sigmoid(ratio.log_likelihood(theta.roll(1, 0), x)).mean()
        return abs(float(joint + marginal - 1))

    assert imbalance(trained(1, balance=100.0, epochs=2)) < 0.02


def test_one_observation_serves_all_rows_and_wrong_ones_are_named():
    ratio = RatioEstimator(FREE, (1,)).fit_scaling(*pairs(100, 5))
    theta, x = pairs(6, 6)
    torch.testing.assert_close(ratio.log_likelihood(theta, x[:1]), ratio.log_likelihood(theta, x[:1].expand(6, 1)))
    with pytest.raises(ShapeError, match=r"x: expected shape \(n, 1\)"):
        ratio.log_likelihood(theta, x[:, 0])
    with pytest.raises(NonFiniteError, match="x: expected finite"):
        ratio.log_likelihood(theta, x * torch.nan)


def test_the_probability_of_success_is_learned():
    generator = torch.Generator().manual_seed(7)
    theta = torch.rand(6000, 1, generator=generator) * 4 - 2
    probability = torch.sigmoid(3 * theta[:, 0])
    success = torch.rand(6000, generator=generator) < probability
    torch.manual_seed(2)
    model = SuccessProbability(torch.tensor([[-2.0, 2.0]])).fit_scaling(theta)
    train(model, model.loss, [theta, success.float()], config=TrainConfig(epochs=10), progress=False)
    with torch.no_grad():
        found = model.log_prob(theta).exp()
    assert float((found - probability).square().mean().sqrt()) < 0.04
