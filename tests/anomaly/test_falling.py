"""Fits of many falling spectra at once: exact integrals, the likelihood's maximum, and no fit that fails."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize

from sbi_physics.anomaly.falling import FallingFunction, deviance, fit_counts

EVERY = np.ones(24, dtype=bool)


def function(falling, order=5):
    edges, share = falling()
    return FallingFunction.orthonormal(edges, share, order, 13.0), edges, share


def test_a_bin_holds_the_integral_of_the_published_function(falling):
    made, edges, _ = function(falling)
    wanted = np.array([-1.0, 8.0, 5.0, 0.3, 0.05])
    coefficients = np.linalg.solve(made.mixing, wanted)[None]
    log_p0, p1, p2, p3, p4 = made.parameters(coefficients)[0]
    assert made.parameters(coefficients)[0] == pytest.approx(wanted, rel=1e-6)

    def density(m):
        x = m / 13
        return np.exp(log_p0) * (1 - x) ** p1 * x ** -(p2 + p3 * np.log(x) + p4 * np.log(x) ** 2)

    exact = [quad(density, low, high)[0] for low, high in pairwise(edges)]
    counts, slope = made.binned(edges).integrals(coefficients)
    assert counts[:, 0] == pytest.approx(exact, rel=1e-9)
    for k in range(5):
        moved = coefficients + 1e-5 * np.eye(5)[k]
        numeric = (made.binned(edges).integrals(moved)[0] - counts)[:, 0] / 1e-5
        assert slope[:, k, 0] == pytest.approx(numeric, rel=1e-3, abs=1e-4 * counts.max())


def test_shorter_functions_are_the_longer_ones_without_their_last_parameters(falling):
    made, *_ = function(falling)
    short = made.parameters(np.array([[3.0, 1.5, -0.4]]))
    long = made.parameters(np.array([[3.0, 1.5, -0.4, 0.0, 0.0]]))
    assert long[:, :3] == pytest.approx(short, rel=1e-6)
    assert long[:, 3:] == pytest.approx(np.zeros((1, 2)), abs=1e-12)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_no_other_optimiser_finds_a_better_fit(falling, order):
    made, edges, share = function(falling, order)
    binned = made.binned(edges)
    counts = np.random.default_rng(0).poisson(3000 * share, size=(20, len(share))).astype(float)
    fits = fit_counts(binned, counts, np.ones(len(share)))
    assert fits.converged.all()
    for i in (0, 7):

        def loss(at, row=counts[i]):
            expected = binned.integrals(at[None])[0].T
            return deviance(row[None], expected, np.ones(len(row))).sum()

        other = minimize(loss, fits.coefficients[i] + 0.05, method="BFGS", options={"gtol": 1e-6})
        assert fits.deviance[i] < other.fun + 1e-3
        assert fits.deviance[i] == pytest.approx(loss(fits.coefficients[i]), rel=1e-9)
    # A normalisation that is free reproduces the number of events.
    total = binned.integrals(fits.coefficients)[0].sum(0)
    assert total == pytest.approx(counts.sum(1), rel=1e-4)


def test_spectra_are_fitted_one_by_one_as_together(falling):
    made, edges, share = function(falling)
    binned = made.binned(edges)
    counts = np.random.default_rng(1).poisson(2000 * share, size=(8, len(share))).astype(float)
    together = fit_counts(binned, counts, np.ones(len(share)))
    alone = [fit_counts(binned, row[None], np.ones(len(share))) for row in counts]
    assert together.deviance == pytest.approx([fit.deviance[0] for fit in alone], abs=1e-4)


def test_pulls_of_the_fit_have_the_width_it_says(falling):
    made, edges, share = function(falling, 3)
    binned, toys = made.binned(edges), 2000
    counts = np.random.default_rng(2).poisson(10_000 * share, size=(toys, len(share))).astype(float)
    outside = np.ones(len(share), dtype=bool)
    outside[8:12] = False
    fits = fit_counts(binned.of(outside, 3), counts[:, outside], np.ones(int(outside.sum())))
    inside, slope = binned.of(~outside, 3).integrals(fits.coefficients)
    slope = slope.sum(0)
    error = np.sqrt(np.einsum("kt,tkl,lt->t", slope, fits.covariance, slope))
    pulls = (inside.sum(0) - 10_000 * share[~outside].sum()) / error
    assert abs(pulls.mean()) < 5 / toys**0.5
    assert pulls.std() == pytest.approx(1, abs=5 * (0.5 / toys) ** 0.5)
    # Twin: errors that leave out the other parameters are too small.
    wrong = np.abs(slope[0]) * np.sqrt(1 / np.linalg.inv(fits.covariance)[:, 0, 0])
    assert ((inside.sum(0) - 10_000 * share[~outside].sum()) / wrong).std() > 1 + 5 * (0.5 / toys) ** 0.5


@pytest.mark.parametrize("events", [12, 100, 10_000, 1e9])
@pytest.mark.parametrize(("low", "high"), [(2.0, 8.0), (3.3, 3.7), (1.0, 12.9)])
def test_no_fit_fails(falling, events, low, high):
    edges, share = falling(24, low, high)
    binned = FallingFunction.orthonormal(edges, share, 5, 13.0).binned(edges)
    counts = np.random.default_rng(3).poisson(events * share, size=(100, 24)).astype(float)
    for order in (3, 4, 5):
        fits = fit_counts(binned.of(EVERY, order), counts, np.ones(24))
        assert fits.converged.all()
        assert np.isfinite(fits.covariance).all()
        assert (np.diagonal(fits.covariance, axis1=1, axis2=2) > 0).all()


def test_weights_change_nothing_but_the_unit(falling):
    made, edges, share = function(falling, 3)
    counts = np.random.default_rng(4).poisson(5000 * share, size=(5, len(share))).astype(float)
    plain = fit_counts(made.binned(edges), counts, np.ones(len(share)))
    weighted = fit_counts(made.binned(edges), 0.01 * counts, np.full(len(share), 100.0))
    assert weighted.deviance == pytest.approx(plain.deviance, abs=1e-3)
    assert weighted.covariance == pytest.approx(plain.covariance, rel=1e-3, abs=1e-7)
    shift = weighted.coefficients - plain.coefficients
    assert made.parameters(shift)[:, 0] == pytest.approx(np.full(5, np.log(0.01)), abs=1e-2)


def test_negative_sums_of_weights_are_data_too(falling):
    made, edges, share = function(falling, 3)
    counts = 50 * share
    counts[-1] = -0.5
    fit = fit_counts(made.binned(edges), counts[None], np.full(len(share), 2.0))
    assert bool(fit.converged[0])
    assert made.binned(edges).integrals(fit.coefficients)[0].sum() == pytest.approx(counts.sum(), rel=1e-3)
