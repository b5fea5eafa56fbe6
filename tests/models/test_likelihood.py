"""A learned likelihood: counts and constants among the observables, and what fits what."""

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError
from sbi_physics.models.flows.build import build_flow
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.models.likelihood import LearnedLikelihood
from sbi_physics.models.trend import Trend


def data(n=200):
    generator = torch.Generator().manual_seed(1)
    theta = torch.rand(n, 1, generator=generator)
    columns = [
        torch.full((n,), 7.0),
        torch.poisson(5 * theta[:, 0], generator=generator),
        torch.randn(n, generator=generator),
        torch.full((n,), 0.5),
    ]
    return theta, torch.stack(columns, 1).reshape(n, 2, 2)


@pytest.fixture
def likelihood():
    torch.manual_seed(0)
    theta, x = data()
    varies, counts = LearnedLikelihood.kinds(x)
    density = FlowDensity(build_flow("nsf", 2, 1, transforms=1, hidden_features=8), (2,), (1,))
    made = LearnedLikelihood(density, Trend(torch.tensor([[-torch.inf, torch.inf]]), 2), (2, 2), varies, counts)
    density.fit_scaling(made.events(x), theta)
    return made.eval()


def test_constants_and_counts_are_noticed():
    varies, counts = LearnedLikelihood.kinds(data()[1])
    assert varies.tolist() == [False, True, True, False]
    assert counts.tolist() == [False, True, False, False]


def test_counts_are_blurred_by_half_a_unit_where_there_is_a_seed(likelihood):
    x = data()[1]
    plain, blurred = likelihood.events(x), likelihood.blurred(x, seed=3).tensor()
    assert torch.equal(plain, x.flatten(1)[:, 1:3])
    assert torch.equal(plain[:, 1], blurred[:, 1])
    shift = blurred[:, 0] - plain[:, 0]
    assert bool((shift.abs() <= 0.5).all())
    # Uniform on [-1/2, 1/2]: mean 0 +- 0.02, standard deviation 0.289.
    assert abs(float(shift.mean())) < 0.08
    assert float(shift.std()) == pytest.approx(12**-0.5, abs=0.04)
    assert torch.equal(blurred, likelihood.blurred(x, seed=3).tensor())


def test_one_observation_serves_all_rows(likelihood):
    theta, x = data(5)
    each = torch.stack([likelihood.log_likelihood(t.unsqueeze(0), x[:1])[0] for t in theta])
    torch.testing.assert_close(likelihood.log_likelihood(theta, x[:1]), each)
    torch.testing.assert_close(likelihood.log_likelihood(theta, x[:1].expand(5, 2, 2)), each)
    again = likelihood.log_likelihood(theta.repeat(2, 1), x)
    torch.testing.assert_close(again, likelihood.log_likelihood(theta, x).repeat(2))
    with pytest.raises(ShapeError, match="expected a multiple of the 2 rows of x, got 5 rows"):
        likelihood.log_likelihood(theta, x[:2])


def test_draws_look_like_the_data(likelihood):
    theta, _ = data(3)
    drawn = likelihood.sample(50, theta, seed=1)
    assert drawn.shape == (50, 3, 2, 2)
    counts = drawn[:, :, 0, 1]
    assert torch.equal(counts, counts.round())
    assert torch.equal(drawn, likelihood.sample(50, theta, seed=1))


def test_wrong_observations_are_named(likelihood):
    theta, x = data(4)
    with pytest.raises(ShapeError, match=r"x: expected shape \(n, 2, 2\), got \(4, 4\)"):
        likelihood.log_likelihood(theta, x.flatten(1))
    x[1, 0, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="x: expected finite"):
        likelihood.log_likelihood(theta, x)
