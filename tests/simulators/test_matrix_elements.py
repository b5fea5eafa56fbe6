"""Squared matrix elements against traces of Dirac matrices done with numbers, and their limits."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sbi_physics.core.errors import UsageError
from sbi_physics.core.initial_states import HadronBeams
from sbi_physics.core.kinematics import boost_along_z, minkowski_dot
from sbi_physics.core.processes import Process
from simulators.drell_yan import DrellYan, drell_yan
from simulators.electroweak import Electroweak
from simulators.muon_pairs import MuonPairs, muon_pairs
from simulators.three_jets import ThreeJets, three_jets
from simulators.top_decay import TopDecay, top_decay
from simulators.toy_partons import ToyPartons

PAULI = [np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])]
EYE, ZERO = np.eye(2), np.zeros((2, 2))
GAMMA = [np.block([[ZERO, EYE], [EYE, ZERO]])] + [np.block([[ZERO, s], [-s, ZERO]]) for s in PAULI]
LEFT, RIGHT = np.diag([1, 1, 0, 0]), np.diag([0, 0, 1, 1])
METRIC = np.array([1.0, -1.0, -1.0, -1.0])


def slash(p):
    return sum(METRIC[i] * p[i] * GAMMA[i] for i in range(4))


def vertex(index, couplings):
    left, right = couplings
    return GAMMA[index] @ (left * LEFT + right * RIGHT)


def contracted(first, second):
    """The product of two tensors with two indices each, both pairs summed with the metric."""
    return sum(METRIC[i] * METRIC[j] * first[i, j] * second[i, j] for i, j in product(range(4), repeat=2))


def current(backward, forward, couplings, others):
    """Tr[backward V_mu forward V'_nu] as an array of indices mu, nu."""
    found = np.empty((4, 4), dtype=complex)
    for i, j in product(range(4), repeat=2):
        found[i, j] = np.trace(slash(backward) @ vertex(i, couplings) @ slash(forward) @ vertex(j, others))
    return found


def massless(vectors):
    return np.concatenate([np.linalg.norm(vectors, axis=-1, keepdims=True), vectors], -1)


def beams(energy):
    half = energy / 2
    return np.array([[half, 0.0, 0.0, half], [half, 0.0, 0.0, -half]])


def two_bodies(energy, theta, phi):
    unit = np.array([math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)])
    return massless(energy / 2 * np.stack([unit, -unit]))


def three_bodies(energy, seed):
    """Three massless momenta at rest together, anywhere."""
    rng = np.random.default_rng(seed)
    shares = 1 - rng.dirichlet([1.0, 1.0, 1.0])
    cosine = 1 - 2 * (1 - shares[2]) / (shares[0] * shares[1])
    plane = np.array([[shares[0], 0.0, 0.0], [shares[1] * cosine, shares[1] * math.sqrt(1 - cosine**2), 0.0]])
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    vectors = np.vstack([plane, -plane.sum(0)]) @ rotation.T
    return massless(energy / 2 * vectors)


def batch(*arrays):
    return [torch.tensor(array).unsqueeze(0) for array in arrays]


def propagator(boson, s):
    return 1 / (s - boson.mass**2 + 1j * boson.mass * boson.width)


@pytest.mark.parametrize("exchange", [("photon",), ("Z",), ("photon", "Z")])
@pytest.mark.parametrize("energy", [10.0, 91.0, 200.0])
def test_muon_pairs_are_the_trace(exchange, energy):
    for theta, phi in ((0.3, 0.1), (1.2, 4.0), (2.9, 2.0)):
        incoming, outgoing = beams(energy), two_bodies(energy, theta, phi)
        bosons = Electroweak().bosons(exchange)
        total = 0.0
        for one, two in product(bosons, repeat=2):
            electrons = current(incoming[1], incoming[0], one.couplings["e"], two.couplings["e"])
            muons = current(outgoing[0], outgoing[1], one.couplings["mu"], two.couplings["mu"])
            total += propagator(one, energy**2) * np.conj(propagator(two, energy**2)) * contracted(electrons, muons)
        found = MuonPairs(exchange)(*batch(incoming, outgoing))
        assert float(found) == pytest.approx(total.real / 4, rel=1e-10)


