"""Showers in the calorimeter: response, resolution, depth, width and symmetry as physics has them."""

import math
import pickle
from itertools import pairwise

import pytest
import torch

from sbi_physics.core.errors import ShapeError, SupportError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.protocols import Simulator
from sbi_physics.core.voxels import DATASET_1_PHOTONS
from sbi_physics.diagnostics.shower_features import high_level_features
from simulators.calorimeter import (
    PHOTON_CALORIMETER,
    PION_CALORIMETER,
    Calorimeter,
    ElectromagneticShowers,
    HadronicShowers,
    Section,
)
from simulators.gflash import LEAD, LEAD_ARGON, Medium, longitudinal_profile

SIMULATORS = {"photons": ElectromagneticShowers, "pions": HadronicShowers}


@pytest.fixture(params=SIMULATORS)
def simulator(request):
    return SIMULATORS[request.param]()


def features(simulator, gev, n, seed=1):
    theta = torch.full((n, 1), 1000.0 * gev)
    return high_level_features(simulator(theta, seed=seed), theta, simulator.geometry)


def mean_and_error(values):
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def depth_of(found, simulator):
    """Mean depth in radiation lengths, the energy of each layer at its middle."""
    edges = torch.tensor([0.0, *(section.thickness for section in simulator.calorimeter.sections)]).cumsum(0)
    energies = torch.stack([found[f"energy[{layer.identifier}]"] for layer in simulator.geometry.layers], 1)
    return energies @ ((edges[1:] + edges[:-1]) / 2).double() / energies.sum(1).clamp_min(1e-9)


def radius_of(simulator, gev, n):
    """Energy-weighted mean distance from the axis in mm."""
    x = simulator(torch.full((n, 1), 1000.0 * gev), seed=1).double()
    return float((x @ simulator.geometry.radii).sum() / x.sum())


def test_satisfies_the_protocol(simulator):
    assert isinstance(simulator, Simulator)
    assert Parameters.from_dict(simulator.parameters.to_dict()) == simulator.parameters
    assert simulator.parameters.units == ("MeV",)
    assert simulator.parameters.bounds.tolist() == [[256.0, 2.0**22]]
    theta = simulator.parameters.sample(20, seed=1).clamp_max(1e5)
    x = simulator(theta, seed=2)
    assert x.shape == (20, *simulator.x_shape)
    assert x.dtype == torch.float32
    assert bool(torch.isfinite(x).all())
    assert simulator(theta[:0], seed=2).shape == (0, *simulator.x_shape)


def test_voxels_are_those_of_the_challenge():
    assert ElectromagneticShowers().x_shape == (368,)
    assert HadronicShowers().x_shape == (533,)
    assert HadronicShowers(calorimeter=PHOTON_CALORIMETER).x_shape == (368,)


