"""High-level features of showers against values worked out by hand and against a plain loop."""

import math

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, SupportError
from sbi_physics.core.voxels import DATASET_1_PHOTONS, VoxelGeometry, VoxelLayer
from sbi_physics.diagnostics.shower_features import high_level_features

SMALL = VoxelGeometry((VoxelLayer(3, (0, 10)), VoxelLayer(5, (0, 2, 4), 2)))


def test_two_deposits_by_hand():
    """Sectors of half a turn are centred at -pi/2 and pi/2: all energy lies on the phi axis, at -1 and 3 mm."""
    showers = torch.tensor([[1.0, 3.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    features = high_level_features(showers, torch.tensor([[10.0], [2.0]]), SMALL)
    assert features["response"].tolist() == [0.5, 0.0]
    assert features["energy[3]"].tolist() == [1, 0]
    assert features["energy[5]"].tolist() == [4, 0]
    assert features["sparsity[5]"].tolist() == [0.5, 1.0]
    assert features["phi[5]"].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert features["phi_width[5]"].tolist() == pytest.approx([math.sqrt(3), 0.0])
    assert features["eta[5]"].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert features["radius[5]"].tolist() == pytest.approx([1.5, 0.0])
    assert features["radius_width[5]"].tolist() == pytest.approx([math.sqrt(0.75), 0.0])
    assert not [name for name in features if name.startswith(("eta", "phi")) and name.endswith("[3]")]


def test_a_plain_loop_agrees():
    generator = torch.Generator().manual_seed(1)
    showers = torch.rand(5, 368, generator=generator) * (torch.rand(5, 368, generator=generator) < 0.3)
    features = high_level_features(showers, torch.full((5,), 300.0), DATASET_1_PHOTONS, threshold=0.5)
    layer, place = 2, slice(168, 358)
    for row, shower in enumerate(showers.double()):
        energy = shower[place]
        eta = DATASET_1_PHOTONS.eta[place]
        centre = sum(e * p for e, p in zip(energy, eta, strict=True)) / energy.sum()
        variance = sum(e * (p - centre) ** 2 for e, p in zip(energy, eta, strict=True)) / energy.sum()
        assert float(features[f"eta[{layer}]"][row]) == pytest.approx(float(centre))
        assert float(features[f"eta_width[{layer}]"][row]) == pytest.approx(float(variance.sqrt()))
        assert float(features[f"sparsity[{layer}]"][row]) == pytest.approx(float((energy <= 0.5).double().mean()))


def test_turning_a_shower_turns_its_centre():
    showers = torch.zeros(1, 368)
    showers[0, 168 + 19 * 7 + 4], showers[0, 168 + 19 * 2] = 5.0, 1.0
    turned = showers.clone()
    turned[:, 168:358] = showers[:, 168:358].reshape(1, 10, 19).roll(5, 1).reshape(1, -1)
    before, after = (high_level_features(s, [10.0], DATASET_1_PHOTONS) for s in (showers, turned))
    for axis in ("eta", "phi"):
        torch.testing.assert_close(after[f"{axis}[2]"], -before[f"{axis}[2]"])
        torch.testing.assert_close(after[f"{axis}_width[2]"], before[f"{axis}_width[2]"])
    torch.testing.assert_close(after["radius[2]"], before["radius[2]"])


def test_one_hit_voxel_has_no_width():
    showers = torch.zeros(1, 368)
    showers[0, 30] = 123.4
    features = high_level_features(showers, [200.0], DATASET_1_PHOTONS)
    assert float(features["eta_width[1]"]) == pytest.approx(0, abs=1e-5)


def test_wrong_input_is_named():
    showers, energies = torch.ones(2, 5), torch.ones(2)
    with pytest.raises(ShapeError, match=r"showers: expected shape \(n, 5\)"):
        high_level_features(showers[:, :4], energies, SMALL)
    with pytest.raises(ShapeError, match="equally many rows"):
        high_level_features(showers, energies[:1], SMALL)
    with pytest.raises(ShapeError, match=r"\(N,\) or \(N, 1\)"):
        high_level_features(showers, torch.ones(2, 2), SMALL)
    with pytest.raises(SupportError, match="row 1"):
        high_level_features(showers, torch.tensor([1.0, 0.0]), SMALL)
    with pytest.raises(NonFiniteError, match="showers"):
        high_level_features(showers.clone().fill_(torch.nan), energies, SMALL)
