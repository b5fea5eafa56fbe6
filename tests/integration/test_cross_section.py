"""Cross sections and widths against closed forms, by quadrature on the cube wherever it converges."""

import math

import pytest
import torch
from astropy import constants, units
from scipy.integrate import dblquad, quad
from scipy.special import spence

from sbi_physics.core.cuts import RapidityCut, TransverseMomentumCut
from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.initial_states import AtRest, Beams, HadronBeams
from sbi_physics.core.kinematics import minkowski_dot, rapidity, transverse_momentum
from sbi_physics.core.mappings import BreitWigner
from sbi_physics.core.processes import Decay, Particle
from sbi_physics.core.protocols import Integrand
from sbi_physics.integration.cross_section import CrossSection
from sbi_physics.integration.decay_chain import DecayChain
from sbi_physics.integration.rambo import Rambo
from sbi_physics.integration.rambo_on_diet import RamboOnDiet
from simulators.drell_yan import DrellYan, drell_yan
from simulators.electroweak import Electroweak
from simulators.muon_pairs import MuonPairs, muon_pairs
from simulators.three_jets import ThreeJets, three_jets
from simulators.top_decay import TopDecay, top_decay

PICOBARN = float(((constants.hbar * constants.c) ** 2 / units.GeV**2).to("pbarn").value)
PROCESSES = {
    "muon_pairs": muon_pairs(),
    "three_jets": three_jets(),
    "three_jets_even": three_jets(even=True),
    "top_decay": top_decay(bottom_mass=4.7),
    "drell_yan": drell_yan(),
    "drell_yan_resonance": drell_yan(mapping="resonance"),
}


def numbers(n, dims, seed=0):
    return torch.rand(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=PROCESSES)
def integrand(request):
    return CrossSection.of(PROCESSES[request.param])


def integral(process, rule):
    u, weights = rule
    return float(weights @ CrossSection.of(process)(u))


def estimate(integrand, n=100_000, seed=1):
    value = integrand(numbers(n, integrand.dims, seed))
    return float(value.mean()), float(value.std()) / math.sqrt(n)


def test_natural_units_of_area():
    assert pytest.approx(0.3893793721e9, rel=1e-9) == PICOBARN


def test_muon_pairs_by_the_photon(gauss):
    """4 pi alpha^2 / 3 s at 10 GeV, the cross section that every textbook has: 868 pb at alpha = 1 / 137."""
    theory = Electroweak(alpha=1 / 137.035999)
    found = integral(muon_pairs(10.0, ("photon",), theory), gauss(3, 1))
    assert found == pytest.approx(4 * math.pi * theory.alpha**2 / (3 * 10.0**2) * PICOBARN, rel=1e-12)
    assert found == pytest.approx(868.0, rel=2e-3)


def test_muon_pairs_at_the_peak_of_the_z(gauss):
    theory = Electroweak()
    z = theory.z()
    widths = z.partial_width("e") * z.partial_width("mu")
    exact = 12 * math.pi * widths / (z.mass**2 * z.width**2) * PICOBARN
    assert integral(muon_pairs(z.mass, ("Z",)), gauss(3, 1)) == pytest.approx(exact, rel=1e-12)
    assert exact == pytest.approx(2_000.0, rel=0.03)


def test_line_shape_of_the_z(gauss):
    """The integral of the cross section over sqrt(s) from 80 to 100 GeV, against the Breit-Wigner in closed form."""
    z = Electroweak().z()
    nodes, rule = gauss(80)
    energies = 80.0 + 20.0 * nodes[:, 0]
    found = sum(
        20.0 * float(w) * integral(muon_pairs(float(e), ("Z",)), gauss(3, 1))
        for e, w in zip(energies, rule, strict=True)
    )
    scale = 12 * math.pi * z.partial_width("e") * z.partial_width("mu") / z.mass**2

    def shape(energy):
        s = energy**2
        return scale * s / ((s - z.mass**2) ** 2 + (z.mass * z.width) ** 2)

    exact = quad(shape, 80.0, 100.0, points=[z.mass], epsrel=1e-11)[0] * PICOBARN
    assert found == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("energy", [35.0, 91.188, 200.0])
