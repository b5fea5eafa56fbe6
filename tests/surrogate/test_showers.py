"""Showers are taken apart into layers and voxels, and put together again."""

import math

import pytest
import torch

import sbi_physics as sp
from sbi_physics.core.voxels import VoxelGeometry, VoxelLayer
from sbi_physics.surrogate.build import build_preprocessing
from sbi_physics.surrogate.showers import Showers

GEOMETRY = VoxelGeometry((VoxelLayer(0, (0, 5, 10)), VoxelLayer(1, (0, 2, 5, 10), 4), VoxelLayer(2, (0, 10, 20, 40))))
THRESHOLD = 0.5


def showers(n, seed=0):
    """Energies that are shared among voxels at random; one layer is often empty, and so are many voxels."""
    generator = torch.Generator().manual_seed(seed)
    energy = 10 * torch.exp(3 * torch.rand(n, 1, generator=generator))
    means = torch.cat([torch.full((2,), 0.05), torch.full((12,), 0.6 / 12), torch.full((3,), 0.02)])
    noise = torch.randn(n, GEOMETRY.size, generator=generator)
    x = energy * means * torch.exp(0.8 * noise)
    x[torch.rand(n, generator=generator) < 0.3, -3:] = 0.0
    return energy, torch.where(x < THRESHOLD, 0.0, x)


@pytest.fixture(scope="module")
def fitted():
    return Showers(GEOMETRY, threshold=THRESHOLD).fit(*showers(5000))


def layers(x):
    return torch.stack([x[:, part].sum(1) for part in GEOMETRY.layer_slices], 1)


def test_what_is_taken_apart_is_put_together(fitted):
    energy, x = showers(5000)
    again = fitted.decode(energy, fitted.encode(energy, x, seed=2))
    torch.testing.assert_close(layers(again), layers(x), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(again, x, rtol=1e-3, atol=1e-3)
    assert torch.equal(again == 0, x == 0)


def test_drawn_layers_decide_the_energies(fitted):
    """Voxels of one shower, layers of another: the energies are those of the layers."""
    energy, x = showers(5000)
    wanted, voxels = fitted.encode(energy, x, seed=5)[0], fitted.encode(energy, x.roll(1, 0), seed=5)[1]
    made = fitted.decode(energy, [wanted, voxels])
    torch.testing.assert_close(layers(made), layers(x), rtol=0.02, atol=THRESHOLD)
    assert bool(((made == 0) | (made >= THRESHOLD)).all())
    empty = layers(x) == 0
    assert bool((layers(made)[empty] == 0).all())


def test_events_have_no_gaps_and_no_points(fitted):
    events = fitted.encode(*showers(5000, seed=6), seed=7)
    assert [e.shape[1] for e in events] == [event for event, _ in fitted.widths]
    for stage in events:
        assert bool(torch.isfinite(stage).all())
        assert all(len(column.unique()) > 0.99 * len(column) for column in stage.T)
    context = fitted.context(torch.tensor([[math.e]]), [events[0][:1]])
    assert context.shape == (1, fitted.widths[1][1])
    assert float(context[0, 0]) == pytest.approx(1.0)


def test_it_comes_back_from_its_description(fitted):
    again = build_preprocessing(fitted.describe(), fitted.x_shape, 1)
    again.load_state_dict(fitted.state_dict())
    energy, x = showers(50, seed=8)
    for one, other in zip(again.encode(energy, x, seed=9), fitted.encode(energy, x, seed=9), strict=True):
        assert torch.equal(one, other)
    assert again.describe() == fitted.describe()


def test_what_no_shower_can_be_is_refused():
    energy, x = showers(50)
    made = Showers(GEOMETRY, threshold=THRESHOLD)
    with pytest.raises(sp.ShapeError, match=r"expected 17 voxels, got shape \(50, 3\)"):
        made.fit(energy, x[:, :3])
    with pytest.raises(sp.ShapeError, match="the incident energy alone"):
        made.fit(torch.cat([energy, energy], 1), x)
    x[4, 5] = -2.0
    with pytest.raises(sp.SupportError, match="at least zero, got -2 in row 4"):
        made.fit(energy, x)
    with pytest.raises(sp.UsageError, match="threshold: expected a positive energy, got 0"):
        Showers(GEOMETRY, threshold=0)
