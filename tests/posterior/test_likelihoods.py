"""NLE and NRE: prior times learned likelihood, for one observation, for many, and for several of one theta."""

import pytest
import torch

import sbi_physics as sp
from sbi_physics.train.config import TrainConfig

X_OBS = torch.tensor([0.3, -0.2])
MANY = torch.tensor([[0.3, -0.2], [0.0, 0.1], [-0.4, 0.4]])


def nle(parameters, **options):
    return sp.NLE(parameters, transforms=1, hidden_features=8, blocks=1, config=TrainConfig(epochs=1), **options)


def nre(parameters, **options):
    return sp.NRE(parameters, hidden_features=8, blocks=1, config=TrainConfig(epochs=1), **options)


ESTIMATORS = {"nle": nle, "nre": nre}


@pytest.fixture(scope="module", params=list(ESTIMATORS))
def estimator(request):
    return ESTIMATORS[request.param]


@pytest.fixture(scope="module")
def crude(estimator, uniform, uniform_pairs):
    return estimator(uniform.parameters).fit(*uniform_pairs, progress=False)


def test_independent_observations_multiply_and_the_prior_counts_once(crude, uniform):
    theta = uniform.parameters.sample(20, seed=1)
    each = sum(crude.log_likelihood(theta, x) for x in MANY)
    joint = crude.log_prob(theta, MANY, iid=True)
    torch.testing.assert_close(joint, uniform.parameters.log_prob(theta) + each.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(crude.log_likelihood(theta, MANY), each, rtol=1e-4, atol=1e-4)


def test_separate_observations_are_as_one_by_one(crude, uniform):
    theta = uniform.parameters.sample(12, seed=2).reshape(4, 3, 2)
    together = crude.log_prob(theta, MANY)
    assert together.shape == (4, 3)
    for i, x in enumerate(MANY):
        torch.testing.assert_close(together[:, i], crude.log_prob(theta[:, i], x), rtol=1e-4, atol=1e-4)
    with pytest.raises(sp.ShapeError, match="for 3 observations"):
        crude.log_prob(theta[:, :2], MANY)


def test_outside_the_prior_there_is_nothing(crude):
    assert crude.log_prob([[1.2, 0.0], [0.0, 0.0]], X_OBS).isneginf().tolist() == [True, False]


def test_the_likelihood_can_be_differentiated(crude):
    theta = torch.zeros(3, 2, requires_grad=True)
    crude.log_likelihood(theta, X_OBS).sum().backward()
    assert bool(torch.isfinite(theta.grad).all())


def test_draws_of_one_and_of_many(crude, uniform):
    one = crude.sample(200, X_OBS, seed=3)
    many = crude.sample(200, MANY, seed=3)
    assert one.values.shape == (200, 2)
    assert many.values.shape == (3, 200, 2)
    assert bool(uniform.parameters.within(many.values).all())
    assert one.cost.likelihood_calls > 0
    assert len(many.diagnostics["effective_sample_size"]) == 3
    assert torch.equal(one.values, crude.sample(200, X_OBS, seed=3).values)
    assert not torch.equal(one.values, crude.sample(200, X_OBS, seed=4).values)


def test_saved_and_loaded_are_identical(crude, tmp_path):
    crude.save(tmp_path / "p.st")
    again = sp.load(tmp_path / "p.st")
    assert type(again) is type(crude)
    assert again.x_shape == crude.x_shape
    assert again.provenance == crude.provenance
    theta = torch.zeros(4, 2)
    assert torch.equal(again.log_prob(theta, X_OBS), crude.log_prob(theta, X_OBS))
    assert torch.equal(again.sample(100, X_OBS, seed=1).values, crude.sample(100, X_OBS, seed=1).values)


def test_same_seed_same_weights(estimator, crude, uniform, uniform_pairs):
    again = estimator(uniform.parameters).fit(*uniform_pairs, progress=False)
    for name, tensor in crude.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


@pytest.mark.parametrize("method", ["importance", "mcmc"])
def test_a_learned_likelihood_is_corrected_to_the_exact_one(method, gaussian, gaussian_pairs):
    posterior = sp.NLE(gaussian.parameters, transforms=2, hidden_features=32, config=TrainConfig(epochs=5)).fit(
        *gaussian_pairs, progress=False
    )
    result = posterior.correct(gaussian.log_likelihood, X_OBS, 4000, method, seed=5)
    mean, covariance = gaussian.posterior_mean_and_covariance(X_OBS)
    sigma = covariance.diagonal().sqrt()
    weights = result.weights.unsqueeze(-1)
    values = result.values.double().cpu()
    found = (weights * values).sum(0)
    # 4,000 draws, of which at least 1,000 are effective: 0.03 sigma; four of them.
    assert ((found - mean).abs() / sigma < 0.13).all()
    assert (((weights * (values - found) ** 2).sum(0).sqrt() / sigma - 1).abs() < 0.1).all()
    if method == "importance":
        exact = torch.distributions.MultivariateNormal(torch.zeros(2).double(), 0.2 * torch.eye(2).double())
        # Its stated error is that of the weights alone; the sampler behind them adds its own.
        assert result.diagnostics["log_evidence"] == pytest.approx(float(exact.log_prob(X_OBS.double())), abs=0.15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: sp.NLE(p, "nsf-box"), "model: expected one of nsf, maf, maf-spline"),
        (lambda p: sp.NLE(p, embedding=torch.nn.Flatten()), "a likelihood is a density of x itself"),
        (lambda p: sp.NRE(p, "nsf"), "model: expected one of classifier; got 'nsf'"),
        (lambda p: sp.NRE(p, balance=-1.0), "balance: expected a number of at least 0"),
        (lambda p: sp.NRE(p, candidates=0), "candidates: expected an integer of at least 1"),
        (lambda p: sp.NRE(p, bins=4), "option of NRE: expected one of"),
        (lambda p: sp.NRE(p, embedding="transformers"), "embedding: expected one of"),
    ],
)
def test_wrong_arguments_are_named(make, message, uniform):
    with pytest.raises(sp.UsageError, match=message):
        make(uniform.parameters)


