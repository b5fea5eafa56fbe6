"""Events that look the same from several sides are learned, and drawn, as such."""

import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.core.voxels import DATASET_1_PHOTONS, VoxelGeometry, VoxelLayer
from sbi_physics.models.columns import Columns
from sbi_physics.surrogate.build import build_preprocessing
from sbi_physics.surrogate.preprocessing import Plain
from sbi_physics.surrogate.showers import Showers
from sbi_physics.surrogate.symmetry import Symmetry, fit_columns, shower_symmetry

GEOMETRY = VoxelGeometry((VoxelLayer(0, (0, 5, 10)), VoxelLayer(1, (0, 2, 5), 6), VoxelLayer(2, (0, 2, 5), 3)))
PRIOR = sp.Parameters([sp.Parameter("energy", td.Uniform(10.0, 20.0), "MeV")])
RING = 8
TURN = [*range(1, RING), 0]
MIRROR = [*reversed(range(RING))]
SMALL = {
    "flow": {"transforms": 2, "hidden_features": 16, "config": {"epochs": 4}},
    "vae": {"latent": (2,), "hidden_features": 16, "config": {"epochs": 4}},
    "gan": {"hidden_features": 16, "config": {"epochs": 4}},
    "energy": {"config": {"epochs": 1}},
    "kernel": {},
}


def ring(n, seed, pulses=1):
    """Eight detectors around a source: pulses at random angles and of random heights, of a width that theta gives."""
    generator = torch.Generator().manual_seed(seed)
    theta = PRIOR.sample(n, seed=seed)
    angle = 2 * math.pi * torch.arange(RING) / RING
    x = 0.1 * torch.randn(n, RING, generator=generator)
    for _ in range(pulses):
        at = 2 * math.pi * torch.rand(n, 1, generator=generator)
        height = -torch.log(torch.rand(n, 1, generator=generator))
        x = x + height * torch.exp(theta / 5 * (torch.cos(angle - at) - 1))
    return theta, x


def uneven(n, seed):
    """Showers of which the sectors are as unequal as can be; the first is always empty."""
    generator = torch.Generator().manual_seed(seed)
    energy = PRIOR.sample(n, seed=seed)
    weight = torch.linspace(0.2, 2.0, GEOMETRY.size)
    x = energy / GEOMETRY.size * weight * torch.exp(torch.randn(n, GEOMETRY.size, generator=generator))
    x = torch.where(x < 0.3, 0.0, x)
    x[:, 2:4] = 0.0
    return energy, x


def fit(model, pairs, permutations=(), **more):
    preprocessing = Plain((RING,), 1, permutations=permutations)
    return sp.Surrogate(model, prior=PRIOR, preprocessing=preprocessing, **more).fit(*pairs, progress=False)


def test_sectors_turn_together():
    symmetry = shower_symmetry(GEOMETRY)
    assert len(symmetry) == 6
    numbers = torch.arange(GEOMETRY.size)
    angle, radius = GEOMETRY.angles, GEOMETRY.radii
    layer = torch.cat([torch.full((one.size,), i) for i, one in enumerate(GEOMETRY.layers)])
    cut = layer > 0
    for element in symmetry.elements:
        assert torch.equal(element.sort().values, numbers)
        assert torch.equal(layer[element], layer)
        assert torch.equal(radius[element], radius)
        # The same rotation, or reflection, of all layers.
        found = {
            sign: torch.remainder(angle[element] - sign * angle + 1e-9, 2 * math.pi)[cut].round(decimals=6).unique()
            for sign in (1, -1)
        }
        assert 1 in map(len, found.values())
    photons = shower_symmetry(DATASET_1_PHOTONS)
    assert len(photons) == 20
    assert len(photons.orbit_of.unique()) == 8 + 16 + 19 + 5 + 5


def test_a_group_is_closed_and_has_orbits():
    group = Symmetry([TURN, MIRROR])
    assert len(group) == 2 * RING
    products = {tuple(a[b].tolist()) for a in group.elements for b in group.elements}
    assert products == {tuple(element.tolist()) for element in group.elements}
    assert group.orbit_of.unique().tolist() == [0]
    pairs = Symmetry([[1, 0, 2, 4, 3]])
    assert pairs.orbit_of.tolist() == [0, 0, 1, 2, 2]
    kept = pairs.restricted(torch.tensor([False, False, True, True, True]))
    assert kept.elements.tolist() == [[0, 1, 2], [0, 2, 1]]


