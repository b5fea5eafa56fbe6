import copy

import numpy as np
import pytest
import torch
import torch.distributions as td
from nflows.flows.base import Flow
from torch import nn

import sbi_physics as sp
from sbi_physics.models.flows.build import build_flow
from sbi_physics.train.config import TrainConfig

X_OBS = torch.tensor([0.3, -0.2])


@pytest.fixture
def npe(uniform, quick):
    return sp.NPE(uniform.parameters, **quick)


def test_the_posterior_of_a_linear_gaussian_is_found(good, gaussian):
    n = 20_000
    draws = good.sample(n, X_OBS, seed=5)
    mean, covariance = gaussian.posterior_mean_and_covariance(X_OBS)
    sigma = covariance.diagonal().sqrt()
    found = draws.values.double()
    # 4,000 simulations fix the posterior mean to some 0.02 to 0.05 sigma; the draws themselves to 0.007.
    assert ((found.mean(0) - mean).abs() / sigma < 0.15).all()
    assert ((found.std(0) / sigma - 1).abs() < 0.1).all()
    assert abs(float(torch.corrcoef(found.T)[0, 1])) < 0.1
    exact = td.MultivariateNormal(mean, covariance).log_prob(found)
    kl = float((good.log_prob(draws.values, X_OBS).double() - exact).mean())
    assert -0.01 < kl < 0.03


def test_draws_stay_inside_the_prior(crude, uniform):
    edge = torch.tensor([[3.0, -3.0], [1.0, 1.0], [0.0, -1.0]])
    draws = crude.sample(5000, edge, seed=0).values
    assert uniform.parameters.within(draws).all()
    assert torch.isfinite(crude.log_prob(draws.movedim(0, 1), edge)).all()
    assert crude.log_prob(torch.tensor([1.1, 0.0]), X_OBS) == -torch.inf


def test_the_density_is_normalised_on_the_prior(crude):
    edges = torch.linspace(-1, 1, 401)
    centres = (edges[1:] + edges[:-1]) / 2
    grid = torch.cartesian_prod(centres, centres)
    total = crude.log_prob(grid, X_OBS).double().exp().sum() * (2 / 400) ** 2
    assert total == pytest.approx(1, abs=0.02)


def test_same_seed_same_bytes(npe, crude, uniform_pairs, tmp_path):
    again = npe.fit(*uniform_pairs, progress=False)
    other = npe.fit(*uniform_pairs, seed=1, progress=False)
    for name, tensor in crude.density.state_dict().items():
        assert torch.equal(tensor, again.density.state_dict()[name]), name
    assert torch.equal(crude.sample(10, X_OBS, seed=4).values, again.sample(10, X_OBS, seed=4).values)
    assert not torch.equal(crude.sample(10, X_OBS, seed=4).values, crude.sample(10, X_OBS, seed=5).values)
    assert not torch.equal(crude.sample(10, X_OBS).values, other.sample(10, X_OBS).values)


@pytest.mark.parametrize("model", ["nsf", "maf", "maf-spline", "nsf-box"])
def test_every_model_fits_samples_and_evaluates(model, uniform, uniform_pairs, quick):
    posterior = sp.NPE(uniform.parameters, model, **quick).fit(*uniform_pairs, progress=False)
    samples = posterior.sample(50, X_OBS)
    assert samples.names == uniform.parameters.names
    assert torch.isfinite(posterior.log_prob(samples.values, X_OBS)).all()


OTHERS = {
    "mixture": {"components": 2, "hidden_features": 8, "blocks": 1},
    "flow-matching": {"hidden_features": 8, "blocks": 1, "steps": 4},
    "score": {"hidden_features": 8, "blocks": 1, "steps": 4},
    "made": {"components": 2, "hidden_features": 8, "blocks": 1},
    "recurrent": {"components": 2, "hidden_features": 8, "blocks": 1, "network": "lstm"},
}


