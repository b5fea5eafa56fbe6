"""Four-momenta: boosts and turns undo each other and leave masses alone; textbook values."""

import math

import pytest
import torch

from sbi_physics.core.kinematics import (
    azimuth,
    boost_along_z,
    boost_from_rest,
    boost_to_rest,
    cos_angle,
    direction,
    four_momentum,
    invariant_mass,
    mass_squared,
    minkowski_dot,
    one_minus_cos,
    rapidity,
    transverse_momentum,
    turn_from_z,
    turn_to_z,
    two_body_momentum,
)


def momenta(n, mass, seed=0):
    vectors = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return four_momentum(10 * vectors, mass**2)


def test_masses_are_those_that_were_put_in():
    assert torch.allclose(invariant_mass(momenta(100, 3.0)), torch.full((100,), 3.0, dtype=torch.float64), rtol=1e-12)
    assert float(mass_squared(momenta(100, 0.0)).abs().max()) < 1e-12


def test_boosts_undo_each_other_and_keep_products():
    frame, p, q = momenta(50, 5.0, 1), momenta(50, 2.0, 2), momenta(50, 0.0, 3)
    mass = torch.full((50,), 5.0, dtype=torch.float64)
    moved = [boost_from_rest(one, frame, mass) for one in (p, q)]
    assert torch.allclose(minkowski_dot(*moved), minkowski_dot(p, q), rtol=1e-10)
    assert torch.allclose(boost_to_rest(moved[0], frame, mass), p, rtol=1e-10, atol=1e-10)
    rest = boost_to_rest(frame, frame, mass)
    assert torch.allclose(rest[:, 0], mass, rtol=1e-12)
    assert float(rest[:, 1:].abs().max()) < 1e-11


def test_turns_undo_each_other_and_carry_z_to_the_axis():
    axis, vector = momenta(50, 0.0, 4)[:, 1:], momenta(50, 0.0, 5)[:, 1:]
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(50, 3)
    assert torch.allclose(turn_from_z(z, axis), axis / axis.norm(dim=-1, keepdim=True), rtol=1e-12)
    assert torch.allclose(turn_to_z(turn_from_z(vector, axis), axis), vector, rtol=1e-12, atol=1e-12)
    assert torch.allclose(turn_from_z(vector, axis).norm(dim=-1), vector.norm(dim=-1), rtol=1e-12)


def test_rapidity_adds_up_along_the_beams():
    p = momenta(100, 1.5)
    shift = torch.linspace(-6, 6, 100, dtype=torch.float64)
    moved = boost_along_z(p, shift)
    assert torch.allclose(rapidity(moved) - rapidity(p), shift, atol=1e-9)
    assert torch.allclose(transverse_momentum(moved), transverse_momentum(p), rtol=1e-12)
    assert torch.allclose(rapidity(p), torch.atanh(p[:, 3] / p[:, 0]), rtol=1e-10)


def test_directions_have_their_angles():
    far = torch.tensor([1e-20, 1e-8, 0.5, 1.0, 1.9], dtype=torch.float64)
    angle = torch.tensor([0.1, 1.0, 3.0, 5.0, 6.0], dtype=torch.float64)
    p = four_momentum(7.0 * direction(far, angle), 0.0)
    assert torch.allclose(one_minus_cos(p), far, rtol=1e-12, atol=0)
    assert torch.allclose(azimuth(p), angle, rtol=1e-12)
    up = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(cos_angle(p, up), 1 - far, atol=1e-15)


def test_momentum_of_two_bodies():
    mass = torch.tensor([10.0, 1.0], dtype=torch.float64)
    found = two_body_momentum(mass, 3.0, 4.0)
    assert float(found[0]) == pytest.approx(math.sqrt((100 - 49) * (100 - 1)) / 20, rel=1e-14)
    assert float(found[1]) == 0.0
    near = two_body_momentum(torch.tensor(7.0 + 1e-12, dtype=torch.float64), 3.0, 4.0)
    excess = (7.0 + 1e-12) - 7.0
    assert float(near) == pytest.approx(math.sqrt(2 * excess * 12 / 7), rel=1e-6)
