"""Encoders at the front door: by name, for named observations, with missing entries, in files."""

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.models.embedding.recurrent import RecurrentEncoder
from sbi_physics.train.config import TrainConfig
from simulators.oscillator import DampedOscillator

SMALL = {"config": TrainConfig(epochs=1)}
FLOW = {**SMALL, "transforms": 1, "hidden_features": 8, "blocks": 1, "augment": False}


@pytest.fixture(scope="module")
def oscillator():
    return DampedOscillator(epochs=12)


@pytest.fixture(scope="module")
def series(oscillator):
    """Of which the first misses a sample."""
    theta = oscillator.parameters.sample(200, seed=1)
    x = oscillator(theta, seed=2)
    missing = torch.isnan(x).any(-1).any(-1)
    order = missing.int().argsort(descending=True)
    return theta[order], x[order]


def named(n=200):
    generator = torch.Generator().manual_seed(3)
    theta = torch.rand(n, 2, generator=generator)
    spectrum = theta[:, :1] + 0.1 * torch.randn(n, 16, generator=generator)
    return theta, {"spectrum": spectrum, "counts": torch.poisson(10 * theta, generator=generator)}


@pytest.fixture(scope="module")
def parameters():
    return sp.Parameters.from_prior(td.Independent(td.Uniform(torch.zeros(2), torch.ones(2)), 1))


@pytest.mark.parametrize("embedding", ["gru", "lstm", "deep-set", "transformer"])
@pytest.mark.parametrize(
    "make", [lambda p, e: sp.NPE(p, embedding=e, **FLOW), lambda p, e: sp.NRE(p, embedding=e, **SMALL)]
)
def test_series_with_missing_samples_go_through(make, embedding, oscillator, series, tmp_path):
    posterior = make(oscillator.parameters, embedding).fit(*series, progress=False)
    x_obs = series[1][0]
    assert bool(torch.isnan(x_obs).any())
    samples = posterior.sample(20, x_obs, seed=1)
    assert bool(oscillator.parameters.within(samples.values).all())
    posterior.save(tmp_path / "p.st")
    again = sp.load(tmp_path / "p.st")
    assert torch.equal(again.log_prob(samples.values, x_obs), posterior.log_prob(samples.values, x_obs))


def test_a_run_of_a_simulator_that_misses_samples_is_good(oscillator):
    store = sp.simulate(oscillator, 100, seed=1, workers=1, progress=False)
    fit = sp.NPE(oscillator.parameters, embedding="gru", **FLOW).fit(store, progress=False)
    assert fit.provenance["simulations"] == 100
    with pytest.raises(sp.SimulationError, match="failed or are not finite"):
        sp.NPE(oscillator.parameters, **FLOW).fit(store, progress=False)


def test_missing_is_not_infinite_and_not_everything(oscillator, series):
    posterior = sp.NPE(oscillator.parameters, embedding="gru", **FLOW).fit(*series, progress=False)
    bad = series[1][0].clone()
    bad[0, 1] = torch.inf
    for x_obs in (bad, torch.full_like(bad, torch.nan)):
        with pytest.raises(sp.NonFiniteError, match="x_obs: expected finite numbers"):
            posterior.sample(5, x_obs)
    plain = sp.NPE(oscillator.parameters, **FLOW).fit(series[0], series[1].nan_to_num(), progress=False)
    with pytest.raises(sp.NonFiniteError, match="with an encoder that takes NaN for missing"):
        plain.sample(5, series[1][0])


@pytest.mark.parametrize(
    "make", [lambda p, e: sp.NPE(p, embedding=e, **FLOW), lambda p, e: sp.NRE(p, embedding=e, **SMALL)]
)
def test_named_observations_each_have_their_encoder(make, parameters, tmp_path):
    theta, x = named()
    posterior = make(parameters, {"spectrum": "conv1d", "counts": "residual"}).fit(theta, x, progress=False)
    one = {name: values[0] for name, values in x.items()}
    three = {name: values[:3] for name, values in x.items()}
    assert posterior.sample(10, one, seed=1).values.shape == (10, 2)
    assert posterior.sample(10, three, seed=1).values.shape == (3, 10, 2)
    posterior.save(tmp_path / "p.st")
    again = sp.load(tmp_path / "p.st")
    assert torch.equal(again.log_prob(theta[:3], three), posterior.log_prob(theta[:3], three))
    with pytest.raises(sp.UsageError, match="counts missing"):
        posterior.sample(5, {"spectrum": x["spectrum"][0]})


def test_named_observations_need_named_encoders_and_the_other_way_round(parameters):
    theta, x = named()
    with pytest.raises(sp.UsageError, match=r"got several named ones .spectrum, counts.*embedding=.name"):
        sp.NPE(parameters, **FLOW).fit(theta, x, progress=False)
    with pytest.raises(sp.UsageError, match="expected named observations spectrum"):
        sp.NPE(parameters, embedding={"spectrum": "mlp"}, **FLOW).fit(theta, x["counts"], progress=False)
    with pytest.raises(sp.UsageError, match=r"embedding: expected one of counts, spectrum; got .light."):
        sp.NPE(parameters, embedding={"light": "mlp", "counts": "mlp"}, **FLOW).fit(theta, x, progress=False)
    with pytest.raises(sp.UsageError, match="expected an encoder for each observation, got none for spectrum"):
        sp.NPE(parameters, embedding={"counts": "mlp"}, **FLOW).fit(theta, x, progress=False)
    with pytest.raises(sp.UsageError, match=r"expected an encoder for each of spectrum, counts.*got .conv1d."):
        sp.NPE(parameters, embedding="conv1d", **FLOW).fit(theta, x, progress=False)
    with pytest.raises(sp.UsageError, match="embedding: expected one of residual"):
        sp.NPE(parameters, embedding="perceptron", **FLOW)


def test_an_encoder_of_the_users_own_making_is_copied_and_known_again(oscillator, series, tmp_path):
    encoder = RecurrentEncoder((12, 2), "lstm", peephole=True, layers=2, hidden=8, features=4, times=0)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    posterior = sp.NPE(oscillator.parameters, embedding=encoder, **FLOW).fit(*series, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    posterior.save(tmp_path / "p.st")
    again = sp.load(tmp_path / "p.st")
    assert torch.equal(again.sample(5, series[1][1]).values, posterior.sample(5, series[1][1]).values)
