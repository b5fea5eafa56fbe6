import numpy as np
import pytest
import torch

import sbi_physics as sp
from sbi_physics.posterior.compare import compare
from simulators.gaussian_linear import GaussianLinear

X_OBS = torch.tensor([0.3, -0.2])


@pytest.mark.parametrize(
    ("shape", "expected"), [((2,), (11, 2)), ((1, 2), (11, 2)), ((3, 2), (3, 11, 2)), ((2, 2), (2, 11, 2))]
)
def test_shapes_of_observations(shape, expected, crude):
    samples = crude.sample(11, torch.zeros(shape))
    assert samples.values.shape == expected
    assert samples.cost.seconds > 0
    log_prob = crude.log_prob(torch.zeros(2), torch.zeros(shape))
    assert log_prob.shape == (() if len(expected) == 2 else (expected[0],))


def test_a_batch_equals_its_rows(crude):
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    theta = torch.rand(4, 3, 2) - 0.5
    together = crude.log_prob(theta, x)
    apart = torch.stack([crude.log_prob(theta[:, i], x[i]) for i in range(3)], 1)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("theta", "x", "expected"),
    [
        ((2,), (2,), ()),
        ((5, 2), (2,), (5,)),
        ((4, 5, 2), (1, 2), (4, 5)),
        ((2,), (3, 2), (3,)),
        ((1, 2), (3, 2), (3,)),
        ((3, 2), (3, 2), (3,)),
        ((7, 1, 2), (3, 2), (7, 3)),
        ((7, 3, 2), (3, 2), (7, 3)),
    ],
)
def test_log_prob_broadcasts(theta, x, expected, crude):
    assert crude.log_prob(torch.zeros(theta), np.zeros(x)).shape == expected


def test_independent_observations(crude):
    assert torch.equal(crude.sample(5, X_OBS, iid=True).values, crude.sample(5, X_OBS).values)
    assert torch.equal(crude.log_prob(X_OBS, X_OBS[None], iid=True), crude.log_prob(X_OBS, X_OBS))
    with pytest.raises(sp.ShapeError, match="3 independent observations of one theta cannot be joined"):
        crude.sample(5, torch.zeros(3, 2), iid=True)


BAD_OBSERVATIONS = [
    ([0.1, float("nan")], sp.NonFiniteError, "x_obs: expected finite numbers, got 1 NaN"),
    ([float("inf"), 0.0], sp.NonFiniteError, "fill in missing data"),
    ([0.1], sp.ShapeError, r"x_obs: expected shape \(2,\) as in training, or \(m, 2\) for m observations, got \(1,\)"),
    (torch.zeros(2, 3), sp.ShapeError, r"got \(2, 3\); give the one of its 3 columns that simulations are like"),
    (torch.zeros(0, 2), sp.ShapeError, r"got \(0, 2\)"),
    (0.3, sp.ShapeError, r"got \(\)"),
    ("moons", sp.UsageError, "x_obs: expected an array of numbers"),
    (None, sp.UsageError, r"x_obs: expected an observation of shape \(2,\), got None"),
    ([[0.1, 0.2], [0.3]], sp.UsageError, "x_obs: expected an array of numbers"),
]


USES = {
    "sample": lambda posterior, simulator, x: posterior.sample(5, x),
    "log_prob": lambda posterior, simulator, x: posterior.log_prob(torch.zeros(2), x),
    "correct": lambda posterior, simulator, x: posterior.correct(simulator.log_likelihood, x, 100),
    "compare": lambda posterior, simulator, x: compare(posterior, simulator, x, progress=False),
}


@pytest.mark.parametrize(("x_obs", "error", "message"), BAD_OBSERVATIONS)
@pytest.mark.parametrize("use", USES)
def test_wrong_observations(use, x_obs, error, message, crude, uniform):
    with pytest.raises(error, match=message) as caught:
        USES[use](crude, uniform, x_obs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("theta", "x", "error", "message"),
    [
        (torch.zeros(3), X_OBS, sp.ShapeError, r"theta: expected shape \(\*, 2\), got \(3,\)"),
        (torch.zeros(5, 2), torch.zeros(3, 2), sp.ShapeError, r"theta: expected shape \(\*, 3, 2\).*got \(5, 2\)"),
        (torch.tensor([0.0, torch.nan]), X_OBS, sp.NonFiniteError, "theta: expected finite"),
    ],
)
def test_wrong_parameters(theta, x, error, message, crude):
    with pytest.raises(error, match=message):
        crude.log_prob(theta, x)


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_wrong_numbers_of_draws(n, crude):
    with pytest.raises(sp.UsageError, match="n: expected an integer of at least 1"):
        crude.sample(n, X_OBS)


