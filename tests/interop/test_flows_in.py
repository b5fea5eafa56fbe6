"""Flows of nflows and of zuko in the place of ours, and arrays of NumPy where scikit-learn would take them.

Tested elsewhere: flows built by ours handed in and read again (``posterior/test_files.py``).
"""

import numpy as np
import pytest
import torch
from nflows.distributions.normal import ConditionalDiagonalNormal, StandardNormal
from nflows.flows.autoregressive import MaskedAutoregressiveFlow
from nflows.flows.base import Flow
from nflows.flows.realnvp import SimpleRealNVP
from nflows.transforms import MaskedAffineAutoregressiveTransform

import sbi_physics as sp
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.models.flows.zuko_flow import as_flow
from sbi_physics.train.config import TrainConfig
from simulators.gaussian_linear import GaussianLinear

zuko = pytest.importorskip("zuko")

QUICK = {"config": TrainConfig(epochs=2), "device": "cpu"}
ZUKO = {
    "NSF": {"bins": 4},
    "MAF": {},
    "RealNVP": {},
    "NICE": {},
    "GF": {},
    "BPF": {"degree": 6},
    "SOSPF": {},
    "NAF": {"network": {"hidden_features": (8,)}},
    "UNAF": {"network": {"hidden_features": (8,)}},
    "CNF": {},
}
SLOW_TO_FIT = ("NAF", "UNAF", "CNF")


def zuko_flow(name="NSF", context=2, **more):
    hidden = {} if name == "GF" else {"hidden_features": (8,)}
    many = {} if name in ("CNF", "GF", "BPF") else {"transforms": 2}
    return getattr(zuko.flows, name)(2, context, **{**ZUKO[name], **many, **hidden, **more})


@pytest.fixture(scope="module")
def pairs():
    return sp.simulate(GaussianLinear(dims=2), 500, seed=1, workers=1, progress=False).training_set()


@pytest.mark.parametrize("name", ZUKO)
def test_a_flow_of_zuko_is_the_same_density(name):
    torch.manual_seed(1)
    flow = zuko_flow(name)
    x, c = torch.randn(40, 2), torch.randn(40, 2)
    density = FlowDensity(as_flow(flow), (2,), (2,)).eval()
    with torch.no_grad():
        torch.testing.assert_close(density.log_prob(x, c), flow(c).log_prob(x), rtol=1e-4, atol=1e-4)
        if name == "NAF":  # by zuko's own hands, untrained, its inverse does not reach all of the noise
            return
        drawn, log_prob = density.sample_and_log_prob(30, c[0], seed=3)
        torch.testing.assert_close(log_prob, flow(c[0]).log_prob(drawn), rtol=1e-3, atol=2e-3)


def test_a_flow_of_zuko_without_context():
    torch.manual_seed(2)
    flow = zuko_flow("NSF", context=0)
    density = FlowDensity(as_flow(flow), (2,)).eval()
    drawn, log_prob = density.sample_and_log_prob(20, seed=1)
    torch.testing.assert_close(log_prob, flow().log_prob(drawn), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ZUKO if name not in SLOW_TO_FIT])
def test_a_flow_of_zuko_is_trained_and_read_again(name, pairs, tmp_path):
    theta, x = pairs
    mine = zuko_flow(name)
    before = [p.clone() for p in mine.parameters()]
    posterior = sp.NPE(GaussianLinear(dims=2).parameters, mine, **QUICK).fit(theta, x, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, mine.parameters(), strict=True))
    history = posterior.provenance["training"]["train_loss"]
    assert history[-1] < history[0]
    posterior.save(tmp_path / "p.st")
    loaded = sp.load(tmp_path / "p.st", flow=zuko_flow(name), device="cpu")
    torch.testing.assert_close(loaded.log_prob(theta[:9], x[0]), posterior.log_prob(theta[:9], x[0]))
    assert torch.equal(loaded.sample(9, x[0], seed=1).values, posterior.sample(9, x[0], seed=1).values)


