"""A surrogate draws what its simulator would, is a simulator itself, and comes back from its file."""

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp

N = 4000
SMALL = {
    "flow": {"transforms": 2, "hidden_features": 32, "config": {"epochs": 12}},
    "vae": {"latent": (2,), "hidden_features": 48, "config": {"epochs": 25}},
    "gan": {"hidden_features": 48, "config": {"epochs": 80}},
    "autoregressive": {"config": {"epochs": 12}},
    "kernel": {},
}


class Counter:
    """A detector: an energy with noise, read out above a threshold, a count, and a number that never changes."""

    name = "counter"
    x_shape = (2, 2)

    def __init__(self):
        self.parameters = sp.Parameters([sp.Parameter("energy", td.Uniform(1.0, 4.0), "GeV")])

    def __call__(self, theta, *, seed):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(theta), 2, generator=generator)
        energy = theta[:, 0] + 0.5 * noise[:, 0]
        signal = torch.where(energy > 2, energy, 0.0)
        hits = torch.poisson(3 * theta[:, 0], generator=generator)
        other = -energy + 0.2 * noise[:, 1]
        return torch.stack([signal, hits, other, torch.full_like(other, 7.0)], -1).reshape(-1, 2, 2)


@pytest.fixture(scope="module")
def store():
    return sp.simulate(Counter(), N, seed=1, workers=1, progress=False)


@pytest.fixture(scope="module", params=list(SMALL))
def surrogate(request, store):
    return sp.Surrogate(request.param, **SMALL[request.param]).fit(store, seed=2, progress=False)


def test_it_draws_what_the_simulator_draws(surrogate):
    theta = torch.full((N, 1), 2.5)
    real, fake = Counter()(theta, seed=3), surrogate.sample(theta, seed=4)
    assert fake.shape == (N, 2, 2)
    assert fake.dtype == torch.float32
    # What is a point stays one: below the threshold exactly zero, hits are whole, and what never changes does not.
    assert bool((fake[:, 1, 1] == 7).all())
    assert torch.equal(fake[:, 0, 1], fake[:, 0, 1].round())
    signal = fake[:, 0, 0]
    assert bool(((signal == 0) | (signal >= 1.9)).all())
    assert abs(float((signal == 0).float().mean() - (real[:, 0, 0] == 0).float().mean())) < 0.06
    for row, column in ((0, 0), (0, 1), (1, 0)):
        a, b = real[:, row, column], fake[:, row, column]
        assert abs(float(a.mean() - b.mean())) < 0.2 * float(a.std())
        assert abs(float(b.std() / a.std()) - 1) < 0.25


def test_same_seed_same_bytes_and_another_seed_other_draws(surrogate):
    theta = torch.full((50, 1), 2.0)
    assert torch.equal(surrogate.sample(theta, seed=5), surrogate.sample(theta, seed=5))
    assert not torch.equal(surrogate.sample(theta, seed=5), surrogate.sample(theta, seed=6))


def test_its_file_gives_it_back(surrogate, tmp_path):
    sp.save(surrogate, tmp_path / "s.st")
    again = sp.load(tmp_path / "s.st", device="cpu")
    assert isinstance(again, sp.Surrogate)
    assert again.parameters == surrogate.parameters
    theta = surrogate.parameters.sample(20, seed=1)
    assert torch.equal(again.sample(theta, seed=7), surrogate.sample(theta, seed=7))
    assert again.provenance == surrogate.provenance


def test_it_is_a_simulator(surrogate, tmp_path):
    many = sp.simulate(surrogate, 500, out=tmp_path / "many.h5", seed=8, workers=1, progress=False)
    assert many.counts()["ok"] == 500
    assert many.parameters == surrogate.parameters


def test_arrays_are_enough_and_their_box_is_the_prior(store):
    theta, x = store.training_set()
    surrogate = sp.Surrogate("mixture", config={"epochs": 1}).fit(theta, x, progress=False)
    assert surrogate.parameters.names == ("theta_0",)
    with pytest.raises(sp.SupportError, match="theta"):
        surrogate.sample(torch.tensor([[9.0]]))


def test_wrong_use_is_named(store):
    with pytest.raises(sp.UsageError, match=r"model: .*'nonsense'"):
        sp.Surrogate("nonsense")
    with pytest.raises(sp.UsageError, match="not trained"):
        sp.Surrogate().sample(torch.ones(1, 1))
    with pytest.raises(sp.UsageError, match="setting of the training"):
        sp.Surrogate("gan", config={"epoch": 2}).fit(store, progress=False)
    with pytest.raises(sp.UsageError, match="ensemble: only flows"):
        sp.Surrogate("vae", ensemble=2)
    theta, x = store.training_set()
    x[3, 0, 0] = torch.nan
    with pytest.raises(sp.NonFiniteError, match="1 of 4000 simulations"):
        sp.Surrogate().fit(theta, x, progress=False)
    with pytest.raises(sp.UsageError, match="same in all simulations"):
        sp.Surrogate().fit(theta, torch.zeros_like(x), progress=False)
