"""A cut that knows the mass sculpts the spectrum, one that does not leaves it as it is."""

import numpy as np
import pytest
from scipy.stats import kstest

import sbi_physics as sp
from sbi_physics.anomaly.sculpting import mass_sculpting

EDGES = np.linspace(0.0, 5.0, 21)


def masses(n, seed):
    return np.random.default_rng(seed).exponential(1.0, n)


def test_chi2_of_independent_cuts_follows_its_distribution_and_of_others_does_not():
    p_values, sculpted = [], []
    for seed in range(200):
        mass, random = masses(5000, seed), np.random.default_rng([seed, 1])
        p_values.append(mass_sculpting(mass, random.random(5000) < 0.1, EDGES).p_value)
        sculpted.append(mass_sculpting(mass, random.random(5000) < 0.1 * (1 + 0.5 * np.sin(mass)), EDGES).p_value)
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert np.median(sculpted) < 0.05


def test_bins_are_joined_where_few_pass():
    mass = masses(1000, 1)
    found = mass_sculpting(mass, np.random.default_rng(2).random(1000) < 0.02, EDGES)
    assert 1 <= found.ndf < 6


def test_bins_need_not_touch():
    mass = masses(5000, 3)
    passed = (mass > 1) & (mass < 2)
    apart = np.array([[0.0, 1.0], [2.0, 3.0]])
    assert mass_sculpting(mass, passed, apart).ndf == 0
    assert mass_sculpting(mass, passed, EDGES).reduced > 50


def test_weights_scale_out():
    mass, passed = masses(5000, 4), np.random.default_rng(5).random(5000) < 0.2
    plain = mass_sculpting(mass, passed, EDGES)
    doubled = mass_sculpting(mass, passed, EDGES, weights=np.full(5000, 2.0))
    assert doubled.chi2 == pytest.approx(plain.chi2)


def test_what_does_not_fit():
    with pytest.raises(sp.ShapeError, match="one for each mass"):
        mass_sculpting(np.zeros(5), np.zeros(4, dtype=bool), EDGES)
    with pytest.raises(sp.UsageError, match="expected events in them"):
        mass_sculpting(np.full(5, 99.0), np.zeros(5, dtype=bool), EDGES)
