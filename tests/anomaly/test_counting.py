"""Counting experiments against exact probabilities, published numbers, pyhf, and toys."""

import numpy as np
import pytest
from scipy.stats import gamma, kstest, norm, poisson, truncnorm

from sbi_physics.anomaly.counting import (
    asimov_significance,
    discovery_p_value,
    discovery_significance,
    p_value_of,
    significance_of,
)
from sbi_physics.anomaly.marginal import Counts, Marginal
from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError

CONSTRAINTS = ("gamma", "gaussian")


def test_significances_and_p_values_are_each_others_inverse():
    z = np.array([-3.0, 0.0, 1.0, 5.0, 20.0])
    assert significance_of(p_value_of(z)) == pytest.approx(z, abs=1e-9)
    assert significance_of([0.0, 0.5, 1.0]).tolist() == [np.inf, 0.0, -np.inf]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_background_that_is_known_leaves_poisson(constraint):
    n, b = np.array([0, 1, 3, 12, 130, 1_000_300]), np.array([2.0, 0.01, 1.0, 3.0, 100.0, 1e6])
    assert discovery_p_value(n, b, constraint=constraint) == pytest.approx(poisson.sf(n - 1, b), rel=1e-4)
    expected = np.sign(n - b) * np.sqrt(2 * (np.where(n > 0, n * np.log(np.maximum(n, 1) / b), 0) - n + b))
    assert discovery_significance(n, b, constraint=constraint) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_published_numbers():
    # Cousins, Linnemann and Tucker, physics/0702156, Table 1: n_on, n_off, tau, Z_Bi, and the profile likelihood's Z.
    for n, off, tau, z_bi, z_pl in (
        (4, 5, 5.0, 1.66, 1.95),
        (6, 18.78, 14.44, 2.63, 2.81),
        (9, 17.83, 4.69, 1.82, 1.99),
        (17, 40.11, 10.56, 4.46, 4.57),
        (50, 55, 2.0, 2.93, 3.02),
        (67, 15, 0.5, 2.89, 3.04),
        (200, 10, 0.1, 2.20, 2.38),
    ):
        given = (n, off / tau, off**0.5 / tau)
        assert float(significance_of(discovery_p_value(*given))) == pytest.approx(z_bi, abs=0.006)
        assert float(discovery_significance(*given)) == pytest.approx(z_pl, abs=0.006)


def test_the_marginal_p_value_is_the_average_over_the_posterior():
    n, b, sigma = 14, 6.0, 1.8
    shape, rate = (b / sigma) ** 2 + 1, b / sigma**2
    draws = gamma.rvs(shape, scale=1 / rate, size=400_000, random_state=1)
    chances = poisson.sf(n - 1, draws)
    assert discovery_p_value(n, b, sigma) == pytest.approx(chances.mean(), abs=5 * chances.std() / 400_000**0.5)
    draws = truncnorm.rvs(-b / sigma, np.inf, loc=b, scale=sigma, size=400_000, random_state=2)
    chances = poisson.sf(n - 1, draws)
    found = discovery_p_value(n, b, sigma, constraint="gaussian")
    assert found == pytest.approx(chances.mean(), abs=5 * chances.std() / 400_000**0.5)


@pytest.mark.parametrize(
    ("n", "b", "sigma"), [(14, 6.0, 1.8), (2, 0.05, 0.2), (3_000, 2_500.0, 300.0), (40, 20.0, 9.0)]
)
@pytest.mark.parametrize("constraint", ["gamma", "gaussian", "lognormal"])
def test_the_quadrature_is_exact_whichever_is_wider(n, b, sigma, constraint):
    uniform = (np.arange(400_000) + 0.5) / 400_000
    backgrounds = {
        "gamma": gamma.ppf(uniform, (b / sigma) ** 2 + 1, scale=sigma**2 / b),
        "gaussian": truncnorm.ppf(uniform, -b / sigma, np.inf, loc=b, scale=sigma),
        "lognormal": b * np.exp(sigma / b * norm.ppf(uniform)),
    }[constraint]
    marginal = Marginal(Counts(*(np.array([value]) for value in (n, b, sigma))), constraint)
    exact = poisson.sf(n - 1, backgrounds).mean()
    assert float(marginal.at_least(np.array([float(n)]))[0]) == pytest.approx(exact, rel=5e-3)
    assert float(discovery_p_value(n, b, sigma, constraint=constraint)) == pytest.approx(exact, rel=5e-3)
    for signal in (0.0, 0.3 * n, 2.0 * n):
        exact = poisson.cdf(n, signal + backgrounds).mean()
        found = marginal.at_most(np.array([float(n)]))(np.array([signal]))[0]
        assert found == pytest.approx(exact, rel=5e-3, abs=1e-6)


