"""Where there is nothing to find, the p-values of searches are uniform; where there is, they are small."""

import numpy as np
import pytest
from scipy.stats import kstest

from sbi_physics.anomaly.search import ResonantSearch
from simulators.dijet import DijetResonance

REGION = (3.3, 3.7)
SMALL = {"method": "sidebands", "members": 1, "folds": 3, "classifier_options": {"max_iter": 40, "max_leaf_nodes": 12}}
TOYS = 24


def global_p_value(seed, signal):
    data = DijetResonance().events(background=4000, signal=signal, seed=seed)
    search = ResonantSearch(REGION, **SMALL).fit(data.features, data.mass, seed=seed, progress=False)
    return search.search(toys=2000, seed=seed).global_p_value


@pytest.mark.slow
def test_p_values_are_uniform_without_a_signal_and_small_with_one():
    without = np.array([global_p_value(seed, 0) for seed in range(TOYS)])
    assert kstest(without, "uniform").pvalue > 0.01
    assert (without < 0.00135).sum() <= 1
    found = np.array([global_p_value(seed, 100) for seed in range(4)])
    assert np.median(found) < 0.01
