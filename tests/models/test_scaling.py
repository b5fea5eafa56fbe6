"""Scaling: whitened contexts are uncorrelated, an event is scaled by the ladj it states, odd data stay finite."""

import pytest
import torch
from torch import nn

from sbi_physics.core.errors import UsageError
from sbi_physics.models.build import Architecture, build_density
from sbi_physics.models.scaling import Standardise, Whiten


def correlated(n: int, features: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator)
    return 7 + 100 * torch.randn(n, features, generator=generator) @ mixing


def test_whitened_data_have_unit_covariance():
    data = correlated(4_000)
    white = Whiten((5,)).fit(data)(data)
    torch.testing.assert_close(white.mean(0), torch.zeros(5), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(5), rtol=0, atol=2e-3)


def test_uncorrelated_features_are_left_where_they_are():
    data = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 10.0, 0.1, 3.0])
    torch.testing.assert_close(Whiten((4,)).fit(data)(data), Standardise((4,)).fit(data)(data), rtol=0, atol=0.05)


def test_a_weak_residual_under_a_strong_signal_comes_out_at_the_scale_of_one():
    generator = torch.Generator().manual_seed(2)
    signal, residual = torch.randn(10_000, 1, generator=generator), torch.randn(10_000, 2, generator=generator)
    data = signal + 1e-2 * residual
    white = Whiten((2,)).fit(data)(data)
    difference = white @ torch.tensor([1.0, -1.0]) / 2**0.5
    assert abs(torch.corrcoef(torch.stack([difference, residual @ torch.tensor([1.0, -1.0])]))[0, 1]) > 0.999
    assert difference.std() == pytest.approx(1, abs=0.02)


def test_too_few_events_are_only_standardised():
    data = correlated(99)
    torch.testing.assert_close(Whiten((5,)).fit(data)(data), Standardise((5,)).fit(data)(data))


def test_constant_and_dependent_features_stay_finite():
    data = correlated(1_000)
    data[:, 1] = 4.0
    data[:, 3] = data[:, 0] - data[:, 2]
    white = Whiten((5,)).fit(data)(data)
    assert white.isfinite().all()
    assert white.abs().max() < 100


def test_the_shape_of_a_context_is_kept():
    data = correlated(1_000, 6).reshape(1_000, 2, 3)
    whiten = Whiten((2, 3)).fit(data)
    assert whiten(data).shape == (1_000, 2, 3)
    assert whiten(data[0]).shape == (2, 3)
    torch.testing.assert_close(whiten(data[0]), whiten(data)[0], rtol=1e-4, atol=1e-4)


def test_an_embedding_network_sees_the_structure_of_its_context():
    architecture = Architecture("nsf", (1,), (5,), embedding=True)
    bounds = torch.tensor([[-torch.inf, torch.inf]])
    density = build_density(architecture, bounds=bounds, embedding=nn.Linear(5, 2))
    data = correlated(4_000)
    density.fit_scaling(torch.randn(4_000, 1), data)
    torch.testing.assert_close(density.context_scaling(data), Standardise((5,)).fit(data)(data))


def test_shared_axes_have_one_mean_and_scale():
    data = correlated(500, 12).reshape(500, 2, 3, 2)
    scaling = Standardise((2, 3, 2), shared=(1,)).fit(data)
    assert scaling.mean.shape == scaling.scale.shape == (2, 1, 2)
    flat = data.movedim(2, 1).reshape(-1, 2, 2)
    torch.testing.assert_close(scaling(data).movedim(2, 1).reshape(-1, 2, 2), Standardise((2, 2)).fit(flat)(flat))
    torch.testing.assert_close(scaling.inverse(scaling(data)), data)
    each = torch.autograd.functional.jacobian(scaling, data[0]).reshape(12, 12)
    torch.testing.assert_close(scaling.ladj, torch.linalg.slogdet(each).logabsdet)


def test_missing_entries_count_in_no_statistic():
    data = correlated(600, 3)
    data[:100, 0] = data[100:, 2] = torch.nan
    scaling = Standardise((3,)).fit(data)
    for column in range(3):
        there = data[~data[:, column].isnan(), column, None]
        expected = Standardise((1,)).fit(there)
        torch.testing.assert_close(scaling.mean[column], expected.mean[0])
        torch.testing.assert_close(scaling.scale[column], expected.scale[0])
    assert torch.equal(scaling(data).isnan(), data.isnan())


def test_a_feature_that_is_never_there_is_left_alone():
    data = correlated(50, 2)
    data[:, 1] = torch.nan
    scaling = Standardise((2,)).fit(data)
    assert (float(scaling.mean[1]), float(scaling.scale[1])) == (0.0, 1.0)


def test_an_axis_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"shared: expected axes from 0 to 1, got \(2,\)"):
        Standardise((3, 2), shared=(2,))
