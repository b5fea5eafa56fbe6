"""Quantile maps are Gaussian, invertible, and know their Jacobian."""

import pytest
import torch
from scipy.stats import kstest

from sbi_physics.anomaly.feature_map import QuantileMap, data_bounds


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    return torch.stack([x[:, 0].exp(), torch.sigmoid(2 * x[:, 1]), x[:, 2] ** 3], 1)


def test_there_and_back(features):
    found = QuantileMap().fit(features)
    z, _ = found.forward(features)
    assert torch.allclose(found.inverse(z), features, rtol=1e-8, atol=1e-8)
    far = torch.tensor([[-5.0, -3.0, -99.0], [50.0, 2.0, 99.0]], dtype=torch.float64)
    assert torch.allclose(found.inverse(found.forward(far)[0]), far, rtol=1e-9)


def test_each_feature_is_gaussian(features):
    z, _ = QuantileMap().fit(features[::2]).forward(features[1::2])
    assert all(kstest(column.numpy(), "norm").pvalue > 1e-3 for column in z.T)
    assert all(kstest(column.numpy(), "norm").pvalue < 1e-9 for column in features.T)


def test_the_jacobian(features):
    found, step = QuantileMap().fit(features), 1e-7
    x = torch.cat([features[:200], torch.tensor([[-1.0, -1.0, -60.0], [40.0, 1.5, 60.0]])])
    numeric = torch.zeros(len(x), dtype=torch.float64)
    for i in range(3):
        moved = torch.zeros(3, dtype=torch.float64)
        moved[i] = step
        slope = (found.forward(x + moved)[0] - found.forward(x - moved)[0])[:, i] / (2 * step)
        numeric += slope.log()
    assert torch.allclose(found.forward(x)[1], numeric, atol=1e-4)


def test_a_feature_of_few_values_is_mapped_monotonically():
    x = torch.tensor([0.0, 1.0]).repeat(50).unsqueeze(1).double()
    z, _ = QuantileMap().fit(x).forward(x)
    assert float(z[0, 0]) < float(z[1, 0])


def test_bounds_are_around_the_data(features):
    bounds = data_bounds(features)
    assert bool((bounds[:, 0] < features.amin(0)).all())
    assert bool((bounds[:, 1] > features.amax(0)).all())