def test_columns_of_an_orbit_share_what_is_learned():
    x = uneven(500, 1)[1]
    symmetry = shower_symmetry(GEOMETRY)
    columns, alone = Columns(GEOMETRY.size), Columns(GEOMETRY.size).fit(x)
    fit_columns(columns, x, symmetry)
    for buffer in columns.buffers():
        assert bool((buffer[symmetry.elements] == buffer).all())
    assert bool(columns.varies[2:].all())
    assert not bool(alone.varies[2:4].any())
    # A column that stays where it is learns what it would learn alone.
    for shared, own in zip(columns.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(shared[:2], own[:2])


@pytest.mark.parametrize("model", list(SMALL))
def test_draws_are_exactly_symmetric(model):
    """A surrogate of pulses that are all at one place draws them at all places alike."""
    theta, x = ring(400, seed=1)
    x = x.gather(1, (x.argmax(1, keepdim=True) + torch.arange(RING)) % RING)
    assert bool((x.argmax(1) == 0).all())
    surrogate = fit(model, (theta, x), [TURN], **SMALL[model])
    n = 1600
    made = surrogate.sample(torch.full((n, 1), 15.0), seed=3)
    # Each event by itself: of its turns, each is as likely as the others.
    counts = torch.bincount(made.argmax(1), minlength=RING)
    assert float(((counts - n / RING) ** 2 / (n / RING)).sum()) < RING - 1 + 5 * math.sqrt(2 * (RING - 1))
    assert torch.equal(made, surrogate.sample(torch.full((n, 1), 15.0), seed=3))


def test_without_symmetry_they_are_not():
    theta, x = ring(400, seed=1)
    x = x.gather(1, (x.argmax(1, keepdim=True) + torch.arange(RING)) % RING)
    made = fit("flow", (theta, x), **SMALL["flow"]).sample(torch.full((1000, 1), 15.0), seed=3)
    assert float((made.argmax(1) == 0).float().mean()) > 0.5


def test_few_events_go_further(tmp_path):
    """Held-out likelihood from a hundred pulses; the truth is symmetric."""
    config = {"epochs": 300, "patience": 300, "validation_fraction": 0.3}
    options = {"transforms": 2, "hidden_features": 32, "config": config}
    theta, x = ring(4000, seed=2, pulses=3)
    pairs = ring(100, seed=1, pulses=3)
    plain, symmetric = (fit("flow", pairs, permutations, **options) for permutations in ((), [TURN, MIRROR]))

    def score(surrogate):
        chain = surrogate.chain
        return chain.log_prob(theta, chain.preprocessing.encode(theta, x, seed=0)).double()

    gain = score(symmetric) - score(plain)
    assert float(gain.mean()) > 1.0
    assert float(gain.mean()) > 10 * float(gain.std() / math.sqrt(len(gain)))
    # The density has the symmetry, too.
    turned = symmetric.chain.log_prob(theta[:50], [x[:50].roll(3, 1)])
    torch.testing.assert_close(turned, symmetric.chain.log_prob(theta[:50], [x[:50]]), rtol=1e-3, atol=1e-3)
    symmetric.save(tmp_path / "s.st")
    again = sp.load(tmp_path / "s.st", device="cpu")
    assert torch.equal(again.sample(theta[:9], seed=1), symmetric.sample(theta[:9], seed=1))


def test_showers_are_symmetric():
    energy, x = uneven(600, 2)
    preprocessing = Showers(GEOMETRY, threshold=0.3, symmetries=True)
    surrogate = sp.Surrogate("vae", prior=PRIOR, preprocessing=preprocessing, config={"epochs": 2})
    made = surrogate.fit(energy, x, progress=False).sample(torch.full((6000, 1), 15.0), seed=1)
    symmetry, (_, ring_of_six, ring_of_three) = shower_symmetry(GEOMETRY), GEOMETRY.layer_slices
    for part in (ring_of_six, ring_of_three):
        # The turn by a third, which all layers share, and the mirror.
        for element in symmetry.elements[1:]:
            difference = (made - made[:, element])[:, part]
            assert bool((difference.mean(0).abs() < 5 * difference.std(0) / math.sqrt(len(made)) + 1e-6).all())
    # It is not that of the finest sectors alone.
    assert not bool((surrogate.chain.preprocessing.symmetry.elements[:, 2:14].roll(2, 1)[:, :2] == 2).all())
    other = build_preprocessing(preprocessing.describe(), preprocessing.x_shape, 1)
    assert torch.equal(other.symmetry.elements, symmetry.elements)
    assert Showers(GEOMETRY).symmetry is None


def test_wrong_use_is_named():
    with pytest.raises(sp.UsageError, match=r"permutations: expected each of 0 \.\.\. 2 once, got \[0, 0, 1\]"):
        Symmetry([[0, 0, 1]])
    with pytest.raises(sp.UsageError, match="permutations: expected at least one"):
        Symmetry([])
    with pytest.raises(sp.UsageError, match="a group of at most 4096 elements"):
        Symmetry([[*range(1, 12), 0], [1, 0, *range(2, 12)]])
    with pytest.raises(sp.UsageError, match="permutations: expected 8 numbers"):
        Plain((RING,), 1, permutations=[[1, 0]])
    rings = VoxelGeometry((VoxelLayer(0, (0, 5, 10)), VoxelLayer(1, (0, 2, 5))))
    with pytest.raises(sp.UsageError, match="symmetries: expected a geometry with a layer that is cut"):
        Showers(rings, symmetries=True)
