"""The bump hunt: uniform p-values without a signal, small ones with it, and the published null result of CMS."""

import numpy as np
import pytest
from scipy.stats import kstest, norm

from sbi_physics.anomaly.binning import sliding_windows
from sbi_physics.anomaly.bump_hunt import bump_hunt
from sbi_physics.anomaly.spectrum import fit_spectrum
from sbi_physics.core.errors import BudgetError, NonFiniteError, ShapeError, UsageError

FAST = {"widths": (2,), "orders": (3,), "progress": False}


def bump(edges, events, mean=3.5, width=0.08):
    return events * np.diff(norm.cdf(edges, mean, width))


def test_cms_saw_no_bump(cms_dijet):
    edges, counts = cms_dijet
    found = bump_hunt(edges, counts, widths=(2, 3), sqrt_s=13_000, toys=300, progress=False)
    assert len(found.windows) == 37 + 36
    assert found.global_significance < 3
    assert found.local_significances.max() < 3
    assert 0.5 < found.fit.chi2 / found.fit.ndf < 1.5
    assert found.unconverged == 0
    assert "global" in found.verdict


def test_windows_are_fitted_as_one_would_fit_them_alone(falling):
    edges, share = falling()
    counts = np.random.default_rng(0).poisson(20_000 * share)
    found = bump_hunt(edges, counts, toys=0, progress=False)
    assert len(found.windows) == len(sliding_windows(edges))
    for i in (0, 11, 40):
        fit = fit_spectrum(edges, counts, window=tuple(found.windows[i]))
        row = found.table()[i]
        assert row["observed"] == fit.observed
        assert row["expected"] == pytest.approx(fit.background.total, rel=1e-3)
        assert row["uncertainty"] == pytest.approx(fit.background.uncertainty, rel=1e-2)
        assert row["order"] == fit.order
    assert found.global_p_value == 1


def test_an_injected_bump_is_found_where_it_is(falling):
    edges, share = falling()
    random = np.random.default_rng(1)
    counts = random.poisson(20_000 * share + bump(edges, 350))
    found = bump_hunt(edges, counts, toys=200, **FAST)
    low, high = found.best_window
    assert low < 3.5 < high
    assert found.local_significances.max() > 4
    assert found.exceeding == 0
    assert found.global_p_value == 1 / 201
    assert "at least" in found.verdict


def test_a_signal_beyond_all_numbers_is_found_too(falling):
    edges, share = falling()
    found = bump_hunt(edges, 20_000 * share + bump(edges, 8_000), toys=20, **FAST)
    assert found.local_p_values.min() == 0
    assert found.best_window == pytest.approx((3.375, 3.625))
    assert found.global_p_value == pytest.approx(1 / 21)


@pytest.mark.slow
def test_power_grows_with_the_signal(falling):
    edges, share = falling()
    random, level, searches = np.random.default_rng(2), 0.05, 12
    power = []
    for events in (0, 150, 400):
        counts = random.poisson(20_000 * share + bump(edges, events), size=(searches, len(share)))
        p = [bump_hunt(edges, row, toys=39, seed=i, **FAST).global_p_value for i, row in enumerate(counts)]
        power.append(np.mean(np.array(p) <= level))
    assert power[0] < 0.05 + 4 * (level / searches) ** 0.5
    assert power[0] < power[1] < power[2] or power[1] == power[2] == 1
    assert power[2] > 0.9


@pytest.mark.slow
def test_global_p_values_are_uniform_without_a_signal(falling):
    edges, share = falling(16)
    random, searches = np.random.default_rng(3), 60
    spectra = random.poisson(5_000 * share, size=(searches, len(share)))
    found = [bump_hunt(edges, row, toys=59, seed=i, **FAST) for i, row in enumerate(spectra)]
    assert kstest([one.global_p_value for one in found], "uniform").pvalue > 0.01
    local = np.concatenate([one.local_p_values for one in found])
    # Windows of one spectrum overlap: at most half of them count as independent.
    assert abs((local < 0.05).mean() - 0.05) < 4 * (0.05 * 0.95 / (len(local) / 2)) ** 0.5
    # Twin: a background that bends, fitted by a function that cannot.
    middle = 0.5 * (edges[1:] + edges[:-1])
    bent = share * np.exp(-0.5 * (middle - 3.2) ** 2)
    spectra = random.poisson(5_000 * bent / bent.sum(), size=(searches, len(share)))
    wrong = [bump_hunt(edges, row, toys=59, seed=i, **{**FAST, "orders": (2,)}) for i, row in enumerate(spectra)]
    assert kstest([one.global_p_value for one in wrong], "uniform").pvalue < 0.01