@pytest.mark.parametrize("model", OTHERS)
def test_every_model_that_is_no_flow_fits_samples_evaluates_and_is_saved(model, uniform, uniform_pairs, tmp_path):
    options = {**OTHERS[model], "config": TrainConfig(epochs=2)}
    posterior, again = (
        sp.NPE(uniform.parameters, model, embedding, **options).fit(*uniform_pairs, seed=1, progress=False)
        for embedding in (None, Summary())
    )
    samples = posterior.sample(50, X_OBS, seed=2)
    assert uniform.parameters.within(samples.values).all()
    log_prob = posterior.log_prob(samples.values, X_OBS)
    assert torch.isfinite(log_prob).all()
    posterior.save(tmp_path / "p.st")
    loaded = sp.load(tmp_path / "p.st")
    assert loaded.architecture == posterior.architecture
    assert torch.equal(loaded.sample(50, X_OBS, seed=2).values, samples.values)
    assert torch.equal(loaded.log_prob(samples.values, X_OBS), log_prob)
    again.save(tmp_path / "p.st")
    loaded = sp.load(tmp_path / "p.st", embedding=Summary())
    assert torch.equal(loaded.sample(5, X_OBS).values, again.sample(5, X_OBS).values)


def test_a_model_may_bring_settings_of_the_training_along(uniform):
    ordinary, own = (sp.NPE(uniform.parameters, model).config for model in ("nsf", "score"))
    assert ordinary == TrainConfig()
    assert own != ordinary
    assert sp.NPE(uniform.parameters, "score", config=ordinary).config == ordinary


def test_numpy_arrays_and_lists_do_as_well(npe, crude, uniform_pairs):
    theta, x = uniform_pairs
    again = npe.fit(theta.numpy().astype(np.float64), x.numpy(), progress=False)
    assert torch.equal(again.sample(10, [0.3, -0.2]).values, crude.sample(10, X_OBS).values)


def test_one_number_per_simulation(quick):
    theta = torch.rand(200, 1)
    prior = td.Uniform(torch.zeros(1), torch.ones(1))
    posterior = sp.NPE(prior, **quick).fit(theta, theta[:, 0] + 0.1, progress=False)
    assert posterior.x_shape == (1,)
    assert posterior.sample(7, 0.5).values.shape == (7, 1)
    assert posterior.sample(7, [0.5]).values.shape == (7, 1)
    assert posterior.sample(7, [0.5, 0.6, 0.7]).values.shape == (3, 7, 1)


@pytest.mark.parametrize("negative", [False, True])
def test_weights_move_the_posterior(negative, gaussian, gaussian_pairs):
    """Negative weights take away what positive ones put in."""
    theta, x = gaussian_pairs
    weights = torch.exp(3 * theta[:, 0])
    if negative:
        theta, x, weights = torch.cat([theta, theta]), torch.cat([x, x]), torch.cat([1.3 * weights, -0.3 * weights])
    estimator = sp.NPE(gaussian.parameters, transforms=2, hidden_features=16, config=TrainConfig(epochs=15))
    posterior = estimator.fit(theta, x, weights=weights, progress=False)
    # At x = 0 the posterior is N(0, 0.05); a weight exp(3 theta) moves its mean to 3 * 0.05 and keeps its width.
    draws = posterior.sample(4000, torch.zeros(2)).values
    assert float(draws[:, 0].mean()) == pytest.approx(0.15, abs=0.05)
    assert float(draws[:, 1].mean()) == pytest.approx(0.0, abs=0.05)
    assert float(draws[:, 0].std()) == pytest.approx(0.05**0.5, rel=0.2)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(3), sp.ShapeError, r"weights: expected shape \(500,\), got \(3,\)"),
        (torch.full((500,), torch.nan), sp.NonFiniteError, "weights: expected finite"),
        (-torch.ones(500), sp.UsageError, "weights: expected a positive sum"),
    ],
)
def test_wrong_weights(weights, error, message, npe, uniform_pairs):
    with pytest.raises(error, match=message):
        npe.fit(*uniform_pairs, weights=weights, progress=False)


