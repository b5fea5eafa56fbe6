import math

import torch
import torch.distributions as td

from simulators.gaussian_mixture import GaussianMixture

THETA = torch.tensor([1.0, -2.0]).double()


def test_likelihood_is_that_of_a_mixture_in_torch():
    simulator = GaussianMixture()
    x = simulator(THETA.expand(50, 2), seed=1).double()
    scales = torch.tensor([[1.0, 1.0], [0.1, 0.1]], dtype=torch.float64)
    parts = td.Independent(td.Normal(THETA.expand(2, 2), scales), 1)
    expected = td.MixtureSameFamily(td.Categorical(torch.tensor([0.5, 0.5]).double()), parts).log_prob(x)
    torch.testing.assert_close(simulator.log_likelihood(THETA, x), expected, rtol=1e-10, atol=1e-10)


def test_one_component_moves_both_coordinates():
    """The share within the narrow part: 1/2 + P(wide within 0.3); components chosen for each coordinate give less."""
    n = 40_000
    distance = (GaussianMixture()(THETA.expand(n, 2), seed=2).double() - THETA).norm(dim=-1)
    share = float((distance < 0.3).double().mean())
    wide, narrow = 1 - math.exp(-(0.3**2) / 2), 1 - math.exp(-(0.3**2) / 0.02)
    expected = (wide + narrow) / 2
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
