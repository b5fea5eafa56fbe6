"""Histograms and distances say whether two samples are alike, and whether two variables are independent."""

import numpy as np
import torch
from scipy.stats import chi2

from sbi_physics.anomaly.closure import distance_correlation, histogram_pulls


def normal(n, dims, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dims, generator=generator, dtype=torch.float64)


def test_pulls_of_equal_distributions_are_standard_normal():
    for dims in (1, 2):
        found = histogram_pulls(normal(20_000, dims, 1), normal(60_000, dims, 2))
        assert 1e-3 < chi2.sf(found.chi2, found.ndf) < 0.999
        assert found.data.sum() == 20_000
        assert abs(found.template.sum() - 20_000) < 1e-6
        moved = histogram_pulls(normal(20_000, dims, 1) + 0.1, normal(60_000, dims, 2))
        assert chi2.sf(moved.chi2, moved.ndf) < 1e-6


def test_a_correlation_is_seen_in_pairs_alone():
    x, y = normal(20_000, 2, 1), normal(20_000, 2, 2)
    correlated = torch.stack([y[:, 0], 0.5 * y[:, 0] + 0.75**0.5 * y[:, 1]], 1)
    assert chi2.sf(histogram_pulls(x[:, [1]], correlated[:, [1]]).chi2, 19) > 1e-3
    pair = histogram_pulls(x, correlated)
    assert pair.chi2 > 10 * pair.ndf


def test_weights_of_data_are_counted():
    x, template = normal(20_000, 1, 1), normal(60_000, 1, 2)
    weights = torch.where(x[:, 0] > 0, 2.0, 1.0).double()
    kept = torch.cat([x, x[x[:, 0] > 0]])
    assert np.allclose(histogram_pulls(x, template, weights).data, histogram_pulls(kept, template).data)


def test_distance_correlation():
    x = normal(1500, 1, 1)[:, 0]
    other = normal(1500, 1, 2)[:, 0]
    assert distance_correlation(x, other) < 0.08
    assert distance_correlation(x, x**2) > 0.4
    assert abs(float(torch.corrcoef(torch.stack([x, x**2]))[0, 1])) < 0.1
    assert distance_correlation(x, 3 * x - 1) > 0.999
    assert distance_correlation(x, torch.zeros_like(x)) == 0.0
    many = normal(5000, 1, 3)[:, 0]
    assert distance_correlation(many, many) > 0.999
