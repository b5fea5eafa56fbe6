"""The log-uniform distribution: its law, its bounds, and a place among the priors that files hold."""

import math

import pytest
import torch
import torch.distributions as td

from sbi_physics.core.errors import SupportError
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.core.parameters import Parameter, Parameters

LOW, HIGH, N = 256.0, 2.0**22, 20_000


def parameters():
    return Parameters([Parameter("energy", LogUniform(LOW, HIGH), "MeV"), Parameter("angle", td.Uniform(-1.0, 1.0))])


def test_the_logarithm_is_uniform():
    energy = parameters().sample(N, seed=1)[:, 0].double()
    assert float(energy.min()) >= LOW
    assert float(energy.max()) <= HIGH
    share = torch.log2(energy / LOW) / 14
    assert float(share.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * N))
    quarters = torch.histc(share, 4, 0, 1) / N
    assert float((quarters - 0.25).abs().max()) < 5 * math.sqrt(0.25 * 0.75 / N)
    # A uniform energy would leave three quarters of the draws in the last of fourteen octaves and a half.
    assert float((energy > HIGH / 4).double().mean()) < 0.5


def test_the_density_integrates_to_one_and_ends_at_the_bounds():
    prior = LogUniform(torch.tensor(LOW, dtype=torch.float64), torch.tensor(HIGH, dtype=torch.float64))
    grid = torch.logspace(math.log10(LOW), math.log10(HIGH), 10_001, dtype=torch.float64).clamp(LOW, HIGH)
    density = torch.exp(prior.log_prob(grid))
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(prior.icdf(prior.cdf(grid)), grid)
    assert prior.log_prob(torch.tensor([LOW / 2, 2 * HIGH, -1.0])).tolist() == [-math.inf] * 3


def test_parameters_know_bounds_and_description():
    given = parameters()
    assert given.bounds[0].tolist() == [LOW, HIGH]
    again = Parameters.from_dict(given.to_dict())
    assert again == given
    assert torch.equal(again.sample(5, seed=3), given.sample(5, seed=3))
    theta = torch.tensor([[1000.0, 0.5]])
    expected = -math.log(1000) - math.log(math.log(HIGH / LOW)) - math.log(2)
    assert float(again.log_prob(theta)) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(SupportError, match="energy"):
        given.check_within(torch.tensor([[100.0, 0.5]]))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_wrong_bounds_are_refused(low, high, monkeypatch):
    # As an import elsewhere may have left it.
    monkeypatch.setattr(td.Distribution, "_validate_args", False)
    with pytest.raises(ValueError, match="0 < low < high"):
        LogUniform(low, high)
