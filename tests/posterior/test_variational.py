"""Variational inference where the likelihood is known."""

import pytest
import torch

import sbi_physics as sp
from simulators.gaussian_linear import GaussianLinear

X_OBS = torch.tensor([0.3, -0.2])
QUICK = {"transforms": 2, "hidden_features": 16}


@pytest.fixture(scope="module")
def posterior(gaussian):
    return sp.VI(gaussian.parameters, gaussian.log_likelihood, **QUICK).fit(X_OBS, steps=400, seed=1, progress=False)


def test_it_finds_the_posterior_and_the_evidence_bounds_from_below(posterior, gaussian):
    found = posterior.sample(8000, seed=2).values.double()
    mean, covariance = gaussian.posterior_mean_and_covariance(X_OBS)
    sigma = covariance.diagonal().sqrt()
    assert ((found.mean(0) - mean).abs() / sigma < 0.08).all()
    assert ((found.std(0) / sigma - 1).abs() < 0.08).all()
    exact = float(torch.distributions.Normal(0.0, 0.2**0.5).log_prob(X_OBS).sum())
    assert exact - 0.1 < posterior.provenance["elbo"] < exact + 0.02


def test_correction_makes_it_exact_and_gives_the_evidence(posterior, gaussian):
    result = posterior.correct(gaussian.log_likelihood, n=4000, seed=3)
    exact = float(torch.distributions.Normal(0.0, 0.2**0.5).log_prob(X_OBS).sum())
    assert result.diagnostics["pareto_k"] < 0.7
    assert abs(result.diagnostics["log_evidence"] - exact) < 3 * result.diagnostics["log_evidence_error"] + 1e-3
    assert result.diagnostics["efficiency"] > 0.9


def test_the_annealing_keeps_two_modes_and_the_correction_their_weights():
    """x = |theta| + noise: two mirrored modes, seven standard deviations from the middle between them."""
    prior = sp.Parameters([sp.Parameter("t", torch.distributions.Uniform(-2.0, 2.0))])

    def log_likelihood(theta, x):
        return torch.distributions.Normal(theta[..., 0].abs(), 0.15).log_prob(x[..., 0].double())

    fit = sp.VI(prior, log_likelihood, **QUICK).fit([1.0], steps=400, seed=4, progress=False)
    share = float((fit.sample(4000, seed=5).values > 0).double().mean())
    assert 0.05 < share < 0.95
    exact = fit.correct(log_likelihood, n=20_000, seed=6)
    above = float((exact.weights * (exact.values[:, 0].cpu() > 0)).sum())
    assert abs(above - 0.5) < 4 * 0.5 / float(exact.effective_sample_size) ** 0.5


def test_it_is_for_one_observation_also_from_a_file(posterior, tmp_path):
    posterior.save(tmp_path / "p.st")
    again = sp.load(tmp_path / "p.st")
    assert torch.equal(again.sample(5).values, posterior.sample(5).values)
    theta = torch.zeros(3, 2)
    assert torch.equal(again.log_prob(theta), posterior.log_prob(theta, X_OBS))
    with pytest.raises(sp.UsageError, match="was fitted for one observation"):
        again.sample(5, X_OBS + 1)


def test_budgets_are_kept(gaussian):
    vi = sp.VI(gaussian.parameters, gaussian.log_likelihood, **QUICK)
    fit = vi.fit(X_OBS, steps=10_000, draws=64, max_calls=30_000, progress=False)
    assert fit.provenance["likelihood_calls"] <= 30_000
    with pytest.raises(sp.BudgetError, match="the budget allows 7 steps of 64 draws"):
        vi.fit(X_OBS, draws=64, max_calls=1000, progress=False)
    assert vi.fit(X_OBS, steps=10**6, draws=64, max_seconds=2.0, progress=False).provenance["training"]["seconds"] < 20


def test_an_impossible_observation_ends_at_once(gaussian):
    def impossible(theta, x):
        return torch.full(theta.shape[:-1], -torch.inf, dtype=torch.float64)

    with pytest.raises(sp.ConvergenceError, match=r"zero at all of 10000 draws of the prior: .* impossible"):
        sp.VI(gaussian.parameters, impossible).fit(X_OBS, progress=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: sp.VI(p, None), sp.UsageError, "log_likelihood: expected a function"),
        (lambda p: sp.VI(p, GaussianLinear(2).log_likelihood, "gan"), sp.UsageError, "model: expected one of"),
        (
            lambda p: sp.VI(p, lambda t, x: t).fit(X_OBS, progress=False),
            sp.ShapeError,
            "log_likelihood: expected shape",
        ),
        (
            lambda p: sp.VI(p, lambda t, x: t[:, 0] * torch.nan).fit(X_OBS, progress=False),
            sp.NonFiniteError,
            "log_likelihood: expected numbers or minus infinity",
        ),
        (
            lambda p: sp.VI(p, GaussianLinear(2).log_likelihood).fit([0.1, float("nan")]),
            sp.NonFiniteError,
            "x_obs: expected finite",
        ),
    ],
)
def test_wrong_arguments_are_named(make, error, message, gaussian):
    with pytest.raises(error, match=message):
        make(gaussian.parameters)
