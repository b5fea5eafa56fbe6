"""Distances in the cloud of simulations against closed forms, and where the covariance is singular."""

import numpy as np
import pytest

from sbi_physics.diagnostics.cloud import fit_cloud


def normal(n, dims, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dims))


MIX = np.array([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [0.0, -2.0, 5.0]])


def test_many_rows_give_the_mahalanobis_distance():
    rows = normal(50_000, 3) @ MIX.T + [1.0, 2.0, 3.0]
    points = normal(20, 3, seed=1) @ MIX.T * 2 + [1.0, 2.0, 3.0]
    precision = np.linalg.inv(MIX @ MIX.T)
    offset = points - [1.0, 2.0, 3.0]
    expected = np.sqrt(np.einsum("np,pq,nq->n", offset, precision, offset))
    np.testing.assert_allclose(fit_cloud(rows).distance(points), expected, rtol=0.03)


def test_residuals_are_those_of_regression_on_the_others():
    rows = normal(50_000, 3) @ MIX.T
    points = normal(20, 3, seed=1) @ MIX.T * 2
    found = fit_cloud(rows).residuals(points)
    for j in range(3):
        others = [i for i in range(3) if i != j]
        slope = np.linalg.lstsq(rows[:, others], rows[:, j], rcond=None)[0]
        left = rows[:, j] - rows[:, others] @ slope
        np.testing.assert_allclose(found[:, j], (points[:, j] - points[:, others] @ slope) / left.std(), atol=0.1)


def test_units_do_not_matter():
    rows, points, units = normal(500, 4), normal(5, 4, seed=1), np.array([1e-20, 1.0, 1e6, 1e15])
    np.testing.assert_allclose(fit_cloud(rows * units).distance(points * units), fit_cloud(rows).distance(points))
    one, other = fit_cloud(rows), fit_cloud(rows * units)
    np.testing.assert_allclose(
        other.neighbour_distance(points * units, rows * units, 3), one.neighbour_distance(points, rows, 3), rtol=1e-6
    )


@pytest.mark.parametrize("n", [20, 200])
def test_more_observables_than_rows(n):
    """Both ways to the principal directions: the covariance is invertible, and a far point is far."""
    cloud = fit_cloud(normal(n, 100))
    near, far = normal(50, 100, seed=1), normal(50, 100, seed=1) + 3.0
    assert np.isfinite(cloud.distance(near)).all()
    assert cloud.distance(far).min() > cloud.distance(near).max()


def test_the_smaller_product_gives_the_same_directions():
    wide = normal(40, 39) * np.linspace(1, 3, 39)
    both = [fit_cloud(wide), fit_cloud(np.concatenate([wide, wide]))]  # 40 and 80 rows: n < and > 2 F
    points = normal(5, 39, seed=1)
    assert both[0].basis.shape == both[1].basis.shape == (39, 39)
    assert np.isfinite([cloud.distance(points) for cloud in both]).all()


def test_kth_neighbour_by_hand():
    rows = np.array([[0.0], [1.0], [3.0], [10.0]])
    cloud = fit_cloud(rows)
    found = cloud.neighbour_distance(np.array([[2.0]]), rows, 3)
    np.testing.assert_allclose(found, 2.0 / rows.std())


def test_what_never_varies_must_not_differ():
    rows = normal(100, 3)
    rows[:, 1] = 7.0
    cloud = fit_cloud(rows)
    points = np.array([[0.0, 7.0, 0.0], [0.0, 7.0 * (1 + 1e-9), 0.0], [0.0, 7.1, 0.0], [0.0, 6.9, 0.0]])
    assert np.isinf(cloud.distance(points)).tolist() == [False, False, True, True]
    assert np.isinf(cloud.neighbour_distance(points, rows, 1)).tolist() == [False, False, True, True]
    assert cloud.residuals(points)[:, 1].tolist() == [0.0, 0.0, np.inf, -np.inf]


def test_missing_entries_count_as_the_mean_and_are_made_up_for():
    rows = normal(20_000, 50)
    cloud = fit_cloud(rows)
    points = normal(200, 50, seed=1)
    holes = np.where(np.arange(50) < 20, np.nan, points)
    full, partial = cloud.distance(points), cloud.distance(holes)
    assert abs(partial.mean() / full.mean() - 1) < 0.02
    assert np.isnan(cloud.residuals(holes)[:, :20]).all()
    assert np.isfinite(cloud.residuals(holes)[:, 20:]).all()
    rows[::3, 5] = np.nan
    np.testing.assert_allclose(fit_cloud(rows).distance(points), full, rtol=0.02)
