"""Every map of phase space: volumes, conservation, the shell, the Jacobian, the inverse, and what it refuses."""

import math

import pytest
import torch
from scipy.integrate import quad

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.kinematics import mass_squared, minkowski_dot
from sbi_physics.core.mappings import BreitWigner, PowerLaw
from sbi_physics.core.processes import Decay, Particle
from sbi_physics.integration.decay_chain import DecayChain
from sbi_physics.integration.phase_space import InvertiblePhaseSpace, PhaseSpace, massless_volume
from sbi_physics.integration.rambo import Rambo
from sbi_physics.integration.rambo_on_diet import RamboOnDiet, _above, _below, _root

ENERGY = 173.0
RESONANT = Decay(
    Particle(4.7),
    Decay(Particle(0.1), Particle(), mass=BreitWigner(80.4, 2.1), angle=PowerLaw(1.0, 0.05), axis="flight"),
    angle=PowerLaw(0.5),
)
TWO_PAIRS = Decay(
    Decay(Particle(), Particle(), mass=PowerLaw(1.0), least_mass=5.0),
    Decay(Particle(1.0), Particle(2.0), mass=PowerLaw(0.8, 10.0), angle=PowerLaw(2.0, 0.1)),
    angle=PowerLaw(1.0, 0.01),
)
MAPS = {
    "rambo_2": Rambo([0.0] * 2, ENERGY),
    "rambo_4": Rambo([0.0] * 4, ENERGY),
    "rambo_massive": Rambo([1.0, 20.0, 0.0, 90.0], ENERGY),
    "diet_2": RamboOnDiet([3.0, 4.0], ENERGY),
    "diet_3": RamboOnDiet([0.0] * 3, ENERGY),
    "diet_6": RamboOnDiet([0.0] * 6, ENERGY),
    "diet_massive": RamboOnDiet([1.0, 20.0, 0.0, 90.0], ENERGY),
    "diet_threshold": RamboOnDiet([50.0, 60.0, 62.9], ENERGY),
    "chain_resonant": DecayChain(RESONANT, ENERGY),
    "chain_two_pairs": DecayChain(TWO_PAIRS, ENERGY),
}
INVERTIBLE = [name for name, one in MAPS.items() if isinstance(one, InvertiblePhaseSpace)]


def numbers(n, dims, seed=0):
    return torch.rand(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=MAPS)
def phase_space(request):
    return MAPS[request.param]


@pytest.fixture(params=INVERTIBLE)
def invertible(request):
    return MAPS[request.param]


def two_body(mass, first, second):
    """The textbook volume of two bodies."""
    if mass <= first + second:
        return 0.0
    kallen = (mass**2 - (first + second) ** 2) * (mass**2 - (first - second) ** 2)
    return math.sqrt(kallen) / (8 * math.pi * mass**2)


def three_body(mass, first, second, third):
    """The volume of three bodies by quadrature over the mass of the last two."""

    def slice_(pair):
        return 2 * pair / (2 * math.pi) * two_body(mass, first, pair) * two_body(pair, second, third)

    return quad(slice_, second + third, mass - first, epsrel=1e-10, epsabs=0, limit=200)[0]


def test_maps_are_what_the_protocol_says(phase_space):
    assert isinstance(phase_space, PhaseSpace)


def test_momentum_is_conserved_and_particles_are_on_their_shells(phase_space):
    momenta, weight = phase_space(numbers(5_000, phase_space.dims))
    total = momenta.sum(1) / ENERGY
    assert momenta.dtype == torch.float64
    assert torch.allclose(total, total.new_tensor([1.0, 0.0, 0.0, 0.0]).expand_as(total), rtol=0, atol=1e-9)
    squares = torch.tensor(phase_space.masses, dtype=torch.float64) ** 2
    assert float((mass_squared(momenta) - squares).abs().max()) < 1e-9 * ENERGY**2
    assert bool((weight > 0).all())
    assert bool((momenta[..., 0] >= torch.sqrt(squares)).all())


@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("kind", [Rambo, RamboOnDiet])
def test_massless_weight_is_the_volume(n, kind):
    exact = (2 * math.pi) ** (4 - 3 * n) * (math.pi / 2) ** (n - 1) * ENERGY ** (2 * n - 4)
    exact /= math.gamma(n) * math.gamma(n - 1)
    one = kind([0.0] * n, ENERGY)
    _, weight = one(numbers(100, one.dims))
    assert float((weight / exact - 1).abs().max()) < 1e-12
    assert one.volume() == pytest.approx(exact, rel=1e-12)
    assert massless_volume(n, ENERGY) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("n", range(2, 9))
