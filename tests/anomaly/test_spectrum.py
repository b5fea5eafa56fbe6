"""The background in a window from a fit beside it: unbiased, with errors and p-values that mean what they say."""

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from sbi_physics.anomaly.falling import FallingFunction, fit_counts
from sbi_physics.anomaly.spectrum import fit_spectrum, goodness
from sbi_physics.core.errors import NonFiniteError, ShapeError, SupportError, UsageError

WINDOW = (3.0, 3.5)


def test_the_cms_spectrum_is_a_dijet_function(cms_dijet):
    edges, counts = cms_dijet
    fit = fit_spectrum(edges, counts, sqrt_s=13_000)
    assert len(counts) == 42
    assert 0.5 < fit.chi2 / fit.ndf < 1.5
    assert fit.ndf == 42 - fit.order
    assert 0.01 < fit.p_value < 0.99
    assert fit.chi2 == pytest.approx((fit.pulls**2).sum())
    for order in (3, 4, 5):
        only = fit_spectrum(edges, counts, sqrt_s=13_000, orders=(order,))
        assert only.order == order
        assert 0.5 < only.chi2 / only.ndf < 1.5
    # Twin: two parameters are not enough.
    assert fit_spectrum(edges, counts, sqrt_s=13_000, orders=(2,)).p_value < 1e-6
    assert fit_spectrum(edges, counts, sqrt_s=13_000, orders=(2, 3)).order == 3


def test_units_of_mass_do_not_matter(cms_dijet):
    edges, counts = cms_dijet
    one = fit_spectrum(edges, counts, sqrt_s=13_000, window=(3019, 3416))
    other = fit_spectrum(edges / 1000, counts, window=(3.019, 3.416))
    assert other.background.total == pytest.approx(one.background.total, rel=1e-6)
    assert other.background.uncertainty == pytest.approx(one.background.uncertainty, rel=1e-4)
    assert other.parameters[1:] == pytest.approx(one.parameters[1:], rel=1e-4)
    assert other.parameters[0] - one.parameters[0] == pytest.approx(np.log(1000), abs=1e-3)
    assert one.observed == counts[(edges[:-1] >= 3019) & (edges[1:] <= 3416)].sum()


def test_what_is_in_the_window_is_not_looked_at(falling):
    edges, share = falling()
    counts = np.random.default_rng(0).poisson(20_000 * share).astype(float)
    bumped = counts + 1000 * ((edges[:-1] >= 3.0) & (edges[1:] <= 3.5))
    fits = [fit_spectrum(edges, spectrum, window=WINDOW) for spectrum in (counts, bumped)]
    assert fits[1].background.total == pytest.approx(fits[0].background.total, rel=1e-3)
    assert fits[1].observed == fits[0].observed + 4000
    whole = [fit_spectrum(edges, spectrum) for spectrum in (counts, bumped)]
    assert whole[0].p_value > 0.01
    assert whole[1].p_value < 1e-6


def test_predictions_of_parts_add_up_with_their_errors(falling):
    edges, share = falling()
    fit = fit_spectrum(edges, 20_000 * share, window=WINDOW)
    parts = fit.predict(np.linspace(*WINDOW, 6))
    assert parts.total == pytest.approx(fit.background.total, rel=1e-6)
    assert parts.uncertainty == pytest.approx(fit.background.uncertainty, rel=1e-6)
    inside = (edges[:-1] >= 3.0 - 1e-9) & (edges[1:] <= 3.5 + 1e-9)
    assert parts.total == pytest.approx(20_000 * share[inside].sum(), rel=1e-3)


@pytest.mark.parametrize("events", [200, 20_000])
def test_goodness_is_uniform_for_few_and_for_many_events(falling, events):
    edges, share = falling()
    random = np.random.default_rng(1)
    counts = random.poisson(events * share, size=(500, len(share))).astype(float)
    binned = FallingFunction.orthonormal(edges, share, 3, 13.0).binned(edges)
    fits = fit_counts(binned, counts, np.ones(len(share)))
    expected = binned.integrals(fits.coefficients)[0].T
    p_values = [goodness(*row, 3) for row in zip(fits.deviance, expected, strict=True)]
    assert kstest(p_values, "uniform").pvalue > 0.01
    fit = fit_spectrum(edges, counts[0], orders=(3,))
    assert fit.p_value == pytest.approx(p_values[0], rel=1e-2)
    if events == 200:
        # Twin: a chi-square takes sparse bins for too good a fit.
        assert kstest(chi2.sf(fits.deviance, fit.ndf), "uniform").pvalue < 1e-4


def test_goodness_of_known_numbers():
    assert goodness(20.0, np.full(23, 1e6), 3) == pytest.approx(0.4579, abs=1e-3)  # chi-square of 20 at 20


