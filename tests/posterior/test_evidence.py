"""Evidences that are known exactly, and what comparisons make of evidences with errors."""

import math

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.posterior.evidence import compare_evidences, model_prior, strength
from simulators.gaussian_linear import GaussianLinear

OBSERVED = torch.tensor([[0.2, -0.3], [0.0, 0.1], [-0.6, 0.4], [0.5, 0.5], [0.4, -0.5]])


def exact_evidence(x, prior_variance=0.1):
    """X ~ N(0, prior variance + 0.1) in each direction."""
    return float(td.Normal(0.0, math.sqrt(prior_variance + 0.1)).log_prob(x.double()).sum())


@pytest.mark.parametrize("x_obs", OBSERVED)
def test_importance_evidence_agrees_with_the_exact_one(good, gaussian, x_obs):
    found = good.correct(gaussian.log_likelihood, x_obs, 4000, seed=1).diagnostics
    error = found["log_evidence_error"]
    assert abs(found["log_evidence"] - exact_evidence(x_obs)) < 3 * error
    assert 0 < error < 0.03
    # A likelihood that is wrong by a tenth of a nat is noticed.
    shifted = good.correct(lambda t, x: gaussian.log_likelihood(t, x) + 0.1, x_obs, 4000, seed=1).diagnostics
    assert abs(shifted["log_evidence"] - exact_evidence(x_obs)) > 3 * error


def test_pulls_of_the_importance_evidence(good, gaussian):
    """The error is that of many repetitions: the pulls have mean zero and variance one."""
    x_obs, pulls = OBSERVED[3], []
    for seed in range(40):
        found = good.correct(gaussian.log_likelihood, x_obs, 2000, seed=seed).diagnostics
        pulls.append((found["log_evidence"] - exact_evidence(x_obs)) / found["log_evidence_error"])
    pulls = torch.tensor(pulls)
    assert abs(float(pulls.mean())) < 4 / 40**0.5
    assert 0.5 < float(pulls.std()) < 1.7


def test_two_models_with_known_evidences(good, gaussian):
    """The same likelihood under two priors: the narrow one is favoured by data near zero, by the known factor."""
    wide = GaussianLinear(dims=2, prior_variance=0.4)
    x_obs = torch.tensor([0.1, -0.05])
    proposal = good.correct(gaussian.log_likelihood, x_obs, 8000, seed=2)

    def other(theta, x):
        """What turns the narrow prior into the wide one."""
        change = wide.parameters.log_prob(theta) - gaussian.parameters.log_prob(theta)
        return wide.log_likelihood(theta, x) + change

    found = compare_evidences({"narrow": proposal, "wide": good.correct(other, x_obs, 8000, seed=3)})
    value, error = found.log_bayes_factor("narrow", "wide")
    exact = exact_evidence(x_obs) - exact_evidence(x_obs, 0.4)
    assert abs(value - exact) < 3 * error
    assert error < 0.05
    assert found.log_bayes_factor("wide", "narrow") == (-value, error)
    assert found.probability.sum() == pytest.approx(1)
    share = 1 / (1 + math.exp(-exact))
    assert abs(float(found.probability[0]) - share) < 3 * float(found.probability_error[0])
    assert found.verdict.startswith("inconclusive: narrow is favoured, ln B = 0.")


def test_the_prior_of_the_models_and_the_words():
    found = compare_evidences({"a": (-10.0, 0.1), "b": (-13.0, 0.2), "c": (-20.0, 0.0)}, prior=[1, 8, 1])
    weights = torch.tensor([1.0, 8 * math.exp(-3), math.exp(-10)], dtype=torch.float64)
    torch.testing.assert_close(found.probability, weights / weights.sum())
    assert found.log_bayes_factor("a", "b") == pytest.approx((3.0, math.hypot(0.1, 0.2)))
    assert found.log_bayes_factor("a", "a") == (0.0, 0.0)
    assert found.verdict == (
        "moderate evidence: a is favoured, ln B = 3.0 +- 0.2 nats against b, Bayes factor 20 : 1; probability 0.715 "
        "with the given prior"
    )
    # The derivative of p(a) is p (1 - p).
    a, b = float(found.probability[0]), math.hypot(0.1, 0.2)
    assert float(found.probability_error[0]) == pytest.approx(a * (1 - a) * b, rel=0.05)
    vague = compare_evidences({"a": (-10.0, 1.0), "b": (-11.0, 1.0)})
    assert vague.verdict.startswith("not resolved: a is ahead, ln B = 1.0 +- 1.4 nats against b")
    assert [strength(b) for b in (0.9, -1.1, 2.6, -7)] == [
        "inconclusive",
        "weak evidence",
        "moderate evidence",
        "strong evidence",
    ]
    assert model_prior({"b": 1, "a": 3}, ["a", "b"]).tolist() == [0.75, 0.25]
    assert model_prior(None, ["a", "b"]).tolist() == [0.5, 0.5]


def test_huge_bayes_factors():
    found = compare_evidences({"a": (0.0, 1.0), "b": (-5000.0, 1.0)})
    assert found.probability.tolist() == [1.0, 0.0]
    assert "strong evidence" in found.verdict


@pytest.mark.parametrize(
    ("evidences", "keywords", "error", "message"),
    [
        ({"a": (0.0, 1.0)}, {}, sp.UsageError, "at least two models, got 1"),
        ({"a": (0.0, 1.0), "b": 3.0}, {}, sp.UsageError, "expected for b samples"),
        ({"a": (0.0, 1.0), "b": (math.nan, 1.0)}, {}, sp.NonFiniteError, "for b"),
        ({"a": (0.0, -1.0), "b": (0.0, 1.0)}, {}, sp.NonFiniteError, "error of at least 0"),
        ({"a": sp.Samples(torch.zeros(3, 1), ("t",)), "b": (0, 1)}, {}, sp.UsageError, "samples of a know no"),
        ({"a": (0, 1), "b": (0, 1)}, {"prior": {"a": 1}}, sp.UsageError, "probabilities of a, b, got a"),
        ({"a": (0, 1), "b": (0, 1)}, {"prior": [1, 0]}, sp.UsageError, "2 numbers above 0"),
        ({"a": (0, 1), "b": (0, 1)}, {"seed": -1}, sp.UsageError, "seed"),
    ],
)
def test_wrong_arguments(evidences, keywords, error, message):
    with pytest.raises(error, match=message):
        compare_evidences(evidences, **keywords)


def test_a_model_that_is_not_there():
    found = compare_evidences({"a": (0.0, 1.0), "b": (0.0, 1.0)})
    with pytest.raises(sp.UsageError, match="model: expected one of a, b; got 'c'"):
        found.log_bayes_factor("a", "c")
