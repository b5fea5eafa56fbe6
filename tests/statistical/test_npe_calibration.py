"""A trained posterior passes its own calibration; the same posterior, made too narrow or too wide, does not."""

import pytest

import sbi_physics as sp

pytestmark = pytest.mark.slow

N, DRAWS = 1000, 256


def checked(posterior, fresh):
    options = {"draws": DRAWS, "seed": 14}
    return sp.diagnostics.sbc(posterior, *fresh, **options), sp.diagnostics.coverage(posterior, *fresh, **options)


def test_a_trained_posterior_is_calibrated(posterior, fresh):
    ranks, expected = checked(posterior, fresh)
    assert ranks.passed, ranks.verdict
    assert expected.passed, expected.verdict
    # Four binomial standard deviations of a share of 0.683 among 1,000: 0.059.
    assert ((ranks.coverage_68 - 0.683).abs() < 4 * (0.683 * 0.317 / N) ** 0.5).all()


@pytest.mark.parametrize(("factor", "kind"), [(0.6, "over-confident"), (1.6, "under-confident")])
def test_its_twin_of_a_wrong_width_flunks(factor, kind, posterior, fresh, rescaled):
    ranks, expected = checked(rescaled(posterior, factor), fresh)
    assert ranks.kinds == (kind, kind)
    assert not expected.passed
    assert all(f"{kind} in {name}" in expected.verdict for name in expected.names)


def test_the_joint_region_of_highest_density_covers(posterior, fresh):
    theta, x = fresh
    draws = posterior.sample(DRAWS, x, seed=15).values
    inside = posterior.log_prob(draws.movedim(0, 1), x).T
    expected = sp.diagnostics.highest_density_coverage(inside, posterior.log_prob(theta, x), seed=16)
    assert expected.passed, expected.verdict
