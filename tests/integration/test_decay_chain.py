"""Trees of decays: integrals that are known in closed form, agreement with RAMBO, and what is refused."""

import math

import pytest
import torch

from sbi_physics.core.errors import UsageError
from sbi_physics.core.kinematics import invariant_mass, minkowski_dot
from sbi_physics.core.mappings import BreitWigner, Flat, PowerLaw
from sbi_physics.core.processes import Decay, Particle
from sbi_physics.integration.decay_chain import DecayChain
from sbi_physics.integration.phase_space import massless_volume
from sbi_physics.integration.rambo import Rambo

ENERGY = 100.0
PAIR = Decay(Particle(), Particle())


def numbers(n, dims, seed=0):
    return torch.rand(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_particles_have_the_exact_volume():
    chain = DecayChain(Decay(Particle(3.0), Particle(40.0)), ENERGY)
    _, weight = chain(numbers(50, 2))
    exact = math.sqrt((ENERGY**2 - 43.0**2) * (ENERGY**2 - 37.0**2)) / (8 * math.pi * ENERGY**2)
    assert float((weight / exact - 1).abs().max()) < 1e-12


@pytest.mark.parametrize("angle", [Flat(), PowerLaw(1.0, 0.3), PowerLaw(2.0, 0.5), PowerLaw(0.5)])
def test_three_massless_particles_have_the_exact_volume(gauss, angle):
    """Flat in the mass, the weight is a polynomial; in the angle it is smooth."""
    chain = DecayChain(Decay(Particle(), Decay(Particle(), Particle(), angle=angle), angle=angle), ENERGY)
    u, rule = gauss(2, 20, 1, 20, 1)
    assert float(rule @ chain(u)[1]) == pytest.approx(float(massless_volume(3, ENERGY)), rel=1e-12)


@pytest.mark.parametrize("mass", [Flat(), PowerLaw(0.5), PowerLaw(1.0, 500.0), BreitWigner(60.0, 40.0)])
@pytest.mark.parametrize("tree", ["one by one", "two pairs"])
def test_four_massless_particles_have_the_exact_volume(gauss, mass, tree):
    pair = Decay(Particle(), Particle(), mass=mass)
    trees = {"one by one": Decay(Particle(), Decay(Particle(), pair, mass=mass)), "two pairs": Decay(pair, pair)}
    u, rule = gauss(48, 48)
    full = torch.full((len(u), 8), 0.5, dtype=torch.float64)
    # The weight depends on the masses alone: the first two numbers of two pairs, the first and fourth one by one.
    places = [0, 1] if tree == "two pairs" else [0, 3]
    full[:, places] = u
    chain = DecayChain(trees[tree], ENERGY)
    # Two pairs meet a corner where neither is smooth.
    accuracy = 1e-11 if tree == "one by one" else 1e-4
    assert float(rule @ chain(full)[1]) == pytest.approx(float(massless_volume(4, ENERGY)), rel=accuracy)


def test_breit_wigner_makes_a_resonance_flat(gauss):
    """The weight times the propagator is a polynomial of the mass: integral ds / (2 pi) of it, in closed form."""
    mass, width = 60.0, 10.0
    chain = DecayChain(Decay(Particle(), Decay(Particle(), Particle(), mass=BreitWigner(mass, width))), ENERGY)
    u, rule = gauss(60, 1, 1, 1, 1)
    momenta, weight = chain(u)
    s = 2 * minkowski_dot(momenta[:, 1], momenta[:, 2])
    value = float(rule @ (weight / ((s - mass**2) ** 2 + (mass * width) ** 2)))
    scale, top = mass * width, ENERGY**2

    def antiderivative(x):
        """Of (1 - x / top) / ((x - mass^2)^2 + scale^2)."""
        arc = math.atan((x - mass**2) / scale) / scale
        return (1 - mass**2 / top) * arc - math.log((x - mass**2) ** 2 + scale**2) / (2 * top)

    exact = (antiderivative(top) - antiderivative(0.0)) / (2 * math.pi) / (8 * math.pi) ** 2
    assert value == pytest.approx(exact, rel=1e-12)


def test_mass_and_angle_are_of_their_densities():
    """The numbers of a map are uniform by construction; the pole and the peak must be where they were asked for."""
    tree = Decay(Particle(), Decay(Particle(), Particle(), mass=BreitWigner(60.0, 2.0)), angle=PowerLaw(1.0, 1e-3))
    momenta, _ = DecayChain(tree, ENERGY)(numbers(20_000, 5, seed=1))
    pair = invariant_mass(momenta[:, 1] + momenta[:, 2])
    inside = float(((pair > 59.0) & (pair < 61.0)).double().mean())
    # Half of a Breit-Wigner lies within half a width of the pole.
    assert abs(inside - 0.5) < 0.02
    cosine = momenta[:, 0, 3] / momenta[:, 0, 0]
    forward = float((cosine > 0.9).double().mean())
    exact = math.log((0.1 + 1e-3) / 1e-3) / math.log((2 + 1e-3) / 1e-3)
    assert abs(forward - exact) < 4 * math.sqrt(exact * (1 - exact) / 20_000)


@pytest.mark.parametrize(
    "tree",
    [
        Decay(PAIR, PAIR),
        Decay(Particle(), Decay(Particle(), PAIR)),
        Decay(Decay(Particle(), Particle(), mass=PowerLaw(0.7), axis="flight", angle=PowerLaw(0.5)), PAIR),
        Decay(Decay(PAIR, Particle(), mass=BreitWigner(60.0, 20.0)), Particle(), angle=PowerLaw(0.5)),
    ],
)
def test_integral_is_that_of_rambo(tree):
    def integrand(momenta):
        return minkowski_dot(momenta[:, 0], momenta[:, 2]) * (1 + momenta[:, 3, 3] / ENERGY) ** 2

    results = []
    for one in (Rambo([0.0] * 4, ENERGY), DecayChain(tree, ENERGY)):
        momenta, weight = one(numbers(40_000, one.dims, seed=2))
        value = weight * integrand(momenta)
        results.append((float(value.mean()), float(value.std()) / math.sqrt(len(value))))
    (first, first_error), (second, second_error) = results
    assert abs(first - second) < 4 * math.hypot(first_error, second_error)
    assert second_error < 0.02 * second


def test_least_mass_leaves_out_what_a_cut_would():
    plain = DecayChain(Decay(Particle(), PAIR), ENERGY)
    above = DecayChain(Decay(Particle(), Decay(Particle(), Particle(), least_mass=30.0)), ENERGY)
    momenta, weight = plain(numbers(40_000, 5, seed=3))
    kept = weight * (invariant_mass(momenta[:, 1] + momenta[:, 2]) > 30.0)
    _, other = above(numbers(40_000, 5, seed=4))
    error = math.hypot(float(kept.std()), float(other.std())) / math.sqrt(40_000)
    assert abs(float(kept.mean() - other.mean())) < 4 * error
    assert abs(float(weight.mean() - other.mean())) > 8 * error


def test_numbers_are_outside_where_the_tree_cannot_reach():
    above = DecayChain(Decay(Particle(), Decay(Particle(), Particle(), least_mass=90.0)), ENERGY)
    momenta, _ = DecayChain(Decay(Particle(), PAIR), ENERGY)(numbers(100, 5))
    u, _ = above.inverse(momenta)
    light = invariant_mass(momenta[:, 1] + momenta[:, 2]) < 90.0
    assert bool(((u[:, 0] < 0) == light).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DecayChain(Decay(Particle(60.0), Particle(50.0)), ENERGY), "above the sum of masses, 110 GeV"),
        (lambda: DecayChain(Decay(Particle(), Decay(Particle(), Particle(), least_mass=200.0)), ENERGY), "above 200"),
        (lambda: DecayChain(Decay(Particle(), Decay(Particle(), Particle(), mass=PowerLaw())), ENERGY), "least_mass"),
        (lambda: DecayChain(Decay(Particle(), Particle(), axis="flight"), ENERGY), "at the root"),
        (lambda: Decay(Particle(), Particle(), axis="x"), "expected the axis 'z' or 'flight', got 'x'"),
        (lambda: Decay(Particle(), Particle(), angle=PowerLaw(1.0)), "positive offset"),
        (lambda: Decay(Particle(), Particle(), least_mass=-1.0), "least_mass"),
        (lambda: Particle(-0.1), "mass: expected a finite number of at least 0, got -0.1"),
        (lambda: BreitWigner(0.0, 1.0), "positive mass, got 0.0"),
        (lambda: BreitWigner(80.0, -1.0), "positive width, got -1.0"),
        (lambda: PowerLaw(-1.0), "exponent"),
    ],
)
def test_bad_trees_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