def gluon_emission(outgoing, couplings):
    """The quark line with a gluon of index alpha and a boson of index mu: an array of matrices."""
    quark, antiquark, gluon = outgoing
    before = slash(quark + gluon) / (2 * (quark * METRIC) @ gluon)
    after = slash(antiquark + gluon) / (2 * (antiquark * METRIC) @ gluon)
    return {
        (a, m): GAMMA[a] @ before @ vertex(m, couplings) - vertex(m, couplings) @ after @ GAMMA[a]
        for a, m in product(range(4), repeat=2)
    }


def bar(matrix):
    return GAMMA[0] @ matrix.conj().T @ GAMMA[0]


def three_jet_trace(incoming, outgoing, bosons, quark, polarisations):
    """|M|^2 without couplings and colours of the gluon, for a sum over polarisations given as a matrix."""
    s = 2 * (incoming[0] * METRIC) @ incoming[1]
    total = 0.0
    for one, two in product(bosons, repeat=2):
        electrons = current(incoming[1], incoming[0], one.couplings["e"], two.couplings["e"])
        lines = gluon_emission(outgoing, one.couplings[quark]), gluon_emission(outgoing, two.couplings[quark])
        quarks = np.zeros((4, 4), dtype=complex)
        for m, n in product(range(4), repeat=2):
            for a, b in zip(*np.nonzero(polarisations), strict=True):
                spinors = slash(outgoing[0]) @ lines[0][a, m] @ slash(outgoing[1]) @ bar(lines[1][b, n])
                quarks[m, n] += polarisations[a, b] * np.trace(spinors)
        total += propagator(one, s) * np.conj(propagator(two, s)) * contracted(electrons, quarks)
    return total.real / 4


@pytest.mark.parametrize("exchange", [("photon",), ("photon", "Z")])
@pytest.mark.parametrize("quark", ["u", "b"])
def test_three_jets_are_the_trace(exchange, quark):
    bosons, energy = Electroweak().bosons(exchange), 100.0
    for seed in range(3):
        incoming, outgoing = beams(energy), three_bodies(energy, seed)
        exact = three_jet_trace(incoming, outgoing, bosons, quark, np.diag(-METRIC))
        exact *= 4 * math.pi * 0.118 * 3 * 4 / 3
        found = ThreeJets(exchange, (quark,))(*batch(incoming, outgoing))
        assert float(found) == pytest.approx(exact, rel=1e-9)


def test_the_trace_is_gauge_invariant():
    """A gluon polarised along its momentum does not couple: the twin of the trace above."""
    bosons = Electroweak().bosons(("photon", "Z"))
    incoming, outgoing = beams(100.0), three_bodies(100.0, 0)
    lowered = METRIC * outgoing[2]
    along = three_jet_trace(incoming, outgoing, bosons, "u", np.outer(lowered, lowered))
    usual = three_jet_trace(incoming, outgoing, bosons, "u", np.diag(-METRIC))
    assert abs(along) < 1e-9 * outgoing[2][0] ** 2 * usual


def test_soft_gluons_factorise():
    """In the limit of a soft gluon |M|^2 is that of two jets times the eikonal factor."""
    energy, soft = 100.0, 1e-5
    quark, antiquark = two_bodies(energy, 1.1, 0.7)
    gluon = massless(soft * energy * np.array([0.3, -0.5, 0.6]))
    outgoing = np.stack([quark, antiquark, gluon])
    found = ThreeJets(("photon",), ("d",))(*batch(beams(energy), outgoing))
    two = MuonPairs(("photon",))(*batch(beams(energy), outgoing[:2])) * 3 / 9
    products = [(p * METRIC) @ q for p, q in ((quark, antiquark), (quark, gluon), (antiquark, gluon))]
    eikonal = 4 * math.pi * 0.118 * 4 / 3 * 2 * products[0] / (products[1] * products[2])
    assert float(found / two) == pytest.approx(eikonal, rel=1e-4)