def test_same_seed_same_bytes_whatever_the_memory(simulator):
    theta = torch.full((30, 1), 2e4)
    state = torch.random.get_rng_state()
    first = simulator(theta, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    for again in (simulator, pickle.loads(pickle.dumps(simulator)), type(simulator)(max_spots=100)):
        assert again(theta, seed=3).numpy().tobytes() == first.numpy().tobytes()
    assert not torch.equal(simulator(theta, seed=4), first)
    assert len(torch.unique(first.sum(1))) == 30


def test_voxels_below_the_threshold_read_exactly_zero(simulator):
    theta = torch.full((50, 1), 5e4)
    x = simulator(theta, seed=1)
    assert bool(((x == 0) | (x >= 1)).all())
    everything = type(simulator)(threshold=0.0)(theta, seed=1)
    assert bool(((everything > 0) & (everything < 1)).any())
    assert torch.equal(torch.where(everything < 1, 0.0, everything), x)


def test_the_response_to_photons_is_linear():
    """Within half a percent from 1 GeV to 1 TeV: what is missing leaks or stays below the threshold."""
    for gev, n in ((1, 4000), (10, 1000), (100, 200), (1000, 20)):
        mean, error = mean_and_error(features(ElectromagneticShowers(), gev, n)["response"])
        assert abs(mean - 0.9975) < 0.0025 + 4 * error


def test_the_resolution_of_photons_falls_as_the_root_of_the_energy():
    for gev, n in ((1, 4000), (10, 1000), (100, 300)):
        spread = float(features(ElectromagneticShowers(), gev, n)["response"].std()) * math.sqrt(gev)
        assert spread == pytest.approx(0.10, rel=5 / math.sqrt(2 * n))
    homogeneous = ElectromagneticShowers(medium=Medium.homogeneous(LEAD), converts=False)
    assert float(features(homogeneous, 1, 1000)["response"].std()) < 0.03


def test_an_unthresholded_homogeneous_shower_never_gains_energy():
    simulator = ElectromagneticShowers(medium=Medium.homogeneous(LEAD), threshold=0.0)
    response = features(simulator, 10, 300)["response"]
    assert float(response.max()) <= 1 + 1e-6
    assert float(response.mean()) > 0.98


@pytest.mark.parametrize("gev", [2, 50])
def test_layers_hold_what_the_profile_says(gev):
    """The mean energy of each layer, electrons, against the mean of profiles drawn apart."""
    n, m = (2000, 20_000) if gev < 10 else (300, 20_000)
    generator = torch.Generator().manual_seed(5)
    normals = torch.randn(m, 2, dtype=torch.float64, generator=generator)
    profile, _ = longitudinal_profile(LEAD_ARGON, torch.full((m,), float(gev), dtype=torch.float64), normals)
    edges = torch.tensor([0.0, 1.7, 6.0, 22.0, 25.0], dtype=torch.float64)
    expected = 1000 * gev * profile.between(edges.expand(m, -1)).mean(0)
    found = features(ElectromagneticShowers(converts=False, threshold=0.0), gev, n)
    for identifier, value in zip((0, 1, 2, 3), expected, strict=True):
        mean, error = mean_and_error(found[f"energy[{identifier}]"])
        # Up to a hundredth of the energy of a layer is beside its voxels.
        assert abs(mean - float(value)) < 5 * error + 0.01 * float(value) + 0.1
    photons, error = mean_and_error(features(ElectromagneticShowers(threshold=0.0), gev, n)["energy[1]"])
    assert abs(photons - float(expected[1])) > 5 * error


def test_photons_go_deeper_with_the_logarithm_of_the_energy():
    """By ln 10 radiation lengths a decade, less what the coarse layers and the end of the calorimeter hide."""
    simulator = ElectromagneticShowers()
    depths = [depth_of(features(simulator, gev, n), simulator) for gev, n in ((1, 2000), (10, 500), (100, 100))]
    for shallow, deep in pairwise(depths):
        gained, error = mean_and_error(deep)[0] - mean_and_error(shallow)[0], mean_and_error(deep)[1]
        assert 0.6 * math.log(10) - 5 * error < gained < 1.2 * math.log(10) + 5 * error


def test_showers_have_no_preferred_direction(simulator):
    theta = torch.full((1500, 1), 1e4)
    x = simulator(theta, seed=1).double()
    place = simulator.geometry.layer_slices[2]
    sectors = x[:, place].reshape(len(x), 10, -1).sum(2)

    def pull(energies):
        difference = energies - energies.mean(1, keepdim=True)
        return float((difference.mean(0) / (difference.std(0) / math.sqrt(len(x)))).abs().max())

    assert pull(sectors) < 5
    assert pull(sectors * (1 + 0.1 * torch.cos(torch.arange(10) * math.pi / 5))) > 5
    found = high_level_features(x, theta, simulator.geometry)
    for axis in ("eta", "phi"):
        mean, error = mean_and_error(found[f"{axis}[2]"])
        assert abs(mean) < 5 * error


def test_pions_are_wider_deeper_and_fluctuate_more_than_photons():
    photons, pions = ElectromagneticShowers(), HadronicShowers(calorimeter=PHOTON_CALORIMETER)
    for gev, n in ((10, 600), (100, 150)):
        light, heavy = features(photons, gev, n), features(pions, gev, n)
        assert float(heavy["response"].std()) > 3 * float(light["response"].std())
        assert float(depth_of(heavy, pions).mean()) > 1.2 * float(depth_of(light, photons).mean())
        assert radius_of(pions, gev, n) > 2 * radius_of(photons, gev, n)


def test_pions_lose_energy_and_the_less_the_more_of_it_is_electromagnetic():
    simulator = HadronicShowers()
    means = [mean_and_error(features(simulator, gev, 1500)["response"]) for gev in (1, 10, 100)]
    assert all(mean + 5 * error < 1 for mean, error in means)
    assert means[1][0] - means[0][0] > 3 * math.hypot(means[0][1], means[1][1])
    assert means[2][0] - means[1][0] > 3 * math.hypot(means[1][1], means[2][1])
    resolution = features(simulator, 30, 1500)["response"]
    assert 0.06 < float(resolution.std() / resolution.mean()) < 0.14


def test_a_pion_may_pass_the_electromagnetic_calorimeter():
    """With the probability exp(-1.12) it does not interact before the tiles."""
    n = 3000
    found = features(HadronicShowers(), 20, n)
    passed = torch.stack([found[f"energy[{i}]"] for i in (0, 1, 2, 3)]).sum(0) == 0
    expected = math.exp(-sum(s.thickness * s.radiation_length / s.interaction_length
                             for s in PION_CALORIMETER.sections if not s.hadronic))  # fmt: skip
    assert float(passed.double().mean()) == pytest.approx(expected, abs=5 * math.sqrt(0.33 * 0.67 / n) + 0.02)


def test_the_range_of_energies_is_an_argument():
    simulator = ElectromagneticShowers(energies=(1e3, 1e5))
    theta = simulator.parameters.sample(2000, seed=1)
    assert float(theta.min()) >= 1e3
    assert float(theta.max()) <= 1e5
    assert float((theta < 1e4).double().mean()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2000))


@pytest.mark.parametrize("kind", SIMULATORS.values())
@pytest.mark.parametrize(
    "options",
    [
        {"energies": (0.0, 1.0)},
        {"energies": (2.0, 1.0)},
        {"threshold": -1.0},
        {"threshold": math.nan},
        {"max_spots": 0},
    ],
    ids=str,
)
def test_wrong_arguments_are_named(kind, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        kind(**options)


def test_wrong_energies_are_named(simulator):
    with pytest.raises(ShapeError, match="theta: expected shape"):
        simulator(torch.ones(3, 2), seed=1)
    with pytest.raises(ShapeError, match=r"theta: expected shape \(n, 1\)"):
        simulator(torch.ones(1), seed=1)
    for bad in (0.0, -5.0, math.nan, math.inf):
        with pytest.raises(SupportError, match="row 1"):
            simulator(torch.tensor([[500.0], [bad]]), seed=1)


def test_wrong_calorimeters_are_refused():
    section = Section(1.0, 10.0, 100.0, 20.0)
    with pytest.raises(UsageError, match="expected 5, one a layer, got 1"):
        Calorimeter(DATASET_1_PHOTONS, (section,))
    with pytest.raises(UsageError, match="positive lengths"):
        Calorimeter(DATASET_1_PHOTONS, (section,) * 4 + (Section(0.0, 10.0, 100.0, 20.0),))
    with pytest.raises(UsageError, match="step"):
        Calorimeter(DATASET_1_PHOTONS, (section,) * 5, step=0.0)
