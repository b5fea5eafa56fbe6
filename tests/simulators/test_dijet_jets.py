"""The populations of jets: the map and its inverse, and the density against autograd."""

import math

import torch

from simulators.dijet_jets import JetPopulation

POPULATION = JetPopulation(
    mass=0.1,
    mass_spread=0.6,
    difference=0.2,
    difference_shape=1.3,
    tau=(0.5, 0.4),
    tau_spread=(0.8, 0.7),
    tau_fall=(1.2, 1.0),
    growth=(0.2, 0.3, -0.2),
)


def draws(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn((n, 4), dtype=torch.float64, generator=generator)
    return z, 2.5 + 2.5 * torch.rand(n, dtype=torch.float64, generator=generator)


def test_latent_inverts_features_far_into_the_tails():
    z, mass = draws(2_000)
    z = 2 * z
    torch.testing.assert_close(POPULATION.latent(POPULATION.features(z, mass), mass), z, rtol=1e-6, atol=1e-8)


def test_density_is_that_of_the_latent_with_the_jacobian_of_autograd():
    z, mass = draws(20)
    x = POPULATION.features(z, mass)
    jacobian = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda row, m=m: POPULATION.latent(row, m), row)
            for row, m in zip(x, mass, strict=True)
        ]
    )
    normal = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
    expected = normal + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(POPULATION.log_prob(x, mass), expected, rtol=1e-8, atol=1e-8)


def test_density_stays_finite_where_the_normal_numbers_are_not():
    x = torch.tensor([[0.1, 30.0, 0.5, 0.5]], dtype=torch.float64)
    assert bool(torch.isfinite(POPULATION.log_prob(x, torch.tensor([3.5]).double())))


def test_masses_grow_with_the_dijet_mass_as_said():
    z = torch.zeros((2, 4), dtype=torch.float64)
    mass = torch.tensor([3.5, 7.0], dtype=torch.float64)
    x = POPULATION.features(z, mass)
    torch.testing.assert_close(x[1, 0] / x[0, 0], torch.tensor(2**0.2).double())
    torch.testing.assert_close(x[1, 1] / x[0, 1], torch.tensor(2**0.3).double())
    torch.testing.assert_close(x[0, 0], torch.tensor(0.1).double())
    torch.testing.assert_close(x[0, 1], torch.tensor(0.2 * math.log(2) ** (1 / 1.3)).double())


def test_heavier_jets_look_more_like_two():
    z = torch.zeros((2, 4), dtype=torch.float64)
    z[1, :2] = 2
    x = POPULATION.features(z, torch.full((2,), 3.5, dtype=torch.float64))
    assert bool((x[1, 2:] < x[0, 2:] - 0.1).all())
