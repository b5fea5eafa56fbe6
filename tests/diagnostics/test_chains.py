"""Convergence of chains whose autocorrelation is known, and of chains that must be refused."""

import math

import numpy as np
import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.diagnostics import autocorrelation_time, bulk_effective_sample_size, chain_report, split_r_hat


def autoregressive(phi, steps=4000, walkers=8, seed=0):
    """x_t = phi x_{t-1} + noise: its autocorrelation time is (1 + phi) / (1 - phi)."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(steps, walkers, len(phi)))
    chain = np.empty_like(noise)
    chain[0] = noise[0] / np.sqrt(1 - np.square(phi))
    for t in range(1, steps):
        chain[t] = np.asarray(phi) * chain[t - 1] + noise[t]
    return torch.as_tensor(chain)


def test_autocorrelation_time_of_a_known_process():
    phi = np.array([0.0, 0.5, 0.9])
    expected = (1 + phi) / (1 - phi)
    times = autocorrelation_time(autoregressive(phi, steps=20_000))
    np.testing.assert_allclose(times.numpy(), expected, rtol=0.15)


def test_effective_sample_size_of_a_known_process():
    phi = np.array([0.0, 0.5, 0.9])
    expected = 4000 * 8 * (1 - phi) / (1 + phi)
    np.testing.assert_allclose(bulk_effective_sample_size(autoregressive(phi)).numpy(), expected, rtol=0.2)


def test_long_chain_converges():
    report = chain_report(autoregressive([0.5, 0.8]), ["a", "b"])
    assert report.converged
    assert report.lengths == pytest.approx(4000 / 9, rel=0.2)
    assert report.verdict.startswith("converged: 4000 steps are")
    assert float(report.r_hat.max()) < 1.01


def test_short_chain_is_refused():
    report = chain_report(autoregressive([0.5, 0.99]), ["a", "b"])
    assert not report.converged
    assert "autocorrelation times of b, expected more than 50; run longer" in report.verdict


def test_walkers_in_separate_modes_are_refused():
    """Each walker looks converged about its own mean: only R-hat sees that they disagree."""
    chains = autoregressive([0.2, 0.2])
    chains[:, ::2, 1] += 10.0
    report = chain_report(chains)
    assert report.lengths > 50
    assert float(split_r_hat(chains)[1]) > 1.5
    assert not report.converged
    assert "R-hat of theta_1" in report.verdict


def test_a_walker_that_never_moves_is_refused():
    chains = autoregressive([0.2, 0.2])
    chains[:, 0, 0] = 1.0
    assert float(autocorrelation_time(chains)[0]) == math.inf
    report = chain_report(chains)
    assert not report.converged
    assert report.lengths == 0.0
    constant = chain_report(torch.zeros(100, 4, 2))
    assert not constant.converged
    assert "not converged" in constant.verdict


def test_wrong_input_is_named():
    with pytest.raises(ShapeError, match=r"chains: expected shape \(steps, walkers, P\)"):
        chain_report(torch.zeros(100, 4))
    with pytest.raises(ShapeError, match="at least 4 steps"):
        chain_report(torch.zeros(3, 4, 1))
    with pytest.raises(NonFiniteError, match="chains"):
        chain_report(torch.full((10, 4, 1), torch.nan))
    with pytest.raises(UsageError, match="names: expected 2"):
        chain_report(autoregressive([0.1, 0.2], 20), ["a"])