class Summary(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(2, width)

    def forward(self, x):
        return torch.tanh(self.layer(x))


def test_networks_of_the_user_are_copied_not_trained(uniform, uniform_pairs, quick):
    torch.manual_seed(0)
    flow, embedding = build_flow("maf", 2, 3, transforms=1, hidden_features=8), Summary()
    before = copy.deepcopy(flow.state_dict())
    estimator = sp.NPE(uniform.parameters, flow, embedding, config=quick["config"])
    first = estimator.fit(*uniform_pairs, seed=1, progress=False)
    draws = first.sample(20, X_OBS).values
    second = estimator.fit(*uniform_pairs, seed=1, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in flow.state_dict().items())
    assert isinstance(first.density.flow, Flow)
    assert torch.equal(first.sample(20, X_OBS).values, draws)
    assert torch.equal(second.sample(20, X_OBS).values, draws)


def pairs(uniform_pairs, **changes):
    theta, x = (tensor.clone() for tensor in uniform_pairs)
    return changes.get("theta", lambda t: t)(theta), changes.get("x", lambda t: t)(x)


def spoiled(value, row=3):
    def spoil(tensor):
        tensor[row, 1] = value
        return tensor

    return spoil


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"theta": spoiled(1.5)}, sp.SupportError, r"theta: expected theta_1 in \[-1, 1\], got 1.5 in row 3"),
        ({"theta": spoiled(torch.nan)}, sp.NonFiniteError, r"theta: expected finite.*index \(3, 1\)"),
        (
            {"x": spoiled(torch.inf)},
            sp.NonFiniteError,
            "x: 1 of 500 .* not finite .first in row 3.*, or say failed=",
        ),
        ({"theta": lambda t: t[:, :1]}, sp.ShapeError, r"theta: expected shape \(n, 2\), got \(500, 1\)"),
        ({"theta": lambda t: t[:9], "x": lambda x: x[:9]}, sp.ShapeError, "expected at least 10 simulations, got 9"),
        ({"x": lambda x: x[:99]}, sp.ShapeError, "expected equally many rows, got theta: 500, x: 99"),
        ({"x": lambda x: None}, sp.UsageError, "x: expected the observables"),
        ({"x": lambda x: {"a": x, "b": x}}, sp.UsageError, r"several named ones \(a, b\)"),
        ({"x": lambda x: x[0, 0]}, sp.ShapeError, r"x: expected shape \(N, ...\), got \(\)"),
        ({"x": lambda x: "moons"}, sp.UsageError, "x: expected an array of numbers"),
        ({"theta": lambda t: object()}, sp.UsageError, "theta: expected an array of numbers"),
        ({"theta": lambda t: t.to(torch.complex64)}, sp.UsageError, "expected real numbers"),
    ],
)
def test_wrong_training_data(changes, error, message, npe, uniform_pairs):
    with pytest.raises(error, match=message) as caught:
        npe.fit(*pairs(uniform_pairs, **changes), progress=False)
    assert "\n" not in str(caught.value)


def test_stores(npe, crude, uniform, uniform_pairs, tmp_path):
    theta, x = uniform_pairs
    store = sp.Simulations.from_arrays(theta, x, uniform.parameters)
    store.save(tmp_path / "s.h5")
    for source in (store, tmp_path / "s.h5", str(tmp_path / "s.h5")):
        assert torch.equal(npe.fit(source, progress=False).sample(9, X_OBS).values, crude.sample(9, X_OBS).values)
    with pytest.raises(sp.UsageError, match="expected None beside a simulation store"):
        npe.fit(store, x)
    named = sp.Parameters.from_prior(uniform.parameters.prior, names=["a", "b"])
    sp.Simulations.from_arrays(theta, x, named).save(tmp_path / "s.h5")
    with pytest.raises(sp.UsageError, match=r"s.h5: the simulations are of the parameters a, b; expected theta_0"):
        npe.fit(tmp_path / "s.h5")
    with pytest.raises(sp.UsageError, match="x: expected one array, got several"):
        npe.fit(sp.Simulations.from_arrays(theta, {"a": x, "b": x}, uniform.parameters))
    with pytest.raises(sp.StoreError, match="no such file"):
        npe.fit(tmp_path / "nothing.h5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "nfs"}, "model: expected one of nsf, .*, mixture, .* or a Flow of nflows or zuko, got 'nfs'"),
        ({"model": "score", "ensemble": 2}, "ensemble: only flows come in ensembles, got 2 of the model 'score'"),
        ({"embedding": len}, "embedding: expected a torch module"),
        ({"device": "tpu"}, "device: expected 'auto', 'cpu'"),
        ({"prior": 3}, "prior: expected Parameters or a torch"),
        ({"model": build_flow("maf", 2, 2), "bins": 3}, "takes none, got bins"),
    ],
)
def test_wrong_estimators(arguments, message, uniform):
    with pytest.raises(sp.UsageError, match=message):
        sp.NPE(**{"prior": uniform.parameters, **arguments})


