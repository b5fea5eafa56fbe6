"""Distributions of one number that are known: where they do not depend on the parameters, and where they do."""

import pytest
import torch

from sbi_physics.models.scalar import ScalarDistribution
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

BOUNDS = torch.tensor([[0.0, 1.0], [-torch.inf, torch.inf], [0.0, torch.inf]])


def data(n, seed=0):
    """Log-normal, its logarithm with mean theta_0 and standard deviation one."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(n, 3, generator=generator)
    return theta, torch.exp(theta[:, 0] + torch.randn(n, generator=generator)).double()


def fitted(theta, value, bounds=BOUNDS, epochs=0):
    torch.manual_seed(1)
    model = ScalarDistribution(bounds, len(value))
    scores = model.fit_scaling(theta, value).training_scores(value)
    if epochs:
        encoded = model.encode(theta).detach()
        train(model, model.loss, [scores, encoded], config=TrainConfig(epochs=epochs), progress=False)
    return model


@pytest.fixture(scope="module")
def learned():
    return fitted(*data(20_000), epochs=8)


def test_it_starts_as_the_ranks_of_all():
    theta, value = data(1000)
    model = fitted(theta, value)
    ranks = (value.unsqueeze(1) > value).double().mean(1)
    torch.testing.assert_close(model.cumulative(value, theta), ranks.clamp(0.0005, 0.9995), rtol=0, atol=1e-5)
    # What was handed in stays as it was.
    assert torch.equal(BOUNDS, torch.tensor([[0.0, 1.0], [-torch.inf, torch.inf], [0.0, torch.inf]]))


def test_it_learns_the_dependence_on_the_parameters(learned):
    theta, value = data(4000, seed=1)
    exact = torch.special.ndtr(value.log() - theta[:, 0].double())
    off = (learned.cumulative(value, theta) - exact).abs()
    assert off.mean() < 0.02
    assert off.quantile(0.99) < 0.06
    # The ranks of all alone are off by up to 0.3 / sqrt(2 pi), and 0.08 on the average.
    assert (fitted(*data(20_000)).cumulative(value, theta) - exact).abs().mean() > 0.05


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_quantiles_invert_the_cumulative_distribution(learned, probability):
    theta, _ = data(200, seed=2)
    found = learned.quantile(probability, theta)
    torch.testing.assert_close(
        learned.cumulative(found, theta), torch.full((200,), probability).double(), rtol=0, atol=2e-3
    )


def test_no_scale_matters():
    """An increasing function of the number changes nothing."""
    theta, value = data(500)
    at = fitted(theta, value).cumulative(value, theta)
    torch.testing.assert_close(fitted(theta, value.log() * 1e6).cumulative(value.log() * 1e6, theta), at)
    endless = torch.where(value > value.median(), torch.inf, value)
    assert torch.isfinite(fitted(theta, endless).cumulative(endless, theta)).all()


def test_beyond_what_it_was_learned_from():
    theta, value = data(500)
    model = fitted(theta, value)
    far = torch.cat([theta[:1], theta[:1]])
    far[1, 1] = 1e6
    near = far.clone()
    near[1, 1] = theta[:, 1].max()
    torch.testing.assert_close(model.encode(far), model.encode(near))
    ends = model.cumulative(torch.tensor([-1e9, 1e9]), theta[:2])
    torch.testing.assert_close(ends, torch.tensor([0.001, 0.999], dtype=torch.float64))


@pytest.mark.parametrize("rows", [[0], [1], [2], [1, 2]])
def test_any_kind_of_bounds(rows):
    theta, value = data(500)
    model = fitted(theta[:, rows], value, BOUNDS[rows], epochs=1)
    assert torch.isfinite(model.cumulative(value, theta[:, rows])).all()
