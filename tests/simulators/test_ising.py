"""The Ising model against enumeration, Kaufman's solution and Onsager's."""

import math

import pytest
import torch

from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from simulators.ising import (
    CRITICAL_TEMPERATURE,
    IsingModel,
    enumerate_states,
    exact_energy,
    exact_log_partition,
    spin_energy,
    spin_magnetisation,
)

TEMPERATURES = torch.tensor([1.8, CRITICAL_TEMPERATURE, 3.5], dtype=torch.float64)


def enumerated(side):
    """ln Z, energy and absolute magnetisation per spin at each of the temperatures."""
    states = enumerate_states(side)
    energy = spin_energy(states)
    log_weights = -(side**2) * energy / TEMPERATURES.unsqueeze(-1)
    weights = log_weights.softmax(-1)
    return log_weights.logsumexp(-1), weights @ energy, weights @ spin_magnetisation(states).abs()


@pytest.mark.parametrize("side", [2, 3, 4])
def test_kaufman_is_the_sum_over_all_states(side):
    log_partition, energy, _ = enumerated(side)
    torch.testing.assert_close(exact_log_partition(side, 1 / TEMPERATURES), log_partition, rtol=0, atol=1e-10)
    torch.testing.assert_close(exact_energy(side, TEMPERATURES), energy, rtol=0, atol=1e-10)


def test_a_large_lattice_has_the_energy_of_onsager():
    """u = -coth 2K [1 + (2/pi)(2 tanh^2 2K - 1) K_1(kappa)], away from T_c, where the size matters least."""
    for temperature in (1.5, 3.5):
        k = 1 / temperature
        kappa = 2 * math.sinh(2 * k) / math.cosh(2 * k) ** 2
        angles = (torch.arange(2000, dtype=torch.float64) + 0.5) * math.pi / 4000
        elliptic = float((1 - kappa**2 * torch.sin(angles) ** 2).rsqrt().mean()) * math.pi / 2
        onsager = -(1 + 2 / math.pi * (2 * math.tanh(2 * k) ** 2 - 1) * elliptic) / math.tanh(2 * k)
        found = float(exact_energy(128, torch.tensor(temperature)))
        assert found == pytest.approx(onsager, abs=1e-9)
    assert float(exact_energy(512, torch.tensor(CRITICAL_TEMPERATURE))) == pytest.approx(-math.sqrt(2), abs=2e-3)


def test_kaufman_holds_from_frozen_to_hot():
    temperatures = torch.tensor([0.2, 1e3], dtype=torch.float64)
    torch.testing.assert_close(
        exact_energy(8, temperatures), torch.tensor([-2.0, -2e-3], dtype=torch.float64), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("algorithm", ["metropolis", "heat-bath"])
def test_samples_have_the_exact_moments(algorithm):
    """Energy and |m| within three standard errors of independent chains; those of another temperature are far off."""
    n, (_, energies, magnetisations) = 4000, enumerated(4)
    simulator = IsingModel(4, sweeps=120, algorithm=algorithm)
    x = simulator(TEMPERATURES.repeat_interleave(n).unsqueeze(-1), seed=1).double().reshape(3, n, 16)
    for values, exact in ((spin_energy(x), energies), (spin_magnetisation(x).abs(), magnetisations)):
        error = values.std(-1) / n**0.5
        assert float(((values.mean(-1) - exact).abs() / error).max()) < 3
        assert float(((values.mean(-1) - exact.roll(1)).abs() / error).min()) > 10
    assert float((spin_magnetisation(x) > 0).double().mean()) == pytest.approx(0.5, abs=0.05)


def test_a_larger_lattice_has_the_energy_of_kaufman():
    n = 500
    temperature = torch.tensor([1.8, 2.6])
    x = IsingModel(8, sweeps=250)(temperature.repeat_interleave(n).unsqueeze(-1), seed=2).double()
    energy = spin_energy(x).reshape(2, n)
    pull = (energy.mean(-1) - exact_energy(8, temperature)) / (energy.std(-1) / n**0.5)
    assert float(pull.abs().max()) < 3


def test_the_likelihood_is_normalised_over_all_states():
    states = enumerate_states(4)
    total = IsingModel(4).log_likelihood(torch.tensor([2.1]).double(), states).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-10)
    no_spin = torch.cat([states[:1, :-1], torch.zeros(1, 1, dtype=torch.float64)], -1)
    assert float(IsingModel(4).log_likelihood(torch.tensor([2.1]), no_spin)) == -math.inf


def test_wrong_use_is_named():
    with pytest.raises(UsageError, match="side: expected an even number"):
        IsingModel(5)
    with pytest.raises(UsageError, match="algorithm: expected one of heat-bath, metropolis"):
        IsingModel(4, algorithm="wolff")
    with pytest.raises(UsageError, match="side: expected at most 4"):
        enumerate_states(5)
    with pytest.raises(SupportError, match="inverse_temperature: expected positive"):
        exact_log_partition(4, torch.tensor([-1.0]))
    with pytest.raises(ShapeError, match="square lattice"):
        spin_energy(torch.ones(3, 15))