def test_unknown_options_of_a_flow(uniform, uniform_pairs):
    with pytest.raises(sp.UsageError, match="knots"):
        sp.NPE(uniform.parameters, knots=3).fit(*uniform_pairs, progress=False)


@pytest.mark.parametrize("model", OTHERS)
def test_unknown_options_of_other_models(model, uniform, uniform_pairs):
    with pytest.raises(sp.UsageError, match=f"option of the model '{model}': expected one of .*; got 'bins'"):
        sp.NPE(uniform.parameters, model, bins=3).fit(*uniform_pairs, progress=False)


def test_an_embedding_that_gives_no_summaries(uniform, uniform_pairs, quick):
    with pytest.raises(sp.ShapeError, match=r"embedding: expected summaries of shape \(2, C\)"):
        sp.NPE(uniform.parameters, embedding=nn.Unflatten(1, (2, 1)), **quick).fit(*uniform_pairs, progress=False)


def bump(theta, seed):
    """A line of 100 bins in normal noise: theta is its height and its place."""
    height, place = theta[:, :1], theta[:, 1:]
    line = height * torch.exp(-((torch.linspace(-2.0, 2.0, 100) - place) ** 2) / 0.5)
    return line + torch.randn(len(theta), 100, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
def test_of_a_noisy_spectrum_the_discriminants_are_kept(tmp_path):
    """They fit better, and cover as they say, where all numbers of the spectrum teach accidents."""
    prior = sp.Parameters([sp.Parameter("height", td.Uniform(1.0, 5.0)), sp.Parameter("place", td.Uniform(-1.0, 1.0))])
    theta, fresh = prior.sample(4000, seed=0), prior.sample(1000, seed=1)
    x, new = bump(theta, 2), bump(fresh, 3)
    found = sp.NPE(prior).fit(theta, x, progress=False)
    whole = sp.NPE(prior, embedding="residual").fit(theta, x, progress=False)
    assert found.provenance["discriminants"] < 20
    assert whole.provenance["discriminants"] is None
    assert float((found.log_prob(fresh, new) - whole.log_prob(fresh, new)).mean()) > 0.2
    assert float((sp.diagnostics.sbc(found, fresh, new).coverage_68 - 0.683).abs().max()) < 0.06
    found.save(tmp_path / "p.safetensors")
    again = sp.load(tmp_path / "p.safetensors", device="cpu")
    torch.testing.assert_close(again.log_prob(fresh, new), found.log_prob(fresh, new), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_of_a_wave_of_random_phase_all_numbers_are_kept():
    """No average of a number, nor of its square, tells of the frequency."""
    prior = sp.Parameters([sp.Parameter("frequency", td.Uniform(0.02, 0.1))])
    theta = prior.sample(4000, seed=0)
    phase, noise = (
        torch.rand(4000, 1, generator=torch.Generator().manual_seed(1)),
        torch.randn(4000, 60, generator=torch.Generator().manual_seed(2)),
    )
    x = 3 * torch.cos(2 * torch.pi * (theta * torch.arange(60.0) + phase)) + 0.1 * noise
    assert sp.NPE(prior).fit(theta, x, progress=False).provenance["discriminants"] is None
