"""A fit that streams its simulations from the disk learns the same as one in memory, bit for bit."""

import pytest
import torch
from torch.distributions import Uniform

import sbi_physics as sp
from sbi_physics.store import row_parts
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.pairs import training_pairs

PARAMETERS = sp.Parameters([sp.Parameter("a", Uniform(-1.0, 1.0)), sp.Parameter("b", Uniform(-1.0, 1.0))])
N = 1500


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    theta = 2 * torch.rand(N, 2, generator=generator) - 1
    x = theta.repeat(1, 3) * torch.arange(1.0, 7.0) + torch.randn(N, 6, generator=generator)
    x[:, 5] = 3.0
    x[11, 2] = torch.nan
    folder = tmp_path_factory.mktemp("streaming")
    sp.Simulations.from_arrays(theta, x, PARAMETERS).save(folder / "some.h5")
    good = torch.arange(N) != 11
    sp.Simulations.from_arrays(theta[good], x[good], PARAMETERS).save(folder / "x.h5")
    sp.Simulations.from_arrays(theta[good][:700], x[good][:700], PARAMETERS).save(folder / "first.h5")
    sp.Simulations.from_arrays(theta[good][700:], x[good][700:], PARAMETERS).save(folder / "second.h5")
    return folder / "x.h5"


def npe(**settings):
    return sp.NPE(PARAMETERS, augment=False, transforms=2, hidden_features=16, config=TrainConfig(epochs=2, **settings))


ESTIMATORS = {
    "npe": npe,
    "mixture": lambda **s: sp.NPE(PARAMETERS, "mixture", augment=False, config=TrainConfig(epochs=2, **s)),
    "ensemble": lambda **s: sp.NPE(
        PARAMETERS, augment=False, ensemble=2, transforms=1, hidden_features=8, config=TrainConfig(epochs=3, **s)
    ),
    "nre": lambda **s: sp.NRE(PARAMETERS, config=TrainConfig(epochs=2, **s)),
    "nle": lambda **s: sp.NLE(PARAMETERS, transforms=2, hidden_features=16, config=TrainConfig(epochs=2, **s)),
}


def same(first, second):
    states = first.model.state_dict(), second.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    losses = [one.provenance["training"] for one in (first, second)]
    assert losses[0]["train_loss"] == losses[1]["train_loss"]
    assert losses[0]["validation_loss"] == losses[1]["validation_loss"]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_same_as_in_memory(name, path):
    same(*(ESTIMATORS[name](memory=memory).fit(path, seed=3, progress=False) for memory in (10**9, 1)))


def test_scalings_of_many_parts_are_the_same(path, monkeypatch):
    monkeypatch.setattr(row_parts, "_NUMBERS_AT_ONCE", 600)
    for name in ("npe", "nre", "nle"):
        same(*(ESTIMATORS[name](memory=memory).fit(path, seed=3, progress=False) for memory in (10**9, 1)))


def test_counts_and_trends_of_many_parts(path, tmp_path, monkeypatch):
    """Noise is that of the part; the trend is that of all at once, but for rounding."""
    simulations = sp.load(path)
    x = simulations.x.clone()
    x[:, :2] = (5 * x[:, :2]).round()
    counted = tmp_path / "counts.h5"
    sp.Simulations.from_arrays(simulations.theta, x, PARAMETERS).save(counted)
    whole = ESTIMATORS["nle"](memory=10**9).fit(counted, seed=3, progress=False)
    monkeypatch.setattr(row_parts, "_NUMBERS_AT_ONCE", 600)
    parts = [ESTIMATORS["nle"](memory=memory).fit(counted, seed=3, progress=False) for memory in (10**9, 1)]
    same(*parts)
    name = "likelihood.trend.weight"
    assert torch.allclose(parts[0].model.state_dict()[name], whole.model.state_dict()[name], atol=0.1)
    assert bool((whole.model.state_dict()[name] != 0).any())


def test_named_observations(path, tmp_path):
    simulations = sp.load(path)
    named = {"flat": simulations.x[:, :2], "series": simulations.x[:, 2:].unsqueeze(-1)}
    sp.Simulations.from_arrays(simulations.theta, named, PARAMETERS).save(tmp_path / "named.h5")
    embedding = {"flat": "residual", "series": "gru"}
    fits = [
        sp.NPE(PARAMETERS, embedding=embedding, transforms=1, config=TrainConfig(epochs=1, memory=memory)).fit(
            tmp_path / "named.h5", progress=False
        )
        for memory in (10**9, 1)
    ]
    same(*fits)
    with pytest.raises(sp.UsageError, match="expected one array, got several named ones"):
        npe(memory=1).fit(tmp_path / "named.h5", progress=False)


def test_with_weights_and_from_several_files(path):
    weights = torch.rand(N - 1, generator=torch.Generator().manual_seed(5))
    several = sp.load([path.with_name("first.h5"), path.with_name("second.h5")])
    first = npe(memory=10**9).fit(path, weights=weights, progress=False)
    same(first, npe(memory=1).fit(several, weights=weights, progress=False))


def test_failures(path):
    some = path.with_name("some.h5")
    with pytest.raises(sp.SimulationError, match=r"some\.h5: 1 of .* \(first in row 11\)"):
        npe(memory=1).fit(some, progress=False)
    pairs = [training_pairs(PARAMETERS, some, failed="correct", memory=memory) for memory in (10**9, 1)]
    assert isinstance(pairs[1].x, DiskRows)
    assert torch.equal(pairs[0].x, pairs[1].x[:])
    assert torch.equal(pairs[0].theta, pairs[1].theta)
    assert torch.equal(pairs[0].success, pairs[1].success)
    same(*(npe(memory=memory).fit(some, failed="correct", progress=False) for memory in (10**9, 1)))


def test_a_checkpoint_of_one_is_that_of_the_other(path, tmp_path):
    whole = npe(memory=10**9).fit(path, progress=False)
    checkpoint = tmp_path / "fit.ckpt"
    stopped = TrainConfig(epochs=2, memory=1, max_seconds=1e-9, checkpoint_seconds=0)
    estimator = sp.NPE(PARAMETERS, augment=False, transforms=2, hidden_features=16, config=stopped)
    estimator.fit(path, progress=False, checkpoint=str(checkpoint))
    same(whole, npe(memory=1, checkpoint_seconds=0).fit(path, progress=False, checkpoint=str(checkpoint)))


def test_draws_of_a_likelihood_need_memory(path):
    with pytest.raises(sp.UsageError, match="augment: expected simulations in memory"):
        sp.NPE(PARAMETERS, augment=True, config=TrainConfig(epochs=1, memory=1)).fit(path, progress=False)