def test_a_flow_of_zuko_learns_the_posterior():
    """On a Gaussian problem, whose posterior is known."""
    simulator = GaussianLinear(dims=2)
    theta, x = sp.simulate(simulator, 2000, seed=2, workers=1, progress=False).training_set()
    config = TrainConfig(epochs=40)
    posterior = sp.NPE(simulator.parameters, zuko_flow("MAF"), config=config).fit(theta, x, progress=False)
    x_obs = x[0]
    samples = posterior.sample(2000, x_obs, seed=1)
    corrected = posterior.correct(simulator.log_likelihood, x_obs, 4000, seed=1)
    exact = corrected.quantile([0.16, 0.5, 0.84])
    width = exact[2] - exact[0]
    assert float(((samples.quantile(0.5) - exact[1]).abs() / width).max()) < 0.25
    assert corrected.diagnostics["pareto_k"] < 0.7


def test_a_circular_flow_of_zuko_is_refused():
    with pytest.raises(sp.UsageError, match=r"standard normal base.*'nsf-box'"):
        sp.NPE(GaussianLinear(dims=2).parameters, zuko.flows.NCSF(2, 2))


def conditional_base():
    transform = MaskedAffineAutoregressiveTransform(2, 8, context_features=2)
    return Flow(transform, ConditionalDiagonalNormal([2], context_encoder=torch.nn.Linear(2, 4)))


NFLOWS = {
    "autoregressive": lambda: Flow(MaskedAffineAutoregressiveTransform(2, 8, context_features=2), StandardNormal([2])),
    "conditional base": conditional_base,
    "embedding of its own": lambda: Flow(
        MaskedAffineAutoregressiveTransform(2, 8, context_features=3), StandardNormal([2]), torch.nn.Linear(2, 3)
    ),
}


@pytest.mark.parametrize("name", NFLOWS)
def test_a_flow_of_nflows_is_trained_and_read_again(name, pairs, tmp_path):
    theta, x = pairs
    posterior = sp.NPE(GaussianLinear(dims=2).parameters, NFLOWS[name](), **QUICK).fit(theta, x, progress=False)
    posterior.save(tmp_path / "p.st")
    loaded = sp.load(tmp_path / "p.st", flow=NFLOWS[name](), device="cpu")
    assert torch.equal(loaded.sample(9, x[0], seed=1).values, posterior.sample(9, x[0], seed=1).values)


@pytest.mark.parametrize("make", [MaskedAutoregressiveFlow, SimpleRealNVP])
def test_ready_made_flows_of_nflows_are_densities(make):
    torch.manual_seed(0)
    flow = make(features=2, hidden_features=8, num_layers=2, num_blocks_per_layer=1).eval()
    density = FlowDensity(flow, (2,)).eval()
    x = torch.randn(20, 2)
    with torch.no_grad():
        torch.testing.assert_close(density.log_prob(x), flow.log_prob(x))
    axis = torch.linspace(-40, 40, 1200)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = float(density.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2)
    assert mass == pytest.approx(1.0, abs=0.02)


def test_fit_takes_what_scikit_learn_gives():
    """Arrays of float64 out of a scaler, `fit` in the order of scikit-learn's targets, chained."""
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    simulator = GaussianLinear(dims=2)
    theta, x = (part.numpy() for part in sp.simulate(simulator, 400, seed=1, workers=1, progress=False).training_set())
    scaled = StandardScaler().fit_transform(x.astype(float))
    theta_train, theta_test, x_train, x_test = train_test_split(theta, scaled, test_size=0.25, random_state=0)
    options = {"transforms": 1, "hidden_features": 8, "blocks": 1, "augment": False, **QUICK}
    by_numpy = sp.NPE(simulator.parameters, **options).fit(theta_train, x_train, seed=1, progress=False)
    by_torch = sp.NPE(simulator.parameters, **options).fit(
        torch.tensor(theta_train), torch.tensor(x_train), seed=1, progress=False
    )
    assert by_numpy.sample(5, x_test[0], seed=1).to_numpy() == pytest.approx(
        by_torch.sample(5, torch.tensor(x_test[0]), seed=1).to_numpy()
    )
    assert np.isfinite(by_numpy.log_prob(theta_test, x_test).numpy()).all()
    surrogate = sp.Surrogate("kernel", device="cpu")
    assert surrogate.fit(theta_train, x_train, progress=False) is surrogate
    assert surrogate.sample(theta_train[:9], seed=1).shape == (9, 2)