def test_forward_backward_asymmetry(gauss, energy):
    """Half of the cube is forward: the first number is that of 1 - cos theta."""
    theory = Electroweak()
    s = torch.tensor([energy**2], dtype=torch.float64)
    amplitudes = {
        (h, k): sum(
            complex(b.couplings["e"][h] * b.couplings["mu"][k]) / complex(energy**2 - b.mass**2, b.mass * b.width)
            for b in theory.bosons(("photon", "Z"))
        )
        for h in (0, 1)
        for k in (0, 1)
    }
    squares = {key: abs(value) ** 2 for key, value in amplitudes.items()}
    equal, unequal = squares[0, 0] + squares[1, 1], squares[0, 1] + squares[1, 0]
    integrand = CrossSection.of(muon_pairs(energy))
    u, rule = gauss(3, 1)
    forward, backward = (float(rule @ integrand(torch.stack([(u[:, 0] + h) / 2, u[:, 1]], -1))) / 2 for h in (0, 1))
    total = float(s) / (48 * math.pi) * (equal + unequal) * PICOBARN
    assert forward + backward == pytest.approx(total, rel=1e-12)
    asymmetry = (forward - backward) / (forward + backward)
    assert asymmetry == pytest.approx(0.75 * (equal - unequal) / (equal + unequal), rel=1e-10)
    assert math.copysign(1, asymmetry) == (-1 if energy < 90 else 1)


def test_asymmetry_of_the_photon_alone_is_none(gauss):
    integrand = CrossSection.of(muon_pairs(35.0, ("photon",)))
    u, _ = gauss(6, 1)
    assert torch.allclose(integrand(u), integrand(torch.stack([1 - u[:, 0], u[:, 1]], -1)), rtol=1e-12)


def three_jet_rate(y, alpha_s=0.118):
    """sigma(q q-bar g with all y_ij > y) / sigma(q q-bar) at leading order (Kramer and Lampe 1987, JADE scheme)."""
    dilogarithm = spence(1 - y / (1 - y))
    bracket = 2 * math.log(y / (1 - y)) ** 2 + 3 * (1 - 2 * y) * math.log(y / (1 - 2 * y))
    bracket += 2.5 - 6 * y - 4.5 * y**2 + 4 * dilogarithm - math.pi**2 / 3
    return 4 / 3 * alpha_s / (2 * math.pi) * bracket


def two_jets(energy, quarks=(2 / 3, -1 / 3, -1 / 3, 2 / 3, -1 / 3)):
    """The cross section of quark pairs by the photon, in pb."""
    return 4 * math.pi * Electroweak().alpha ** 2 / (3 * energy**2) * 3 * sum(q**2 for q in quarks) * PICOBARN


@pytest.mark.parametrize("y", [0.01, 0.05])
def test_rate_of_three_jets_is_a_quadrature_of_the_dalitz_plot(y):
    def slice_(x2, x1):
        return (x1**2 + x2**2) / ((1 - x1) * (1 - x2))

    found = dblquad(slice_, 2 * y, 1 - y, lambda x1: 1 + y - x1, lambda _: 1 - y, epsabs=0, epsrel=1e-8)[0]
    assert 4 / 3 * 0.118 / (2 * math.pi) * found == pytest.approx(three_jet_rate(y), rel=1e-7)


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("y", [0.01, 0.05])
def test_three_jets_have_the_known_rate(even, y):
    integrand = CrossSection.of(three_jets(40.0, y, ("photon",), even=even))
    value, error = estimate(integrand)
    assert abs(value - three_jet_rate(y) * two_jets(40.0)) < 4 * error
    assert error < (0.02 if even else 0.004) * value


def test_three_jets_through_the_z_scale_as_two():
    """The angles integrate away: the ratio to two jets is that of the photon alone."""
    theory = Electroweak()
    s = 91.188**2
    two = 0.0
    for quark in ("u", "d", "s", "c", "b"):
        for h, k in ((0, 0), (0, 1), (1, 0), (1, 1)):
            amplitude = sum(
                b.couplings["e"][h] * b.couplings[quark][k] / complex(s - b.mass**2, b.mass * b.width)
                for b in theory.bosons(("photon", "Z"))
            )
            two += 3 * s / (48 * math.pi) * abs(amplitude) ** 2 * PICOBARN
    value, error = estimate(CrossSection.of(three_jets(91.188, 0.02)))
    assert abs(value - three_jet_rate(0.02) * two) < 4 * error


@pytest.mark.parametrize("bottom_mass", [0.0, 4.7])
def test_width_of_the_top_with_a_narrow_w(gauss, bottom_mass):
    """The tails of the W add a few times Gamma_W / M_W, here 1e-5."""
    top = TopDecay(bottom_mass=bottom_mass, w_width=2.085e-5)
    found = integral(top_decay(bottom_mass=bottom_mass, w_width=2.085e-5), gauss(400, 1, 1, 4, 1))
    assert found == pytest.approx(top.narrow_width(), rel=5e-6)


