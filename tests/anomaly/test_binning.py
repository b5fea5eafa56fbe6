"""Spectra in bins: sums of weights, windows that are bins, and one clear line for each wrong input."""

import numpy as np
import pytest

from sbi_physics.anomaly.binning import (
    checked_counts,
    checked_edges,
    count_events,
    events_per_weight,
    overlapping_bins,
    sliding_windows,
    window_bins,
)
from sbi_physics.core.errors import NonFiniteError, ShapeError, SupportError, UsageError

EDGES = np.array([1.0, 2.0, 3.0, 5.0, 8.0])


def test_weights_are_summed_with_their_squares():
    mass = [1.5, 1.7, 2.5, 4.0, 9.0]
    counts, variances = count_events(mass, EDGES, [2.0, -1.0, 0.5, 3.0, 100.0])
    assert counts.tolist() == [1.0, 0.5, 3.0, 0.0]
    assert variances.tolist() == [5.0, 0.25, 9.0, 0.0]
    counts, variances = count_events(mass, EDGES)
    assert counts.tolist() == [2, 1, 1, 0]
    assert variances is None


def test_a_bin_of_weighted_events_is_worth_its_effective_events():
    weights = np.full(400, 0.25)
    counts, variances = count_events(np.linspace(1, 4.9, 400), EDGES, weights)
    assert events_per_weight(counts, variances) == pytest.approx(np.full(4, 4.0))
    assert events_per_weight(counts, None).tolist() == [1, 1, 1, 1]
    # Sparse bins, negative ones included, share one ratio, and it is positive.
    ratio = events_per_weight(np.array([100.0, 1.0, -1.0, 2.0]), np.array([50.0, 1.0, 1.0, 2.0]))
    assert ratio == pytest.approx([2.0, 0.5, 0.5, 0.5])
    assert (events_per_weight(np.array([100.0, -1.0, 0.0, 0.0]), np.array([100.0, 1.0, 0.0, 0.0])) > 0).all()


def test_windows_are_bins():
    assert window_bins(EDGES, (2.0, 5.0)).tolist() == [False, True, True, False]
    assert overlapping_bins(EDGES, (2.5, 4.0)).tolist() == [False, True, True, False]
    with pytest.raises(UsageError, match=r"ends that are edges .* 2.5 to 4; the bins there go from 2 to 5"):
        window_bins(EDGES, (2.5, 4.0))
    windows = sliding_windows(np.arange(11.0), (1, 3), margin=2)
    assert windows.tolist() == [[i, i + 1] for i in range(2, 8)] + [[i, i + 3] for i in range(2, 6)]
    assert sliding_windows(np.arange(11.0), (2,), step=2, margin=0).tolist() == [[i, i + 2] for i in (0, 2, 4, 6, 8)]
    with pytest.raises(UsageError, match="leave 2 bins on both sides of 4"):
        sliding_windows(EDGES, (1, 2))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: count_events([9.0, 10.0], EDGES), UsageError, "none of 2"),
        (lambda: count_events([2.0, np.nan], EDGES), NonFiniteError, "mass: expected finite"),
        (lambda: count_events([2.0, 3.0], EDGES, [1.0]), ShapeError, "one for each mass"),
        (lambda: count_events([2.0, 3.0], EDGES, [1.0, -1.0]), UsageError, "positive sum within the edges, got 0"),
        (lambda: checked_edges([1.0, 1.0, 2.0]), UsageError, "increase"),
        (lambda: checked_edges([1000.0, 2000.0], 13.0), SupportError, "below sqrt_s = 13"),
        (lambda: checked_edges([0.0, 2.0], 13.0), SupportError, "above 0"),
        (lambda: checked_counts([1.0, 2.0], 4), ShapeError, "one for each bin"),
        (lambda: checked_counts([1.0, -2.0], 2), UsageError, "need variances.*got -2 in bin 1"),
        (lambda: checked_counts([0.0, 0.0], 2), UsageError, "expected events in the spectrum"),
        (lambda: checked_counts([1.0, np.inf], 2), NonFiniteError, "counts"),
        (lambda: checked_counts([1.0, 1.0], 2, [1.0]), ShapeError, "variances: expected 2"),
        (lambda: checked_counts([1.0, 1.0], 2, [1.0, 0.0]), UsageError, "positive numbers where there are counts"),
        (lambda: overlapping_bins(EDGES, (0.5, 2.0)), UsageError, "within the edges 1 and 8, got 0.5 to 2"),
        (lambda: overlapping_bins(EDGES, (3.0, 2.0)), UsageError, "that increase"),
        (lambda: overlapping_bins(EDGES, 3.0), UsageError, "two masses"),
    ],
)
def test_wrong_input_is_one_clear_line(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
