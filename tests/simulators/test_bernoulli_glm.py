"""The sufficient statistics, their probability and the smoothness prior, each against its definition."""

import itertools

import torch
import torch.distributions as td

from simulators.bernoulli_glm import BernoulliGLM


def test_the_design_convolves_the_stimulus_with_the_filter():
    design = BernoulliGLM().design
    stimulus = design[:, 1]
    filter_ = torch.arange(1.0, 10.0).double()
    expected = [sum(filter_[j] * stimulus[t - j] for j in range(min(t, 8) + 1)) for t in range(100)]
    torch.testing.assert_close(design[:, 1:] @ filter_, torch.stack(expected), rtol=1e-12, atol=1e-12)
    assert torch.equal(design[:, 0], torch.ones(100).double())
    # White noise: mean and variance of 100 normal numbers within five standard errors.
    assert abs(float(stimulus.mean())) < 0.5
    assert abs(float(stimulus.var()) - 1) < 5 * (2 / 99) ** 0.5


def test_statistics_are_those_of_bernoulli_spikes():
    """Mean and covariance of x = X^T y for independent bins, with a twin whose stimulus is late by one bin."""
    simulator, n = BernoulliGLM(), 20_000
    theta = simulator.parameters.sample(1, seed=1).double()
    x = simulator(theta.expand(n, -1), seed=2).double()
    assert torch.equal(x[:, 0], x[:, 0].round())
    probability = torch.sigmoid(simulator.design @ theta[0])

    def pulls(design):
        mean, variance = design.T @ probability, (design**2).T @ (probability * (1 - probability))
        return ((x.mean(0) - mean) / (variance / n).sqrt()).abs()

    assert float(pulls(simulator.design).max()) < 5
    assert float(pulls(simulator.design.roll(1, 0)).max()) > 20
    covariance = simulator.design.T @ torch.diag(probability * (1 - probability)) @ simulator.design
    scale = covariance.diagonal().sqrt()
    assert float(((x.T.cov() - covariance) / torch.outer(scale, scale)).abs().max()) < 5 * (2 / n) ** 0.5


def test_probability_is_that_of_the_spikes():
    simulator = BernoulliGLM()
    theta = simulator.parameters.sample(5, seed=3).double()
    spikes = (torch.arange(500).reshape(5, 100) * 7 % 3 == 0).double()
    expected = td.Bernoulli(logits=theta @ simulator.design.T).log_prob(spikes).sum(-1)
    found = simulator.log_likelihood(theta, spikes @ simulator.design)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_ratios_of_probabilities_sum_to_one_over_all_trains_of_a_few_bins():
    """The other 88 bins are held at no spike: their part of the probability is divided out."""
    simulator = BernoulliGLM()
    theta = simulator.parameters.sample(1, seed=4)[0].double()
    spikes = torch.zeros(2**12, 100).double()
    spikes[:, :12] = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12))).double()
    x = spikes @ simulator.design
    assert len(torch.unique(x.round(decimals=9), dim=0)) == 2**12
    silent = torch.nn.functional.logsigmoid(-(simulator.design @ theta))[12:].sum()
    total = torch.logsumexp(simulator.log_likelihood(theta, x) - silent, 0)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-10)


def test_the_prior_is_smooth():
    """The density falls by what the definition says: second differences, written out by hand for the sixth lag."""
    parameters = BernoulliGLM().parameters
    flat, bent = torch.zeros(10), torch.zeros(10)
    bent[6] = 1.0
    # Column 5 of F = D D + diag(sqrt(j / 9)) is (1 + sqrt(5/9), -2, 1) from row 5 on.
    squares = (1 + (5 / 9) ** 0.5) ** 2 + 4 + 1
    torch.testing.assert_close(parameters.log_prob(flat) - parameters.log_prob(bent), torch.tensor(squares / 2))
    offset = torch.zeros(10)
    offset[0] = 2.0
    torch.testing.assert_close(parameters.log_prob(flat) - parameters.log_prob(offset), torch.tensor(1.0))