@pytest.mark.parametrize("bottom_mass", [0.0, 4.7])
def test_width_of_the_top_with_a_w_of_its_width(gauss, bottom_mass):
    """The width into b and a W of any mass, spread by the propagator."""
    top = TopDecay(bottom_mass=bottom_mass)

    def slice_(angle):
        s = top.w_mass**2 + top.w_mass * top.w_width * math.tan(angle)
        x, r = s / top.top_mass**2, (bottom_mass / top.top_mass) ** 2
        kallen = max((1 - x - r) ** 2 - 4 * x * r, 0.0)
        bracket = (1 - r) ** 2 + x * (1 + r) - 2 * x**2
        to_w = top.fermi * top.top_mass**3 / (8 * math.pi * math.sqrt(2)) * math.sqrt(kallen) * bracket
        # The couplings are those at the pole: G_F M^2 / s of the top, s / M of sqrt(s) Gamma(W -> l nu) cancel in s.
        return to_w * top.w_to_leptons() / (math.pi * top.w_width)

    low, high = (
        math.atan((edge - top.w_mass**2) / (top.w_mass * top.w_width))
        for edge in (0.0, (top.top_mass - bottom_mass) ** 2)
    )
    exact = quad(slice_, low, high, points=[0.0], epsrel=1e-10, limit=200)[0]
    found = integral(top_decay(bottom_mass=bottom_mass), gauss(400, 1, 1, 4, 1))
    assert found == pytest.approx(exact, rel=1e-6)
    assert 0.98 < found / top.narrow_width() < 1.0


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"strength": 0.0}, 200.0, 500.0),
        ({"strength": 1.0, "mapping": "resonance"}, 900.0, 1_100.0),
        ({"strength": 1.0}, 900.0, 1_100.0),
    ],
)
def test_drell_yan_is_a_quadrature_over_both_partons(gauss, options, low, high):
    process = drell_yan(least_mass=low, most_mass=high, least_pt=0.0, most_rapidity=math.inf, **options)
    matrix_element = DrellYan(strength=options["strength"])

    # Over s evenly, in 40 panels, and over ln x_2 from tau to 1; the map has s in another way, and the rapidity.
    nodes, weights = gauss(10, 60)
    panel = torch.arange(40).repeat_interleave(len(nodes))
    s = low**2 + (high**2 - low**2) / 40 * (panel + nodes[:, 0].repeat(40))
    tau = s / 13_000.0**2
    second = tau ** nodes[:, 1].repeat(40)
    density = matrix_element.rate(tau / second, second) * -torch.log(tau) * (high**2 - low**2) / 40 / 13_000.0**2
    exact = float(density @ weights.repeat(40))
    found = integral(process, gauss(60, 40, 3, 1))
    assert found == pytest.approx(exact * PICOBARN, rel=1e-7)


def test_drell_yan_has_the_resonance():
    with_, without = (
        estimate(CrossSection.of(drell_yan(least_mass=900.0, most_mass=1_100.0, strength=g, mapping="resonance")))
        for g in (1.0, 0.0)
    )
    assert with_[0] > 10 * without[0]


def test_cuts_are_applied_and_cut_events_are_not_evaluated():
    seen = []

    def matrix_element(incoming, outgoing):
        assert len(incoming) == len(outgoing)
        seen.append(outgoing)
        return torch.ones(len(outgoing), dtype=outgoing.dtype)

    cuts = (TransverseMomentumCut(least=100.0), RapidityCut(most=1.0))
    beams = HadronBeams(13_000.0, 150.0)
    integrand = CrossSection(beams, RamboOnDiet([0.0, 0.0], 150.0), matrix_element, cuts=cuts)
    events = integrand.events(numbers(1_000, integrand.dims))
    passed = (transverse_momentum(events.outgoing) >= 100.0).all(1) & (rapidity(events.outgoing).abs() <= 1.0).all(1)
    assert 0 < int(passed.sum()) < 1_000
    assert torch.equal(events.weight > 0, passed)
    assert torch.equal(torch.cat(seen), events.outgoing[passed])


def test_events_that_all_fail_are_no_error():
    integrand = CrossSection.of(PROCESSES["three_jets"])
    none = CrossSection(
        integrand.initial_state,
        integrand.phase_space,
        integrand.squared_matrix_element,
        cuts=(TransverseMomentumCut(least=1e4),),
    )
    assert not bool(none(numbers(50, none.dims)).any())
    assert none(numbers(0, none.dims)).shape == (0,)


def test_laws_of_integrands(integrand):
    assert isinstance(integrand, Integrand)
    u = numbers(2_000, integrand.dims, seed=3)
    events = integrand.events(u)
    assert torch.equal(events.weight, integrand(u))
    assert bool((events.weight >= 0).all())
    assert bool(torch.isfinite(events.weight).all())
    total = events.incoming.sum(1) - events.outgoing.sum(1)
    assert float((total.abs().amax(1) / events.incoming[..., 0].amax(1)).max()) < 1e-9


def test_faces_and_corners_of_the_cube_are_finite(integrand):
    for value in (0.0, 1.0):
        faces = numbers(integrand.dims, integrand.dims).fill_diagonal_(value)
        corner = torch.full((1, integrand.dims), value, dtype=torch.float64)
        assert bool(torch.isfinite(integrand(torch.cat([faces, corner]))).all())


