"""Reliability of probabilities that are right, and of twins that are too sure or not sure enough."""

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.diagnostics.probabilities import reliability


def events(n=1000, sharpness=1.0, classes=3, seed=0):
    """Probabilities of classes, sharpened after the classes were drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(n, classes, generator=generator).double()
    label = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)[:, 0]
    return torch.softmax(sharpness * logits, 1), label


@pytest.mark.parametrize("seed", range(3))
def test_right_probabilities_pass(seed):
    result = reliability(*events(seed=seed), ["a", "b", "c"], level=1e-3)
    assert result.passed
    assert result.verdict.startswith("calibrated")
    assert abs(result.over_confidence) < 4 * 0.5 / 1000**0.5
    # Bars of 4.5 standard deviations, 30 of them.
    assert ((result.observed - result.predicted).abs() < 4.5 * result.error).all()
    assert result.calibration_error == pytest.approx(result.expected, abs=5 * result.calibration_error_spread)


@pytest.mark.parametrize(("sharpness", "word"), [(1.6, "over-confident"), (0.5, "under-confident")])
def test_wrong_probabilities_flunk(sharpness, word):
    result = reliability(*events(sharpness=sharpness))
    assert not result.passed
    assert result.verdict.startswith(word)
    assert result.calibration_error > 2 * result.expected
    assert result.names == ("class_0", "class_1", "class_2")


def test_the_error_by_hand():
    """Ten events in each of ten bins, all given 0.3 of the first class, six of ten of which are of it."""
    share = torch.tensor([[0.3, 0.7]]).repeat(100, 1)
    label = (torch.arange(100) % 10 >= 6).long()
    result = reliability(share, label, bins=1)
    assert result.calibration_error == pytest.approx(0.3, abs=1e-6)
    torch.testing.assert_close(result.observed, torch.tensor([[0.6], [0.4]], dtype=torch.float64))
    assert result.error[0, 0] == pytest.approx((0.21 / 100) ** 0.5, rel=1e-5)
    assert result.over_confidence == pytest.approx(0.7 - 0.4, abs=1e-6)
    assert not result.passed


def test_few_events_and_seeds():
    probability, label = events(60)
    first, second = (reliability(probability, label, seed=3) for _ in range(2))
    assert first.verdict == second.verdict
    assert first.counts.shape == (3, 10)
    assert (first.counts.sum(1) == 60).all()
    # Not more bins than there are five events for each.
    assert reliability(probability, label, bins=50).counts.shape == (3, 12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"probability": torch.ones(100)}, ShapeError, r"expected probability \(n, M\)"),
        ({"label": torch.zeros(99)}, ShapeError, r"\(100, 2\) and \(99,\)"),
        ({"probability": torch.full((100, 2), 0.6)}, UsageError, "sum to one"),
        ({"probability": torch.full((100, 2), torch.nan)}, NonFiniteError, "probability"),
        ({"label": torch.full((100,), 2)}, UsageError, "label: expected whole numbers from 0 to 1"),
        ({"label": torch.full((100,), 0.5)}, UsageError, "label"),
        ({"names": ["a"]}, UsageError, "names: expected 2"),
        ({"bins": 0}, UsageError, "bins"),
        ({"level": 0}, UsageError, "level"),
    ],
)
def test_wrong_arguments(change, error, message):
    call = {"probability": torch.full((100, 2), 0.5), "label": torch.zeros(100), **change}
    with pytest.raises(error, match=message):
        reliability(**call)