def test_massless_weight_of_the_diet_is_constant_by_itself(n):
    """Not only where the closed form stands in for it."""
    one = RamboOnDiet([0.0] * n, ENERGY)
    _, weight = one._chain(numbers(1_000, one.dims))
    assert float((weight / one.volume() - 1).abs().max()) < 1e-11


@pytest.mark.parametrize("masses", [(0.0, 90.0), (30.0, 40.0), (80.0, 92.0)])
@pytest.mark.parametrize("kind", [Rambo, RamboOnDiet])
def test_two_massive_bodies_have_the_textbook_volume(masses, kind):
    one = kind(masses, ENERGY)
    _, weight = one(numbers(100, one.dims))
    assert float((weight / two_body(ENERGY, *masses) - 1).abs().max()) < 1e-12
    assert one.volume() == pytest.approx(two_body(ENERGY, *masses), rel=1e-12)


@pytest.mark.parametrize("masses", [(0.0, 0.0, 90.0), (30.0, 40.0, 50.0), (1.0, 80.0, 91.0)])
@pytest.mark.parametrize("kind", [Rambo, RamboOnDiet])
def test_three_massive_bodies_have_the_volume_of_a_quadrature(masses, kind):
    one = kind(masses, ENERGY)
    _, weight = one(numbers(40_000, one.dims, seed=3))
    error = float(weight.std()) / math.sqrt(len(weight))
    assert abs(float(weight.mean()) - three_body(ENERGY, *masses)) < 4 * error
    assert error < 0.02 * float(weight.mean())


def test_volume_of_masses_without_a_closed_form_is_refused():
    with pytest.raises(UsageError, match="mean of the weights"):
        RamboOnDiet([1.0, 2.0, 3.0], ENERGY).volume()


def test_mass_of_a_pair_follows_its_closed_distribution_without_masses():
    """The share of s that a pair of three has is of density 2 (1 - x); of any pair, and by either map."""
    for kind in (Rambo, RamboOnDiet):
        one = kind([0.0] * 3, ENERGY)
        momenta, _ = one(numbers(20_000, one.dims, seed=1))
        for i, j in ((0, 1), (0, 2), (1, 2)):
            share = 2 * minkowski_dot(momenta[:, i], momenta[:, j]) / ENERGY**2
            uniform = (1 - (1 - share) ** 2).sort().values
            ranks = (torch.arange(len(uniform)) + 0.5) / len(uniform)
            assert float((uniform - ranks).abs().max()) < 1.9 / math.sqrt(len(uniform))


@pytest.mark.parametrize("n", [4, 6])
def test_both_maps_agree_on_an_integral_with_masses(n):
    masses = [5.0 * (1 + i) for i in range(n)]
    results = []
    for kind in (Rambo, RamboOnDiet):
        one = kind(masses, ENERGY)
        momenta, weight = one(numbers(40_000, one.dims, seed=8))
        value = weight * minkowski_dot(momenta[:, 0], momenta[:, -1]) * momenta[:, 1, 3] ** 2
        results.append((float(value.mean()), float(value.std()) / math.sqrt(len(value))))
    (first, first_error), (second, second_error) = results
    assert abs(first - second) < 4 * math.hypot(first_error, second_error)


@pytest.mark.parametrize("k", [2, 3, 4, 7, 12])
def test_root_of_the_diet_is_exact_at_both_ends(k):
    small = 10.0 ** -torch.linspace(0.4, 15, 2_000, dtype=torch.float64)
    u = torch.cat([small, 1 - small, numbers(2_000, 1)[:, 0]])
    x, rest = _root(u, k)
    error = torch.where(u < 0.5, _below(x, rest, k) / u, _above(x, rest, k) / (1 - u)) - 1
    assert float(error.abs().max()) < 2e-14


def test_gradient_of_the_root_is_that_of_the_implicit_function():
    u = torch.tensor([0.01, 0.3, 0.49, 0.51, 0.9], dtype=torch.float64, requires_grad=True)
    for k in (2, 3, 6):
        x, rest = _root(u, k)
        (slope,) = torch.autograd.grad(x.sum(), u)
        exact = 1 / (k * (k - 1) * x ** (k - 2) * rest)
        assert torch.allclose(slope, exact, rtol=1e-11)
        assert torch.autograd.gradgradcheck(lambda v, k=k: _root(v, k)[0], (u,))


def test_inverse_of_inverse(invertible):
    u = numbers(3_000, invertible.dims, seed=2)
    momenta, weight = invertible(u)
    found, same = invertible.inverse(momenta)
    again, _ = invertible(found)
    assert float((found - u).abs().max()) < 1e-8
    assert torch.allclose(same, weight, rtol=1e-8)
    assert float((again - momenta).abs().max()) < 1e-9 * ENERGY


