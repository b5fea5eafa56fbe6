"""A surrogate that is fitted to a file too large for memory learns the same as one in memory, bit for bit."""

import pytest
import torch
from torch.distributions import Uniform

import sbi_physics as sp
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.core.voxels import VoxelGeometry, VoxelLayer
from sbi_physics.store import row_parts
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.surrogate import surrogate as module
from sbi_physics.surrogate.preprocessing import Plain
from sbi_physics.surrogate.showers import Showers

N = 1200
PARAMETERS = sp.Parameters([sp.Parameter("a", Uniform(-1.0, 1.0)), sp.Parameter("b", Uniform(1.0, 2.0))])
ENERGY = sp.Parameters([sp.Parameter("energy", LogUniform(10.0, 100.0), "MeV")])
GEOMETRY = VoxelGeometry((VoxelLayer(0, (0, 5, 10)), VoxelLayer(1, (0, 2, 5, 10), 4)))
SMALL = {"hidden_features": 16}
MODELS = {
    "flow": {"transforms": 2, **SMALL},
    "diffusion": SMALL,
    "consistency": SMALL,
    "vae": SMALL,
    "gan": SMALL,
    "autoregressive": SMALL,
    "energy": SMALL,
    "mixture": SMALL,
    "kernel": {},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One column of each kind."""
    generator = torch.Generator().manual_seed(0)
    theta = PARAMETERS.sample(N, seed=0)
    noise = torch.randn(N, 4, generator=generator)
    real, positive = theta[:, 0] + noise[:, 0], torch.exp(2 * noise[:, 1] + theta[:, 1])
    zeros = torch.where(noise[:, 2] > 0.3, noise[:, 2] * theta[:, 1], 0.0)
    x = torch.stack([real, positive, zeros, (3 * theta[:, 1] + noise[:, 3]).round(), torch.full((N,), 2.0)], 1)
    path = tmp_path_factory.mktemp("streamed") / "x.h5"
    sp.Simulations.from_arrays(theta, x, PARAMETERS).save(path)
    return path


@pytest.fixture(scope="module")
def showers(tmp_path_factory):
    energy = ENERGY.sample(N, seed=0)
    spread = torch.randn(N, GEOMETRY.size, generator=torch.Generator().manual_seed(1))
    x = energy / GEOMETRY.size * torch.exp(0.8 * spread)
    path = tmp_path_factory.mktemp("streamed") / "showers.h5"
    sp.Simulations.from_arrays(energy, torch.where(x < 0.3 * x.mean(), 0.0, x), ENERGY).save(path)
    return path


def fitted(path, memory, model, **options):
    config = {"epochs": 1, "memory": memory}
    return sp.Surrogate(model, config=config, device="cpu", **options).fit(path, seed=3, progress=False)


def same(first, second):
    states = first.chain.state_dict(), second.chain.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.fixture
def streamed(monkeypatch):
    """What each fit was given: whether x stayed on the disk."""
    seen = []

    def watched(*arguments, **more):
        pairs = original(*arguments, **more)
        seen.append(isinstance(pairs.x, DiskRows))
        return pairs

    original = module.training_pairs
    monkeypatch.setattr(module, "training_pairs", watched)
    return seen


@pytest.mark.parametrize("model", MODELS)
def test_the_same_as_in_memory(model, path, streamed):
    same(*(fitted(path, memory, model, **MODELS[model]) for memory in (10**9, 1)))
    assert streamed == [False, True]


@pytest.mark.parametrize("parts", [1 << 22, 500])
@pytest.mark.parametrize(("model", "symmetries"), [("flow", True), ("vae", False), ("gan", False)])
def test_showers(model, symmetries, parts, showers, streamed, monkeypatch):
    monkeypatch.setattr(row_parts, "_NUMBERS_AT_ONCE", parts)

    def fit(memory):
        preprocessing = Showers(GEOMETRY, threshold=0.1, symmetries=symmetries)
        return fitted(showers, memory, model, preprocessing=preprocessing, **SMALL)

    same(fit(10**9), fit(1))
    assert streamed == [False, True]


def test_kinds_of_columns_do_not_depend_on_the_parts(path, monkeypatch):
    whole = fitted(path, 10**9, "mixture").chain.preprocessing.columns
    monkeypatch.setattr(row_parts, "_NUMBERS_AT_ONCE", 300)
    parts = fitted(path, 1, "mixture").chain.preprocessing.columns
    assert whole.kinds.tolist() == [1, 2, 3, 5, 0]
    for name, tensor in whole.named_buffers():
        assert torch.allclose(tensor, dict(parts.named_buffers())[name], rtol=1e-6), name


def test_a_preprocessing_that_does_not_stream_gets_tensors(path, streamed):
    class Own(Plain):
        STREAMS = False

    made = fitted(path, 1, "mixture", preprocessing=Own((5,), 2))
    assert streamed == [False]
    assert made.sample(PARAMETERS.sample(10, seed=1)).shape == (10, 5)


def test_memory_is_checked(path):
    with pytest.raises(sp.UsageError, match="memory: expected an integer of at least 1"):
        fitted(path, "much", "mixture")