def test_three_jets_are_symmetric_under_charge_conjugation():
    incoming, outgoing = batch(beams(80.0), three_bodies(80.0, 5))
    matrix_element = ThreeJets()
    other = matrix_element(incoming[:, [1, 0]], outgoing[:, [1, 0, 2]])
    assert float(other) == pytest.approx(float(matrix_element(incoming, outgoing)), rel=1e-12)
    assert float(matrix_element(incoming, outgoing[:, [1, 0, 2]])) != pytest.approx(float(other), rel=1e-3)


@pytest.mark.parametrize("bottom_mass", [0.0, 4.7])
def test_top_decay_is_the_trace(bottom_mass):
    top = TopDecay(bottom_mass=bottom_mass)
    rng = np.random.default_rng(1)
    lepton, neutrino = massless(rng.normal(scale=40.0, size=(2, 3)))
    vector = -(lepton + neutrino)[1:]
    bottom = np.array([math.sqrt(vector @ vector + bottom_mass**2), *vector])
    decaying = bottom + lepton + neutrino
    mass = decaying[0]
    weak = 4 * math.sqrt(2) * top.fermi * top.w_mass**2
    s = 2 * (lepton * METRIC) @ neutrino
    quarks, leptons = np.empty((4, 4), dtype=complex), current(neutrino, lepton, (1, 0), (1, 0))
    for i, j in product(range(4), repeat=2):
        spinors = (slash(bottom) + bottom_mass * np.eye(4)) @ vertex(i, (1, 0))
        quarks[i, j] = np.trace(spinors @ (slash(decaying) + mass * np.eye(4)) @ vertex(j, (1, 0)))
    exact = weak**2 / 4 * contracted(quarks, leptons).real / 2
    exact /= (s - top.w_mass**2) ** 2 + (top.w_mass * top.w_width) ** 2
    found = top(*batch(decaying[None], np.stack([bottom, lepton, neutrino])))
    assert float(found) == pytest.approx(exact, rel=1e-9)


def test_widths_of_the_top_are_the_known_ones():
    """Massless b: G_F m^3 (1 - x)^2 (1 + 2 x) / 8 pi sqrt 2; 1.5 GeV at tree level for the masses of today."""
    top = TopDecay()
    x = (top.w_mass / top.top_mass) ** 2
    exact = top.fermi * top.top_mass**3 / (8 * math.pi * math.sqrt(2)) * (1 - x) ** 2 * (1 + 2 * x)
    assert top.width_to_w() == pytest.approx(exact, rel=1e-12)
    assert top.width_to_w() == pytest.approx(1.486, abs=0.005)
    assert TopDecay(bottom_mass=4.7).width_to_w() < top.width_to_w()
    assert 9 * top.w_to_leptons() == pytest.approx(2.04, abs=0.02)


def test_width_of_the_z_is_near_the_measured_one():
    """All fermions but the top; three neutrinos make up for one third of the width into neutrinos."""
    theory = Electroweak()
    z = theory.z()
    neutrinos = 3 * z.mass * theory.charge**2 / (theory.sin2_theta * (1 - theory.sin2_theta)) / (24 * math.pi) / 4
    total = neutrinos + 3 * z.partial_width("e") + sum(z.partial_width(q, 3) for q in ("u", "c", "d", "s", "b"))
    assert total == pytest.approx(2.4955, rel=0.04)
    assert z.partial_width("mu") == pytest.approx(0.08398, rel=0.01)


def test_toy_partons_obey_the_sum_rules():
    partons = ToyPartons()

    def integral(density, power=0):
        return quad(lambda x: float(density(torch.tensor(x, dtype=torch.float64))) / x**power, 0, 1, epsrel=1e-9)[0]

    for flavour, number in (("u", 2.0), ("d", 1.0), ("s", 0.0)):
        assert integral(lambda x, f=flavour: partons.valence(f, x), 1) == pytest.approx(number, abs=1e-7)
    momentum = integral(partons.gluon)
    for flavour in ("u", "d", "s"):
        momentum += integral(lambda x, f=flavour: partons.quark(f, x) + partons.antiquark(f, x))
    assert momentum == pytest.approx(1.0, abs=1e-8)


