import pytest
import torch
from torch.distributions import Uniform

from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.store.simulations import Simulations


@pytest.fixture
def parameters():
    return Parameters([Parameter("a", Uniform(0.0, 1.0), unit="m / s"), Parameter("b", Uniform(-2.0, 1.0))])


@pytest.fixture
def simulations(parameters):
    """Forty rows in memory, two of them not finite."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    x[3, 1], x[7, 2] = torch.nan, torch.inf
    return Simulations.from_arrays(torch.rand(40, 2, generator=generator), x, parameters, simulator="test")
