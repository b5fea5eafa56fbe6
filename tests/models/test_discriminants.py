"""Coordinates of signal over noise: known answers, what they cannot see, and the same from the disk."""

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.models.discriminants import MOST_COORDINATES, Discriminants
from sbi_physics.models.embedding.build import build_encoder
from sbi_physics.store.disk_rows import DiskRows

N, D = 4000, 60


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted(x, theta):
    return Discriminants(x.shape[1:]).fit_given(x, theta)


def noise(seed=1, n=N):
    """Correlated, of different sizes."""
    white = torch.randn(n, D, generator=generator(seed))
    return (white + 0.7 * white.roll(1, 1)) * torch.linspace(0.5, 3.0, D)


def test_a_linear_signal_in_normal_noise_gives_the_sufficient_statistic():
    theta = torch.randn(N, 1, generator=generator())
    shape = torch.sin(torch.linspace(0.0, 6.0, D))
    x = 0.5 * theta * shape + noise()
    found = fitted(x, theta)
    weights = torch.linalg.solve(torch.cov(noise(3, 50_000).T).double(), shape.double())
    fresh = 0.5 * torch.randn(N, 1, generator=generator(4)) * shape + noise(5)
    pair = torch.stack([found(fresh)[:, 0].double(), fresh.double() @ weights])
    assert abs(float(torch.corrcoef(pair)[0, 1])) > 0.98
    assert int(found.found) <= 3
    assert found(fresh).shape == fresh.shape
    assert not found(fresh)[:, int(found.found) :].any()


def test_the_size_of_the_noise_is_seen_by_squares():
    scale = torch.randn(N, 1, generator=generator())
    x = torch.exp(0.5 * scale) * torch.randn(N, D, generator=generator(1))
    total = x.square().sum(1).log().double()
    powers = torch.stack([fitted(x, scale)(x)[:, 0].double() ** k for k in range(4)], 1)
    left = total - powers @ torch.linalg.lstsq(powers, total).solution
    assert float(left.var() / total.var()) < 0.1


def test_noise_alone_has_one_coordinate_and_no_more():
    found = fitted(noise(), torch.randn(N, 3, generator=generator(9)))
    assert int(found.found) == 1


def test_awkward_data():
    theta = torch.cat([torch.randn(N, 1, generator=generator()).exp() ** 3, torch.ones(N, 1)], 1)
    x = noise() + theta[:, :1].log()
    x[:, 3], x[:, 4] = 7.0, x[:, 5]
    x[:5] *= 1e6
    found = fitted(x.reshape(N, 6, 10), theta)(x.reshape(N, 6, 10))
    assert found.shape == (N, 6, 10)
    assert torch.isfinite(found).all()
    few = fitted(x[:30], theta[:30])
    assert torch.isfinite(few(x)).all()


def test_from_the_disk_it_is_the_same(tmp_path):
    theta = torch.randn(N, 2, generator=generator())
    x = noise() + theta @ torch.randn(2, D, generator=generator(2))
    rows = DiskRows.write(x.split(700), (D,), folder=tmp_path)
    assert torch.equal(fitted(x, theta).directions, fitted(rows, theta).directions)


def test_parameters_are_needed_and_entries_counted():
    with pytest.raises(
        UsageError, match="'discriminant' is for a posterior network of observations that are one array"
    ):
        Discriminants((D,)).fit(noise())
    with pytest.raises(ShapeError, match="at most 1024 entries for discriminants, got 1025"):
        build_encoder("discriminant", (1025,))
    encoder = build_encoder("discriminant", (300,))
    assert build_encoder(encoder.describe(), encoder.shape).describe() == encoder.describe()
    assert encoder.first.in_features == MOST_COORDINATES
    assert build_encoder("residual", (300,)).describe() == {
        "kind": "residual",
        "features": 32,
        "hidden": 64,
        "blocks": 2,
    }