@pytest.mark.parametrize("method", ["importance", "mcmc"])
def test_corrected_posteriors_are_exact(method, good, gaussian):
    n = 20_000
    x_obs = torch.tensor([0.5, 0.1])
    corrected = good.correct(gaussian.log_likelihood, x_obs, n, method=method, seed=8)
    mean, covariance = gaussian.posterior_mean_and_covariance(x_obs)
    sigma = covariance.diagonal().sqrt()
    weights = corrected.weights.unsqueeze(-1)
    values = corrected.values.double()
    found = (weights * values).sum(0)
    spread = (weights * (values - found) ** 2).sum(0).sqrt()
    # Five standard errors with half of the draws effective.
    tolerance = 5 / (n / 2) ** 0.5
    assert ((found - mean).abs() / sigma < tolerance).all()
    assert ((spread / sigma - 1).abs() < tolerance).all()
    assert corrected.cost.likelihood_calls >= n
    if method == "importance":
        variance = gaussian.prior_variance + gaussian.noise_variance
        evidence = torch.distributions.Normal(0.0, variance**0.5).log_prob(x_obs).sum()
        error = corrected.diagnostics["log_evidence_error"]
        assert abs(corrected.diagnostics["log_evidence"] - evidence) < 5 * error
        assert corrected.diagnostics["efficiency"] > 0.9
        assert corrected.diagnostics["pareto_k"] < 0.7
        assert corrected.effective_sample_size > 0.9 * n
    else:
        assert corrected.log_weights is None
        assert corrected.diagnostics["acceptance"] > 0.8


def test_a_likelihood_is_shown_one_observation(good, gaussian):
    """Whether the user hands in ``x_shape`` or ``(1, *x_shape)``."""
    seen = []

    def log_likelihood(theta, x):
        seen.append(tuple(x.shape))
        return gaussian.log_likelihood(theta, x)

    good.correct(log_likelihood, X_OBS, 100)
    good.correct(log_likelihood, X_OBS[None], 100)
    assert seen == [(2,), (2,)]


@pytest.mark.parametrize(("method", "message"), [("importance", "Pareto k = "), ("mcmc", "proposals are accepted")])
def test_a_posterior_that_is_far_off_cannot_be_corrected(method, message, crude):
    narrow = GaussianLinear(dims=2, noise_variance=1e-8)
    with pytest.raises(sp.ConvergenceError, match=message):
        crude.correct(narrow.log_likelihood, X_OBS, 2000, method=method)


def test_an_impossible_observation(crude):
    with pytest.raises(sp.ConvergenceError, match="none of 100 proposals has a finite posterior density"):
        crude.correct(lambda theta, x: torch.full((len(theta),), -torch.inf), X_OBS, 100)


def test_budgets_of_corrections(good, gaussian):
    few = good.correct(gaussian.log_likelihood, X_OBS, 10_000, max_calls=300)
    assert len(few) == few.cost.likelihood_calls == 300
    with pytest.raises(sp.BudgetError, match="within the warm-up"):
        good.correct(gaussian.log_likelihood, X_OBS, 10_000, method="mcmc", max_calls=1000)
    with pytest.raises(sp.UsageError, match="method: expected one of importance, mcmc; got 'vi'"):
        good.correct(gaussian.log_likelihood, X_OBS, 10, method="vi")


def test_compare(good, gaussian):
    n = 500
    comparison = compare(good, gaussian, X_OBS, n=n, steps=300, walkers=32, seed=1, progress=False)
    assert set(comparison.samples) == {"npe", "corrected", "mcmc"}
    assert all(s.values.shape == (n, 2) and s.log_weights is None for s in comparison.samples.values())
    assert len(torch.unique(comparison.samples["corrected"].values, dim=0)) == n
    # The accuracy scatters by 0.5 / sqrt(2 n) = 0.016 about 0.5.
    assert all(abs(value - 0.5) < 0.08 for value in comparison.c2st.values())
    mean, covariance = gaussian.posterior_mean_and_covariance(X_OBS)
    for samples in comparison.samples.values():
        pull = (samples.values.double().mean(0) - mean) / covariance.diagonal().sqrt()
        assert (pull.abs() < 0.3).all()
    result = comparison.to_dict()
    assert set(result) == {
        *("c2st_npe", "c2st_corrected", "importance_efficiency", "pareto_k", "log_evidence", "log_evidence_error"),
        *("mcmc", "seconds", "likelihood_calls", "intervals"),
    }
    assert result["likelihood_calls"]["npe"] == 0
    assert set(result["seconds"]) == {"sample", "correct", "mcmc", "c2st"}


def test_wrong_comparisons(crude, uniform):
    class NoLikelihood:
        parameters = uniform.parameters

        def __call__(self, theta, *, seed):
            return theta

    with pytest.raises(sp.UsageError, match="simulator: expected one with log_likelihood, got NoLikelihood"):
        compare(crude, NoLikelihood(), X_OBS)
    with pytest.raises(sp.UsageError, match="simulator: expected the parameters theta_0, theta_1, got theta_0, "):
        compare(crude, GaussianLinear(dims=3), X_OBS)
    with pytest.raises(sp.UsageError, match="n: expected an integer"):
        compare(crude, uniform, X_OBS, n=0)
    with pytest.raises(sp.ShapeError, match=r"x_obs: expected one observation of shape \(2,\), got 3"):
        compare(crude, uniform, torch.zeros(3, 2))
    with pytest.raises(sp.ConvergenceError, match="proposals have a weight above zero"):
        compare(crude, GaussianLinear(dims=2, noise_variance=1e-9), X_OBS, n=100, progress=False)


def test_it_says_in_a_line_what_it_is(crude):
    assert repr(crude) == f"DirectPosterior({crude.parameters} given x of shape (2,): nsf, trained on 500 simulations)"