def test_drell_yan_does_not_know_which_proton_is_which():
    """Both beams exchanged and everything turned around: the same."""
    matrix_element = DrellYan()
    incoming, energy, shift, _ = HadronBeams(13_000.0, 300.0)(torch.tensor([[0.4, 0.8]], dtype=torch.float64))
    leptons = torch.tensor(two_bodies(float(energy), 0.9, 0.4)).unsqueeze(0)
    outgoing = boost_along_z(leptons, shift.unsqueeze(-1))
    turned = [p * torch.tensor([1.0, 1.0, -1.0, -1.0]) for p in (incoming[:, [1, 0]], outgoing)]
    found = matrix_element(incoming, outgoing)
    assert float(matrix_element(*turned)) == pytest.approx(float(found), rel=1e-10)
    assert float(matrix_element(incoming, outgoing[:, [1, 0]])) != pytest.approx(float(found), rel=1e-3)


def test_drell_yan_over_angles_is_its_rate():
    """|M|^2 is a polynomial of second order in cos theta."""
    matrix_element = DrellYan()
    nodes, rule = np.polynomial.legendre.leggauss(3)
    incoming, energy, shift, _ = HadronBeams(13_000.0, 300.0)(torch.tensor([[0.3, 0.6]], dtype=torch.float64))
    total = 0.0
    for cosine, weight in zip(nodes, rule, strict=True):
        leptons = torch.tensor(two_bodies(float(energy), math.acos(cosine), 0.0)).unsqueeze(0)
        total += weight / 2 * float(matrix_element(incoming, boost_along_z(leptons, shift.unsqueeze(-1))))
    s = float(2 * minkowski_dot(incoming[:, 0], incoming[:, 1]))
    shares = 2 * incoming[:, :, 0] / 13_000.0
    assert total / (8 * math.pi) / (2 * s) == pytest.approx(float(matrix_element.rate(*shares.T)), rel=1e-10)


@pytest.mark.parametrize("matrix_element", [MuonPairs(), ThreeJets(), TopDecay(), DrellYan()])
def test_matrix_elements_are_positive_and_differentiable(matrix_element):
    n = 2 if isinstance(matrix_element, MuonPairs | DrellYan) else 3
    outgoing = two_bodies(150.0, 1.0, 2.0) if n == 2 else three_bodies(150.0, 3)
    incoming = outgoing.sum(0)[None] if isinstance(matrix_element, TopDecay) else beams(150.0)
    first, second = batch(incoming, outgoing)
    assert float(matrix_element(first, second)) > 0
    assert torch.autograd.gradcheck(matrix_element, (first, second.requires_grad_()), rtol=1e-4)


@pytest.mark.parametrize("make", [muon_pairs, three_jets, top_decay, drell_yan])
def test_processes_need_no_arguments(make):
    process = make()
    assert isinstance(process, Process)
    assert process.name == make.__name__


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: muon_pairs(exchange=("gluon",)), "expected some of 'photon', 'Z'"),
        (lambda: muon_pairs(exchange=()), "expected some of 'photon', 'Z'"),
        (lambda: muon_pairs(-1.0), "positive energy"),
        (lambda: three_jets(y_cut=0.5), "between 0 and 1/3, got 0.5"),
        (lambda: three_jets(quarks=("t",)), "expected some of u, d, s, c, b"),
        (lambda: top_decay(top_mass=80.0), "top_mass above those of b and W, got 80.0"),
        (lambda: top_decay(bottom_mass=-1.0), "no negative bottom_mass"),
        (lambda: drell_yan(z_prime_width=0.0), "positive z_prime_width"),
        (lambda: drell_yan(mapping="best"), "'continuum' or 'resonance', got 'best'"),
        (lambda: drell_yan(least_mass=0.0), "0 < least_mass"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