def test_faces_of_the_cube_are_finite(phase_space):
    for value in (0.0, 1.0):
        u = numbers(phase_space.dims, phase_space.dims).fill_diagonal_(value)
        momenta, weight = phase_space(u)
        assert bool(torch.isfinite(momenta).all())
        assert bool(torch.isfinite(weight).all())


def test_corners_of_the_cube_are_finite(invertible):
    for value in (0.0, 1.0):
        momenta, weight = invertible(torch.full((1, invertible.dims), value))
        assert bool(torch.isfinite(momenta).all())
        assert bool(torch.isfinite(weight).all())


def weight_of_three_by_jacobian(one, u):
    """The weight of three bodies from the Jacobian of p_1 and the direction of p_2 in u.

    dPhi_3 = d^3p_1 dOmega_2 p_2^2 / ((2 pi)^5 8 E_1 E_2 E_3 |dE / dp_2|).
    """

    def coordinates(row):
        momenta, _ = one(row.unsqueeze(0))
        first, second = momenta[0, 0, 1:], momenta[0, 1, 1:]
        length = torch.linalg.vector_norm(second)
        return torch.cat([first, (second[2] / length).view(1), torch.atan2(second[1], second[0]).view(1)])

    momenta, _ = one(u.unsqueeze(0))
    energies, vectors = momenta[0, :, 0], momenta[0, :, 1:]
    length = torch.linalg.vector_norm(vectors[1])
    along = (vectors[0] * vectors[1]).sum() / length
    slope = length / energies[1] + (length + along) / energies[2]
    density = length**2 / ((2 * math.pi) ** 5 * 8 * energies.prod() * slope)
    jacobian = torch.autograd.functional.jacobian(coordinates, u)
    return torch.linalg.det(jacobian).abs() * density


@pytest.mark.parametrize("name", ["diet_3", "diet_threshold", "chain_resonant"])
def test_weight_is_the_jacobian_of_the_momenta(name):
    for u in numbers(10, 5, seed=4):
        _, weight = MAPS[name](u.unsqueeze(0))
        assert float(weight_of_three_by_jacobian(MAPS[name], u)) == pytest.approx(float(weight), rel=1e-8)


def test_maps_are_differentiable(phase_space):
    u = (0.1 + 0.8 * numbers(2, phase_space.dims, seed=5)).requires_grad_()
    assert torch.autograd.gradcheck(phase_space, (u,), eps=1e-7, atol=1e-3, rtol=1e-5)


def test_batch_is_as_good_as_its_rows(phase_space):
    u = numbers(7, phase_space.dims, seed=6)
    momenta, weight = phase_space(u)
    for i in range(len(u)):
        one, alone = phase_space(u[i : i + 1])
        assert torch.allclose(one[0], momenta[i], rtol=1e-12, atol=1e-11)
        assert torch.allclose(alone[0], weight[i], rtol=1e-12)


def test_energy_of_each_event_replaces_that_of_the_map(phase_space):
    u = numbers(5, phase_space.dims, seed=7)
    energy = torch.tensor([173.0, 180.0, 250.0, 1_000.0, 7_000.0], dtype=torch.float64)
    momenta, weight = phase_space(u, energy)
    assert torch.allclose(momenta.sum(1)[:, 0], energy, rtol=1e-10)
    usual, at_usual = phase_space(u)
    assert torch.allclose(momenta[0], usual[0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(weight[0], at_usual[0], rtol=1e-12)


@pytest.mark.parametrize("kind", [Rambo, RamboOnDiet])
@pytest.mark.parametrize(
    ("masses", "energy", "message"),
    [
        ([0.0], 10.0, "at least 2 particles, got 1"),
        ([1.0, -1.0], 10.0, "at least 0, got -1.0"),
        ([4.0, 6.0, 1.0], 10.0, "above the sum of masses, 11 GeV, got 10.0"),
        ([0.0, 0.0], math.inf, "above the sum"),
        ([0.0, 0.0], math.nan, "above the sum"),
    ],
)
def test_bad_masses_and_energies_are_refused(kind, masses, energy, message):
    with pytest.raises(UsageError, match=message):
        kind(masses, energy)


def test_wrong_shapes_are_refused(phase_space):
    wrong = phase_space.dims + 1
    with pytest.raises(ShapeError, match=rf"expected shape \(n, {phase_space.dims}\), got \(3, {wrong}\)"):
        phase_space(torch.rand(3, wrong))
    with pytest.raises(ShapeError, match="energy"):
        phase_space(torch.rand(3, phase_space.dims), torch.full((2,), ENERGY))


def test_inverse_refuses_momenta_of_other_particles(invertible):
    n = len(invertible.masses)
    with pytest.raises(ShapeError, match=rf"expected shape \(n, {n}, 4\)"):
        invertible.inverse(torch.rand(3, n + 1, 4))