@pytest.mark.parametrize("test", ["likelihood-ratio", "F"])
def test_the_order_grows_where_it_must(falling, test):
    edges, share = falling()
    random, toys, level = np.random.default_rng(2), 200, 0.05
    spectra = random.poisson(20_000 * share, size=(toys, len(share)))
    plain = [fit_spectrum(edges, counts, orders=(3, 4), level=level, test=test).order for counts in spectra]
    wrong = np.mean(np.array(plain) == 4)
    assert abs(wrong - level) < 4 * (level * (1 - level) / toys) ** 0.5
    middle = np.log(0.5 * (edges[1:] + edges[:-1]) / 13)
    bent = share * np.exp(-1.5 * (middle - middle.mean()) ** 2 * 3)
    bent = 200_000 * bent / bent.sum()
    assert all(fit_spectrum(edges, random.poisson(bent), test=test).order > 3 for _ in range(10))


def test_weighted_events_have_errors_of_their_own(falling):
    edges, share = falling()
    random, toys = np.random.default_rng(3), 100
    truth = 5000 * share[(edges[:-1] >= 3.0 - 1e-9) & (edges[1:] <= 3.5 + 1e-9)].sum()
    pulls, blind = [], []
    for _ in range(toys):
        # Four events in five have weight 2, the fifth -3: each is worth less than one.
        good, bad = random.poisson(0.8 * 5000 * share), random.poisson(0.2 * 5000 * share)
        counts, variances = 2.0 * good - 3.0 * bad, 4.0 * good + 9.0 * bad
        fit = fit_spectrum(edges, counts, variances=variances, window=WINDOW, orders=(3,))
        pulls.append((fit.background.total - truth) / fit.background.uncertainty)
        unweighted = fit_spectrum(edges, np.maximum(counts, 0), window=WINDOW, orders=(3,))
        blind.append((unweighted.background.total - truth) / unweighted.background.uncertainty)
    assert np.std(pulls) == pytest.approx(1, abs=5 * (0.5 / toys) ** 0.5)
    assert np.std(blind) > 1 + 5 * (0.5 / toys) ** 0.5


@pytest.mark.slow
def test_the_posterior_agrees_with_the_fit_where_events_are_many(falling):
    edges, share = falling()
    fit = fit_spectrum(edges, np.random.default_rng(4).poisson(20_000 * share), window=WINDOW, orders=(3,))
    samples = fit.posterior(steps=3000, seed=1, progress=False)
    assert samples.names == ("ln_p0", "p1", "p2", "background")
    assert samples.diagnostics["converged"]
    effective = samples.diagnostics["effective_sample_size"]
    mean, std = samples.values.mean(0).numpy(), samples.values.std(0).numpy()
    error = fit.background.uncertainty
    # The posterior of a count is skewed by about one event for each, above its maximum.
    assert mean[3] == pytest.approx(fit.background.total, abs=5 * error / effective**0.5 + 2)
    assert std[3] == pytest.approx(error, rel=5 * (0.5 / effective) ** 0.5 + 0.02)
    assert std[:3] == pytest.approx(np.sqrt(np.diag(fit.covariance)), rel=5 * (0.5 / effective) ** 0.5 + 0.02)
    again = fit.posterior(steps=50, seed=1, progress=False).values
    assert (again == fit.posterior(steps=50, seed=1, progress=False).values).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"counts": np.zeros(24)}, UsageError, "expected events"),
        ({"counts": -np.ones(24)}, UsageError, "none below 0"),
        ({"counts": np.full(24, np.nan)}, NonFiniteError, "counts"),
        ({"counts": np.ones(23)}, ShapeError, "expected 24"),
        ({"counts": np.eye(24)[:3].sum(0)}, UsageError, "more than 3 bins with events .* got 3"),
        ({"window": (2.2, 5.0), "counts": np.ones(24)}, UsageError, "outside the window .* got 1"),
        ({"window": (5.0, 6.0)}, UsageError, "within the edges 2 and 5"),
        ({"sqrt_s": 4.0}, SupportError, "below sqrt_s = 4"),
        ({"orders": (3, 6)}, UsageError, "from 2 to 5"),
        ({"orders": ()}, UsageError, "from 2 to 5"),
        ({"level": 0.0}, UsageError, "level"),
        ({"test": "t"}, UsageError, "likelihood-ratio"),
    ],
)
def test_wrong_input_is_one_clear_line(falling, change, error, words):
    edges, share = falling()
    given = {"counts": 1000 * share, **change}
    with pytest.raises(error, match=words) as caught:
        fit_spectrum(edges, given.pop("counts"), **given)
    assert "\n" not in str(caught.value)