def test_observables_that_say_nothing_are_refused(uniform, uniform_pairs):
    with pytest.raises(sp.UsageError, match="the same in all simulations"):
        nle(uniform.parameters).fit(uniform_pairs[0], torch.ones(500, 3), progress=False)


@pytest.mark.parametrize("method", ["smc", "hmc"])
def test_both_samplers_find_the_exact_posterior(method, gaussian, gaussian_pairs):
    fitted = sp.NLE(gaussian.parameters, transforms=2, hidden_features=32, config=TrainConfig(epochs=15)).fit(
        *gaussian_pairs, progress=False
    )
    options = {"particles": 400} if method == "smc" else {"particles": 200, "chains": 32, "warmup": 100}
    x = torch.stack([X_OBS, -X_OBS])
    samples = fitted.with_sampler(method, **options).sample(2000, x, seed=1)
    mean, covariance = gaussian.posterior_mean_and_covariance(x)
    sigma = covariance.diagonal().sqrt()
    # 4,000 simulations fix a mean to a tenth of sigma; the draws to a twentieth.
    assert ((samples.values.mean(1) - mean).abs() / sigma < 0.3).all()
    assert ((samples.values.std(1) / sigma - 1).abs() < 0.15).all()
    assert all(samples.diagnostics["converged"]), samples.diagnostics["verdict"]
    assert len(samples.diagnostics["r_hat"]) == 2


def test_both_samplers_agree(crude):
    """On a network that knows little, and with parameters on an interval."""
    draws = [
        crude.with_sampler(method, particles=400).sample(4000, X_OBS, seed=1).values.double()
        for method in ("smc", "hmc")
    ]
    sigma = draws[0].std(0)
    # At least 400 of 4,000 draws count as independent: 0.07 sigma for the difference of two means; four of them.
    assert ((draws[0].mean(0) - draws[1].mean(0)).abs() / sigma < 0.28).all()
    assert (draws[1].std(0) / sigma - 1).abs().max() < 0.2


def test_unknown_samplers_are_refused(crude):
    with pytest.raises(sp.UsageError, match="method of the sampler: expected one of hmc, smc; got 'nuts'"):
        crude.with_sampler("nuts")
    with pytest.raises(sp.UsageError, match=r"option of the sampler 'smc': expected one of .*; got 'chains'"):
        crude.with_sampler(chains=3)
    with pytest.raises(sp.UsageError, match=r"option of the sampler 'hmc': expected one of .*; got 'effective_share'"):
        crude.with_sampler("hmc", effective_share=0.5)
