"""What comes in: momenta, the measure of both partons, and the inverse."""

import math

import pytest
import torch

from sbi_physics.core.errors import UsageError
from sbi_physics.core.initial_states import AtRest, Beams, HadronBeams, InitialState
from sbi_physics.core.kinematics import boost_along_z, invariant_mass
from sbi_physics.core.mappings import BreitWigner, Flat, PowerLaw

STATES = {
    "at_rest": AtRest(173.0),
    "beams": Beams(91.2),
    "hadrons": HadronBeams(13_000.0, 100.0),
    "flat": HadronBeams(13_000.0, 100.0, 500.0, Flat()),
    "resonance": HadronBeams(13_000.0, 60.0, 120.0, BreitWigner(91.2, 2.5)),
}


def numbers(n, dims):
    return torch.rand(n, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", STATES)
def test_laws_of_initial_states(name):
    state = STATES[name]
    assert isinstance(state, InitialState)
    u = numbers(200, state.dims)
    momenta, energy, shift, weight = state(u)
    total = momenta.sum(1)
    assert torch.allclose(invariant_mass(total), energy, rtol=1e-9)
    rest = boost_along_z(total, -shift)
    assert float(rest[:, 1:].abs().max()) < 1e-9 * float(energy.max())
    assert bool((energy >= state.least_energy() * (1 - 1e-12)).all())
    found, same = state.inverse(total)
    assert torch.allclose(found, u, atol=1e-10)
    assert torch.allclose(same, weight, rtol=1e-10)


@pytest.mark.parametrize("mapping", [Flat(), PowerLaw(1.0), PowerLaw(0.3), BreitWigner(4_000.0, 2_000.0)])
def test_measure_of_partons_is_the_area_of_the_square(mapping):
    """The area of x_1 x_2 > tau is 1 - tau + tau ln tau."""
    least = 2_000.0
    tau = (least / 13_000.0) ** 2
    weight = HadronBeams(13_000.0, least, mapping=mapping)(numbers(40_000, 2)).weight
    error = float(weight.std()) / math.sqrt(len(weight))
    assert abs(float(weight.mean()) - (1 - tau + tau * math.log(tau))) < 4 * error


def test_partons_carry_their_shares():
    momenta, energy, _, _ = HadronBeams(13_000.0, 100.0)(numbers(100, 2))
    shares = 2 * momenta[:, :, 0] / 13_000.0
    assert bool((shares > 0).all() & (shares <= 1 + 1e-12).all())
    assert torch.allclose(shares.prod(1) * 13_000.0**2, energy**2, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Beams(0.0), "positive energy in GeV, got 0.0"),
        (lambda: AtRest(-1.0), "positive mass"),
        (lambda: HadronBeams(100.0, 0.0), "0 < least_mass < most_mass <= energy"),
        (lambda: HadronBeams(100.0, 50.0, 40.0), "0 < least_mass < most_mass <= energy"),
        (lambda: HadronBeams(100.0, 50.0, 140.0), "0 < least_mass < most_mass <= energy"),
    ],
)
def test_bad_initial_states_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
