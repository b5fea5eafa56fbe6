"""Numbers with units in dataclasses: conversion, and one clear error for each kind of bad value."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from astropy import units

from sbi_physics.core.errors import UsageError
from simulators.galaxy_quantities import measured_in, read_quantities, units_of


@dataclass(frozen=True)
class Ball:
    radius: float = field(metadata=measured_in("kpc", above=0.0))
    centre: tuple = field(default=(0.0, 0.0, 0.0), metadata=measured_in("kpc", length=3))
    age: float = field(default=0.0, metadata=measured_in("Gyr", least=0.0, below=14.0, infinite=True))
    name: str = "ball"

    def __post_init__(self):
        read_quantities(self)


def test_quantities_are_converted_and_plain_numbers_kept():
    ball = Ball(250 * units.pc, centre=np.array([1, 2, 3]) * units.Mpc)
    assert ball.radius == pytest.approx(0.25)
    assert ball.centre == pytest.approx((1000, 2000, 3000))


def test_plain_numbers_become_floats():
    assert isinstance(Ball(1).radius, float)
    assert Ball(1, centre=[1, 2, 3]).centre == (1.0, 2.0, 3.0)


def test_units_are_listed():
    assert units_of(Ball) == units_of(Ball(1)) == {"radius": "kpc", "centre": "kpc", "age": "Gyr"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"radius": 0}, "Ball: radius: expected above 0 in kpc, got 0"),
        ({"radius": 1 * units.s}, "radius: expected a quantity in kpc, got one in s"),
        ({"radius": "wide"}, "radius: expected a number in kpc, got 'wide'"),
        ({"radius": float("inf")}, "radius: expected a finite value"),
        ({"radius": [1.0, 2.0]}, "radius: expected a number in kpc, got shape"),
        ({"radius": 1, "centre": [1, 2]}, "centre: expected 3 numbers in kpc, got shape"),
        ({"radius": 1, "centre": [1, 2, float("nan")]}, "centre: expected a finite value"),
        ({"radius": 1, "age": -1}, "age: expected at least 0 and below 14 in Gyr, got -1"),
        ({"radius": 1, "age": 14}, "age: expected at least 0 and below 14 in Gyr"),
        ({"radius": 1, "age": -float("inf")}, "age: expected at least 0"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(UsageError, match=message):
        Ball(**values)