def test_batch_is_as_good_as_its_rows(integrand):
    u = numbers(9, integrand.dims, seed=4)
    rows = torch.cat([integrand(row.unsqueeze(0)) for row in u])
    assert torch.allclose(rows, integrand(u), rtol=1e-10)


def test_numbers_are_found_again(integrand):
    u = numbers(2_000, integrand.dims, seed=5)
    _, outgoing, measure = integrand.momenta(u)
    found, same = integrand.numbers(outgoing)
    assert float((found - u).abs().max()) < 1e-7
    assert torch.allclose(same, measure, rtol=1e-7)


def test_integrands_are_differentiable(integrand):
    u = 0.2 + 0.6 * numbers(200, integrand.dims, seed=6)
    rows = u[integrand(u) > 0][:2].requires_grad_()
    scale = float(integrand(rows.detach()).max())
    assert torch.autograd.gradcheck(lambda v: integrand(v) / scale, (rows,), eps=1e-7, atol=1e-4, rtol=1e-4)


def test_other_channels_give_the_same_integral():
    direct = CrossSection.of(drell_yan(least_mass=700.0, most_mass=1_300.0))
    other = direct.through(direct.phase_space, HadronBeams(13_000.0, 700.0, 1_300.0, BreitWigner(1_000.0, 30.0)))
    (first, first_error), (second, second_error) = estimate(direct), estimate(other)
    assert abs(first - second) < 4 * math.hypot(first_error, second_error)
    assert second_error < 0.5 * first_error
    jets = CrossSection.of(three_jets(y_cut=0.05))
    (first, first_error), (second, second_error) = (
        estimate(jets),
        estimate(jets.through(Rambo([0.0] * 3, 91.188))),
    )
    assert abs(first - second) < 4 * math.hypot(first_error, second_error)


def test_a_matrix_element_of_the_users_own():
    """Fermi's muon decay: Gamma = G_F^2 m^5 / 192 pi^3, 3.0e-19 GeV."""
    fermi, mass = 1.1663788e-5, 0.1056584

    def squared(incoming, outgoing):
        muon, (electron, antineutrino, neutrino) = incoming[:, 0], outgoing.unbind(1)
        return 64 * fermi**2 * minkowski_dot(muon, antineutrino) * minkowski_dot(electron, neutrino)

    integrand = CrossSection(AtRest(mass), RamboOnDiet([0.0] * 3, mass), squared, unit="GeV")
    value, error = estimate(integrand)
    assert abs(value - fermi**2 * mass**5 / (192 * math.pi**3)) < 4 * error
    lifetime = (constants.hbar / integrand.quantity(value)).to("us").value
    assert lifetime == pytest.approx(2.19, abs=0.03)


def test_units_are_those_that_were_asked_for():
    process = muon_pairs(10.0, ("photon",))
    chain = DecayChain(Decay(Particle(), Particle()), 10.0)
    results = {
        unit: float(CrossSection(Beams(10.0), chain, process.squared_matrix_element, unit=unit)(numbers(1, 2))[0])
        for unit in ("pbarn", "fbarn", "cm2")
    }
    assert results["fbarn"] == pytest.approx(1e3 * results["pbarn"], rel=1e-12)
    assert results["cm2"] == pytest.approx(1e-36 * results["pbarn"], rel=1e-12)
    assert CrossSection.of(process).quantity(2.0).to_value("fbarn") == pytest.approx(2_000.0)


def test_wrong_use_is_refused():
    chain = DecayChain(Decay(Particle(), Particle()), 10.0)
    with pytest.raises(UsageError, match="area such as 'pbarn' or an energy such as 'GeV', got 'pb'"):
        CrossSection(Beams(10.0), chain, MuonPairs(), unit="pb")
    with pytest.raises(UsageError, match="expected an astropy unit string such as 'pbarn', got 'lepton'"):
        CrossSection(Beams(10.0), chain, MuonPairs(), unit="lepton")
    with pytest.raises(UsageError, match="at least 20 GeV, got 10"):
        CrossSection(Beams(10.0), RamboOnDiet([5.0, 15.0], 30.0), ThreeJets())
    integrand = CrossSection(Beams(10.0), chain, MuonPairs())
    with pytest.raises(ShapeError, match=r"expected shape \(n, 2\), got \(5, 3\)"):
        integrand(torch.rand(5, 3))
    with pytest.raises(ShapeError, match=r"squared_matrix_element: expected shape \(5,\), got \(5, 1\)"):
        CrossSection(Beams(10.0), chain, lambda _, p: p[:, :1, 0])(torch.rand(5, 2))
    with pytest.raises(UsageError, match="a phase space with an inverse, got Rambo"):
        integrand.through(Rambo([0.0, 0.0], 10.0)).numbers(torch.rand(1, 2, 4))
