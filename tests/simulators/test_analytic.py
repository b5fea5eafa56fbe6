"""The analytic test problems against torch.distributions, numerical integration and their exact posteriors."""

import math

import pytest
import torch
import torch.distributions as td

from sbi_physics.core.errors import BudgetError, UsageError
from simulators.gaussian_linear import GaussianLinear, GaussianLinearUniform
from simulators.slcp import SLCP
from simulators.two_moons import TwoMoons


@pytest.mark.parametrize("simulator", [GaussianLinear(), GaussianLinearUniform()], ids=lambda s: s.name)
def test_linear_likelihood_is_gaussian(simulator):
    theta = simulator.parameters.sample(5, seed=1)
    x = simulator(theta, seed=2)
    expected = td.MultivariateNormal(theta.double(), 0.1 * torch.eye(10).double()).log_prob(x.double())
    torch.testing.assert_close(simulator.log_likelihood(theta, x), expected, rtol=1e-6, atol=1e-6)


def test_linear_gaussian_posterior_is_prior_times_likelihood():
    simulator = GaussianLinear(3, prior_variance=0.4, noise_variance=0.2)
    x = torch.tensor([0.3, -0.5, 1.0])
    mean, covariance = simulator.posterior_mean_and_covariance(x)
    theta = simulator.parameters.sample(20, seed=1)
    joint = simulator.parameters.log_prob(theta).double() + simulator.log_likelihood(theta, x)
    ratio = joint - td.MultivariateNormal(mean, covariance).log_prob(theta.double())
    torch.testing.assert_close(ratio, ratio[:1].expand(20), rtol=1e-5, atol=1e-5)
    draws = simulator.sample_posterior(20_000, x, seed=1).double()
    assert float(((draws.mean(0) - mean) / (covariance.diagonal() / 20_000).sqrt()).abs().max()) < 5


def test_uniform_gaussian_posterior_moments():
    """Against numerical integration of the cut Gaussian; an observation far outside is no harder than one inside."""
    simulator = GaussianLinearUniform(4)
    x = torch.tensor([0.2, 1.1, -3.0, 40.0])
    draws = simulator.sample_posterior(20_000, x, seed=3).double()
    assert float(draws.abs().max()) <= 1
    grid = torch.linspace(-1, 1, 400_001, dtype=torch.float64)
    weights = torch.softmax(-((x[:, None].double() - grid) ** 2) / 0.2, -1)
    mean = (weights * grid).sum(-1)
    deviation = ((weights * grid**2).sum(-1) - mean**2).sqrt()
    assert float(((draws.mean(0) - mean) / deviation).abs().max()) < 5 / math.sqrt(20_000)
    assert float((draws.std(0) / deviation - 1).abs().max()) < 0.05


def test_slcp_likelihood_is_that_of_four_gaussian_points():
    simulator = SLCP()
    theta = simulator.parameters.sample(50, seed=1)
    x = simulator(theta, seed=2)
    t = theta.double()
    s_1, s_2, rho = t[:, 2] ** 2, t[:, 3] ** 2, torch.tanh(t[:, 4])
    covariance = torch.stack([s_1**2, rho * s_1 * s_2, rho * s_1 * s_2, s_2**2], -1).reshape(-1, 2, 2)
    covariance = covariance + 1e-6 * torch.eye(2)
    points = td.MultivariateNormal(t[:, None, :2], covariance[:, None])
    expected = points.log_prob(x.double().reshape(-1, 4, 2)).sum(-1)
    torch.testing.assert_close(simulator.log_likelihood(theta, x), expected, rtol=1e-8, atol=1e-8)


def test_slcp_does_not_see_the_signs_of_the_widths():
    simulator = SLCP()
    theta = simulator.parameters.sample(10, seed=1)
    x = simulator(theta, seed=2)
    mirrored = theta * torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    assert torch.equal(simulator.log_likelihood(theta, x), simulator.log_likelihood(mirrored, x))