def test_the_global_p_value_counts_pseudo_experiments(falling):
    edges, share = falling()
    found = bump_hunt(edges, np.random.default_rng(4).poisson(5_000 * share), toys=300, **FAST)
    below = (found.toy_p_values <= found.local_p_values.min()).sum()
    assert found.global_p_value == (below + 1) / 301
    assert found.global_p_error == pytest.approx((found.global_p_value * (1 - found.global_p_value) / 300) ** 0.5)
    assert found.global_p_value > found.local_p_values.min()


def test_the_same_seed_gives_the_same_bytes(falling):
    edges, share = falling()
    counts = np.random.default_rng(5).poisson(5_000 * share)
    one, again, other = (bump_hunt(edges, counts, toys=40, seed=seed, **FAST) for seed in (7, 7, 8))
    assert (one.toy_p_values == again.toy_p_values).all()
    assert (one.toy_p_values != other.toy_p_values).any()


def test_weighted_events_are_hunted_with_their_own_errors(falling):
    edges, share = falling()
    random = np.random.default_rng(6)
    good, bad = random.poisson(0.8 * 20_000 * share), random.poisson(0.2 * 20_000 * share)
    counts, variances = 2.0 * good - 3.0 * bad, 4.0 * good + 9.0 * bad
    found = bump_hunt(edges, counts, variances=variances, toys=99, **FAST)
    assert found.global_p_value > 0.01
    # Twin: as if each unit of weight were an event.
    blind = bump_hunt(edges, np.maximum(counts, 0), toys=99, **FAST)
    assert blind.local_significances.std() > 1.3 * found.local_significances.std()


def test_few_events_are_no_trouble(falling):
    edges, share = falling(24, 2.0, 6.0)
    counts = np.random.default_rng(7).poisson(80 * share)
    found = bump_hunt(edges, counts, toys=99, widths=(2,), progress=False)
    assert found.unconverged < 0.01
    assert np.isfinite(found.toy_p_values).all()
    assert found.global_p_value > 0.01


def test_the_budget_ends_it(falling):
    edges, share = falling()
    short = bump_hunt(edges, 5_000 * share, toys=100_000, max_seconds=0.5, **FAST)
    assert 0 < len(short.toy_p_values) < 100_000
    with pytest.raises(BudgetError, match="no pseudo-experiment"):
        bump_hunt(edges, 5_000 * share, max_seconds=0.0, **FAST)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"counts": np.zeros(24)}, UsageError, "expected events"),
        ({"counts": np.full(24, np.nan)}, NonFiniteError, "counts"),
        ({"windows": [(3.0, 3.3)]}, UsageError, "ends that are edges"),
        ({"windows": [(5.0, 6.0)]}, UsageError, "within the edges"),
        ({"windows": [(2.0, 5.0)]}, UsageError, "outside the window 2 to 5"),
        ({"windows": [1.0, 2.0, 3.0]}, ShapeError, r"\(W, 2\)"),
        ({"windows": "all"}, UsageError, "pairs of masses"),
        ({"widths": (30,)}, UsageError, "leave 2 bins"),
        ({"toys": -1}, UsageError, "toys"),
        ({"orders": (1,)}, UsageError, "from 2 to 5"),
    ],
)
def test_wrong_input_is_one_clear_line(falling, change, error, words):
    edges, share = falling()
    given = {"counts": 1000 * share, "progress": False, "toys": 1, **change}
    with pytest.raises(error, match=words) as caught:
        bump_hunt(edges, given.pop("counts"), **given)
    assert "\n" not in str(caught.value)
