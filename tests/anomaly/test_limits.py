"""Upper limits against exact numbers, pyhf, and their coverage in toys."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import gamma, poisson

from sbi_physics.anomaly.limits import upper_limit
from sbi_physics.core.errors import UsageError

METHODS = ("marginal", "asymptotic")
CONSTRAINTS = ("gamma", "gaussian")


def test_nothing_seen_excludes_three_events():
    limit = upper_limit(0, [0.01, 3.0, 20.0])
    assert limit.observed == pytest.approx(np.full(3, -np.log(0.05)), abs=1e-6)
    assert upper_limit(0, 3.0, level=0.9).observed == pytest.approx(-np.log(0.1), abs=1e-6)
    # An uncertain background changes nothing where nothing was seen.
    assert upper_limit(0, 3.0, 1.0).observed == pytest.approx(-np.log(0.05), abs=1e-6)


def test_what_no_number_holds_is_no_limit():
    limit = upper_limit([0, 0], [2_000.0, 2.0], bands=False).observed
    assert np.isnan(limit[0])
    assert limit[1] == pytest.approx(-np.log(0.05), abs=1e-6)
    wide = upper_limit(1, 0.05, 0.2, constraint="lognormal")
    assert (np.diff(wide.expected) >= 0).all()
    assert np.isfinite(wide.observed)


def test_the_ratio_of_probabilities_at_the_limit():
    n, b = 7, 4.5
    limit = float(upper_limit(n, b).observed)
    assert poisson.cdf(n, limit + b) / poisson.cdf(n, b) == pytest.approx(0.05, abs=1e-6)
    median = float(upper_limit(n, b).expected[2])
    at = poisson.median(b)
    assert poisson.cdf(at, median + b) / poisson.cdf(at, b) == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize(("n", "b", "sigma"), [(0, 3.0, 1.0), (8, 3.0, 1.0), (35, 50.0, 7.0)])
def test_an_uncertain_background_gives_the_bayesian_limit_of_a_flat_prior(n, b, sigma):
    """The posterior of the signal beyond s is the ratio of probabilities, for each background and so for all."""
    background = gamma((b / sigma) ** 2 + 1, scale=sigma**2 / b)
    ends = background.ppf([1e-12, 1 - 1e-12])

    def beyond(s):
        # The integral of the Poisson probability over all larger signals.
        return quad(lambda at: background.pdf(at) * gamma(n + 1).sf(s + at), *ends, epsabs=1e-12, epsrel=1e-9)[0]

    limit = float(upper_limit(n, b, sigma, bands=False).observed)
    assert beyond(limit) / beyond(0.0) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_methods_agree_where_events_are_many(constraint):
    n, b = np.array([9_800, 10_000, 10_300]), 10_000.0
    sharp, other = (upper_limit(n, b, 60.0, method=method, constraint=constraint) for method in METHODS)
    assert sharp.observed == pytest.approx(other.observed, rel=0.01)
    assert sharp.expected == pytest.approx(other.expected, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_limits_grow_with_what_is_seen_and_with_what_is_not_known(method, constraint):
    more = upper_limit(np.arange(2, 30, 3), 10.0, 2.0, method=method, constraint=constraint)
    assert (np.diff(more.observed) > 0).all()
    assert (np.diff(more.expected, axis=-1) >= 0).all()
    wider = upper_limit(15, 10.0, [0.0, 2.0, 5.0], method=method, constraint=constraint)
    # What is expected comes in steps of a count, which may hide a small uncertainty.
    assert wider.expected[2, 2] > wider.expected[0, 2]
    assert wider.observed[2] > wider.observed[0]


def test_efficiency_scales_the_limit():
    plain = upper_limit([5, 12], 6.0, 1.0)
    assert upper_limit([5, 12], 6.0, 1.0, bands=False).expected.shape == (2, 0)
    cut = upper_limit([5, 12], 6.0, 1.0, efficiency=[0.5, 0.1])
    assert cut.observed == pytest.approx(plain.observed / [0.5, 0.1])
    assert cut.expected == pytest.approx(plain.expected / np.array([[0.5], [0.1]]))


@pytest.mark.parametrize("method", METHODS)
def test_a_true_signal_is_rarely_excluded(method):
    random, toys, b, sigma, signal = np.random.default_rng(5), 400, 50.0, 15.0, 25.0
    tau = b / sigma**2
    n, off = random.poisson(b + signal, toys), random.poisson(tau * b, toys)
    limits = upper_limit(n, off / tau, np.sqrt(off) / tau, method=method, bands=False).observed
    assert (limits < signal).mean() < 0.05 + 4 * (0.05 * 0.95 / toys) ** 0.5
    # Twin: limits that ignore the background's uncertainty exclude it too often.
    blind = upper_limit(n, off / tau, method=method, bands=False).observed
    assert (blind < signal).mean() > 0.05 + 4 * (0.05 * 0.95 / toys) ** 0.5


@pytest.mark.parametrize("method", METHODS)
def test_expected_limits_are_quantiles_of_those_of_toys(method):
    random, toys, b = np.random.default_rng(6), 4000, 300.0
    n, places = np.unique(random.poisson(b, toys), return_inverse=True)
    limits = upper_limit(n, b, method=method).observed[places]
    expected = upper_limit(300, b, method=method).expected
    for place, share in zip(expected, (0.0228, 0.1587, 0.5, 0.8413, 0.9772), strict=True):
        # Limits come in steps of one count, with a probability of at most 0.023 each.
        assert abs((limits < place).mean() - share) < 4 * (0.25 / toys) ** 0.5 + 0.023


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize(("n", "b", "sigma"), [(5, 3.0, 1.0), (90, 100.0, 10.0)])
def test_pyhf_finds_the_same_limits(n, b, sigma, constraint, pyhf_model):
    import pyhf

    model = pyhf_model(b, sigma, constraint)
    scan = pyhf.infer.intervals.upper_limits.toms748_scan
    observed, expected = scan([n, *model.config.auxdata], model, 0.001, 9.5, rtol=1e-5)
    found = upper_limit(n, b, sigma, method="asymptotic", constraint=constraint)
    assert found.observed == pytest.approx(20 * float(observed), rel=1e-3)
    assert found.expected == pytest.approx(20 * np.array(expected, dtype=float), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"level": 1.0}, "level"),
        ({"efficiency": 0.0}, "efficiency"),
        ({"efficiency": np.nan}, "efficiency"),
        ({"method": "profile"}, "marginal"),
        ({"constraint": "normal"}, "gamma"),
        ({"n": -1}, "n: expected"),
    ],
)
def test_wrong_input_is_one_clear_line(change, words):
    with pytest.raises(UsageError, match=words):
        upper_limit(**{"n": 1, "background": 1.0, **change})