def test_slcp_is_finite_at_zero_width():
    simulator = SLCP()
    assert math.isfinite(float(simulator.log_likelihood(torch.zeros(5), torch.zeros(8))))


class TestTwoMoons:
    THETA = torch.tensor([0.3, -0.6])

    def grid(self, cells=1600):
        """Centres of cells that cover all x of theta, and the area of one."""
        x = TwoMoons()(self.THETA.expand(2000, -1), seed=1).double()
        low, high = x.min(0).values - 0.1, x.max(0).values + 0.1
        axes = [low[i] + (torch.arange(cells) + 0.5) / cells * (high[i] - low[i]) for i in range(2)]
        return torch.cartesian_prod(*axes).reshape(cells, cells, 2), float(((high - low) / cells).prod())

    def test_density_integrates_to_one(self):
        centres, area = self.grid()
        density = TwoMoons().log_likelihood(self.THETA, centres).exp()
        assert float(density.sum() * area) == pytest.approx(1.0, abs=2e-3)

    def test_data_follow_the_density(self):
        """Chi-square of the counts in coarse cells against the density integrated over them."""
        n = 50_000
        centres, area = self.grid(800)
        probability = TwoMoons().log_likelihood(self.THETA, centres).exp() * area
        coarse = probability.reshape(16, 50, 16, 50).sum((1, 3))
        step = (centres[-1, -1] - centres[0, 0]) / 799 * 50
        low = centres[0, 0] - step / 100
        cell = ((TwoMoons()(self.THETA.expand(n, -1), seed=5).double() - low) / step).floor().long()
        assert bool(((cell >= 0) & (cell < 16)).all())
        counts = torch.bincount(cell[:, 0] * 16 + cell[:, 1], minlength=256).reshape(16, 16)
        seen = coarse * n > 20
        chi2 = float(((counts - coarse * n)[seen] ** 2 / (coarse * n)[seen]).sum())
        cells = int(seen.sum())
        assert abs(chi2 - cells) < 5 * math.sqrt(2 * cells)
        wrong = coarse.roll(1, 0)
        assert float(((counts - wrong * n)[seen] ** 2 / (wrong * n)[seen].clamp(min=1)).sum()) > 10 * cells

    def test_exact_posterior_is_prior_times_likelihood(self):
        """Moments of the draws against integration over the prior, which a missing 1/r would spoil."""
        simulator = TwoMoons()
        x = simulator(self.THETA[None], seed=3)[0]
        draws = simulator.sample_posterior(50_000, x, seed=1).double()
        axis = torch.linspace(-1, 1, 2001, dtype=torch.float64)
        theta = torch.cartesian_prod(axis, axis)
        weights = torch.softmax(simulator.log_likelihood(theta, x), 0)
        statistics = {
            "sum": lambda t: t[:, 0] + t[:, 1],
            "modulus": lambda t: (t[:, 0] + t[:, 1]).abs(),
            "difference": lambda t: t[:, 1] - t[:, 0],
            "square": lambda t: (t[:, 1] - t[:, 0]) ** 2,
        }
        for name, f in statistics.items():
            expected = float((weights * f(theta)).sum())
            error = float(f(draws).std()) / math.sqrt(50_000)
            assert abs(float(f(draws).mean()) - expected) < 5 * error + 1e-5, name

    def test_impossible_observation_ends_with_an_error(self):
        with pytest.raises(BudgetError, match="found 0 of 10 posterior draws"):
            TwoMoons().sample_posterior(10, torch.tensor([9.0, 9.0]), max_rounds=3)


@pytest.mark.parametrize("kwargs", [{"dims": 0}, {"dims": 2.5}, {"noise_variance": 0.0}, {"noise_variance": math.nan}])
def test_wrong_arguments_of_the_linear_problems(kwargs):
    with pytest.raises(UsageError, match=next(iter(kwargs))):
        GaussianLinear(**kwargs)
