"""Voxels: how many there are, where they stand, and what is refused."""

import math

import pytest
import torch

from sbi_physics.core.errors import UsageError
from sbi_physics.core.voxels import DATASET_1_PHOTONS, DATASET_1_PIONS, VoxelGeometry, VoxelLayer


def test_the_published_geometries():
    assert [layer.size for layer in DATASET_1_PHOTONS.layers] == [8, 160, 190, 5, 5]
    assert [layer.identifier for layer in DATASET_1_PHOTONS.layers] == [0, 1, 2, 3, 12]
    assert DATASET_1_PHOTONS.size == 368
    assert [layer.size for layer in DATASET_1_PIONS.layers] == [8, 100, 100, 5, 150, 160, 10]
    assert DATASET_1_PIONS.size == 533


def test_slices_follow_each_other():
    slices = DATASET_1_PHOTONS.layer_slices
    assert [(s.start, s.stop) for s in slices] == [(0, 8), (8, 168), (168, 358), (358, 363), (363, 368)]


def test_sectors_come_first_and_rings_within_them():
    geometry = VoxelGeometry((VoxelLayer(7, (0, 10, 30), 4), VoxelLayer(9, (5, 15))))
    assert geometry.radii.tolist() == [5, 20] * 4 + [10]
    expected = [-0.75 * math.pi] * 2 + [-0.25 * math.pi] * 2 + [0.25 * math.pi] * 2 + [0.75 * math.pi] * 2
    assert geometry.angles[:8].tolist() == pytest.approx(expected)
    assert geometry.eta[0].item() == pytest.approx(-5 / math.sqrt(2))
    assert geometry.phi[5].item() == pytest.approx(20 / math.sqrt(2))
    # The middles of the sectors lie evenly around the axis.
    torch.testing.assert_close(geometry.eta[:8].sum() + 1, torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("edges", "sectors"), [((0,), 1), ((0, 0), 1), ((-1, 2), 1), ((0, 3, 2), 1), ((0, 1, math.inf), 1), ((0, 1), 0)]
)
def test_wrong_layers_are_refused(edges, sectors):
    with pytest.raises(UsageError):
        VoxelLayer(0, edges, sectors)


def test_layers_have_distinct_numbers():
    layer = VoxelLayer(0, (0, 1))
    with pytest.raises(UsageError, match="distinct"):
        VoxelGeometry((layer, layer))
    with pytest.raises(UsageError, match="at least one"):
        VoxelGeometry(())