def test_the_asimov_significance():
    s, b, sigma = 30.0, 100.0, 8.0
    # arXiv:1007.1727, Eq. 97, for a background that is known.
    assert asimov_significance(s, b) == pytest.approx((2 * ((s + b) * np.log(1 + s / b) - s)) ** 0.5, rel=1e-5)
    n, variance = s + b, sigma**2
    known = (
        n * np.log(n * (b + variance) / (b**2 + n * variance))
        - b**2 / variance * np.log(1 + variance * s / (b * (b + variance)))
    ) * 2
    assert asimov_significance(s, b, sigma) == pytest.approx(known**0.5, rel=1e-9)
    assert asimov_significance(s, b, sigma) < asimov_significance(s, b)


def test_p_values_are_uniform_where_the_background_is_measured():
    random, toys, b, sigma = np.random.default_rng(3), 4000, 400.0, 30.0
    n = random.poisson(b, toys)
    tau = b / sigma**2
    off = random.poisson(tau * b, toys)
    for constraint in CONSTRAINTS:
        for method in ("marginal", "profile"):
            p = discovery_p_value(n, off / tau, np.sqrt(off) / tau, method=method, constraint=constraint)
            # Counts come in steps, each with a probability of at most 0.02.
            assert kstest(p, "uniform").statistic < 1.95 / toys**0.5 + 0.02
    # Twin: the uncertainty of the background left out.
    assert kstest(discovery_p_value(n, off / tau), "uniform").statistic > 1.95 / toys**0.5 + 0.02


def test_z_bi_never_claims_too_much_for_few_events():
    random, toys, tau = np.random.default_rng(4), 100_000, 2.0
    n, off = random.poisson(5.0, toys), np.maximum(random.poisson(5.0 * tau, toys), 1e-3)
    p = discovery_p_value(n, off / tau, np.sqrt(off) / tau)
    for level in (0.05, 0.01, 0.00135):
        assert (p <= level).mean() < level + 4 * (level / toys) ** 0.5
    # Twin: a background taken as known does.
    assert (discovery_p_value(n, off / tau) <= 0.05).mean() > 0.05 + 4 * (0.05 / toys) ** 0.5


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("method", ["marginal", "profile"])
def test_windows_together_as_one_by_one(constraint, method):
    n, b = np.array([[3, 10], [0, 60]]), np.array([2.0, 40.0])
    together = discovery_p_value(n, b, 0.2 * b, method=method, constraint=constraint)
    assert together.shape == (2, 2)
    for i in range(2):
        for j in range(2):
            alone = discovery_p_value(n[i, j], b[j], 0.2 * b[j], method=method, constraint=constraint)
            assert alone == pytest.approx(together[i, j], rel=1e-12)
    assert discovery_p_value(0, 5.0, 1.0, method=method, constraint=constraint) == pytest.approx(1, abs=0.01)


def test_far_tails_keep_their_digits():
    assert float(discovery_significance(600, 100.0, 10.0)) == pytest.approx(
        float(significance_of(discovery_p_value(600, 100.0, 10.0))), abs=0.2
    )
    narrow = discovery_p_value([600], 100.0, 1e-3, constraint="gaussian")
    assert narrow == pytest.approx(poisson.sf(599, 100.0), rel=1e-2)
    assert norm.isf(narrow[0]) > 30


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((-1, 2.0), UsageError, "n: expected counts of at least 0"),
        ((1, 0.0), UsageError, "background: expected positive"),
        ((1, 1.0, -1.0), UsageError, "uncertainty"),
        ((1, np.nan), NonFiniteError, "background"),
        (([1, 2], [1.0, 2.0, 3.0]), ShapeError, "go together"),
    ],
)
def test_wrong_input_is_one_clear_line(given, error, words):
    with pytest.raises(error, match=words):
        discovery_p_value(*given)
    with pytest.raises(UsageError, match="method"):
        discovery_p_value(1, 1.0, method="exact")
    with pytest.raises(UsageError, match="constraint"):
        discovery_significance(1, 1.0, constraint="normal")


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize(("n", "b", "sigma"), [(5, 3.0, 1.0), (150, 100.0, 10.0), (60, 50.0, 25.0)])
def test_pyhf_finds_the_same_p_value(n, b, sigma, constraint, pyhf_model):
    import pyhf

    model = pyhf_model(b, sigma, constraint)
    found = pyhf.infer.hypotest(0.0, [n, *model.config.auxdata], model, test_stat="q0")
    assert discovery_p_value(n, b, sigma, method="profile", constraint=constraint) == pytest.approx(
        float(found), rel=1e-4
    )
