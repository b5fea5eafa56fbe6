"""Response and resolution: known moments, chance, and a shift of the energy scale that must be found."""

import math

import numpy as np
import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, SupportError, UsageError
from sbi_physics.diagnostics import response_and_resolution


def events(n, seed, scale=0.8, resolution=0.1):
    """True energies from 1 to 1000 GeV, and seen ones with a given response and relative resolution."""
    random = np.random.default_rng(seed)
    true = np.exp(random.uniform(0, math.log(1000), n))
    return true, true * scale * (1 + resolution * random.standard_normal(n))


def compare(n, seed, **changes):
    true, real = events(n, 2 * seed)
    other, generated = events(n, 2 * seed + 1, **changes)
    return response_and_resolution(true, real, generated, energy_true_generated=other)


def test_moments_and_their_errors():
    """Of an exponential distribution: resolution 1, whose error is 1 / sqrt(n) (Gaussian numbers would have less)."""
    found = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        true = np.full(400, 50.0)
        found.append(response_and_resolution(true, *(50 * random.exponential(size=(2, 400)))))
    response, resolution = (torch.stack([getattr(f, name) for f in found]) for name in ("response", "resolution"))
    errors = [torch.stack([getattr(f, name) for f in found]) for name in ("response_error", "resolution_error")]
    for value, error in zip((response, resolution), errors, strict=True):
        assert float(value.mean()) == pytest.approx(1.0, abs=0.02)
        assert float(value.std()) == pytest.approx(1 / 20, rel=0.25)
        assert float(error.mean() / value.std()) == pytest.approx(1.0, abs=0.25)
    assert found[0].count.tolist() == [400]


def test_equal_samples_pass_and_their_pulls_are_normal():
    found = [compare(4000, seed) for seed in range(20)]
    assert all(f.passed() for f in found)
    for name in ("response_ratio", "resolution_ratio"):
        pull = torch.stack([(getattr(f, name) - 1) / getattr(f, name + "_error") for f in found])
        assert float(pull.mean().abs()) < 4 / pull.numel() ** 0.5
        assert float(pull.std()) == pytest.approx(1.0, abs=4 / (2 * pull.numel()) ** 0.5)


@pytest.mark.parametrize("side", [1.02, 0.98])
def test_an_energy_scale_off_by_two_percent_is_found(side):
    found = [compare(20_000, seed, scale=0.8 * side) for seed in range(5)]
    assert not any(f.passed() for f in found)
    assert ("above" if side > 1 else "below") in found[0].verdict
    assert "generated response" in found[0].verdict
    # It is within a tolerance of three percent.
    assert all(f.passed(mean_tolerance=0.03) for f in found)
    assert all("largest deviation" in f.explain(mean_tolerance=0.03) for f in found)


def test_a_wrong_resolution_is_found_and_its_bin_named():
    """Only above 500 GeV events are too wide."""
    true, real = events(40_000, 0)
    other, generated = events(40_000, 1)
    random = np.random.default_rng(2)
    wider = np.where(other > 500, 1 + 0.06 * random.standard_normal(len(other)), 1.0)
    edges = [1.0, 10.0, 100.0, 500.0, 1000.0]
    found = response_and_resolution(true, real, generated * wider, bins=edges, energy_true_generated=other)
    assert not found.passed()
    assert "between 500 and 1000" in found.verdict
    assert "generated resolution" in found.verdict
    assert response_and_resolution(true, real, generated, bins=edges, energy_true_generated=other).passed()


def test_a_small_shift_everywhere_shows_in_the_mean_over_bins():
    """0.3 % of 20,000 events of 10 %: 3 sigma over all bins, and below one in each."""
    found = [compare(20_000, seed, scale=0.8 * 1.003) for seed in range(10)]
    scales, errors = torch.tensor([f.energy_scale for f in found]).unbind(1)
    assert float(scales.mean()) == pytest.approx(1.003, abs=4 * float(errors.mean()) / 10**0.5)
    assert float(errors.mean()) == pytest.approx(0.1 * (2 / 20_000) ** 0.5, rel=0.05)


def test_exchanges_hold_their_level_where_errors_are_no_guide():
    """Few events in a bin, and sometimes one that leaks out."""

    def leaking(seed, scale=1.0):
        random = np.random.default_rng(seed)
        true = np.exp(random.uniform(0, 3, 300))
        return true, scale * true * np.where(random.random(300) < 0.03, 0.2, random.normal(1, 0.02, 300))

    found = []
    for seed in range(40):
        (true, real), (other, generated) = leaking(2 * seed), leaking(2 * seed + 1)
        options = {"energy_true_generated": other, "level": 0.05, "seed": seed}
        found.append([
            response_and_resolution(true, real, generated, 6, exchanges=exchanges, **options).agrees
            for exchanges in (99, 0)
        ])  # fmt: skip
    exact, normal = (sum(column) for column in zip(*found, strict=True))
    assert exact >= 34  # of 38 expected
    assert normal < 34
    (true, real), (other, generated) = leaking(0), leaking(1, scale=1.3)
    found = response_and_resolution(true, real, generated, 6, exchanges=99, energy_true_generated=other)
    assert not found.agrees
    assert found.p_value == 0.01
    assert "differ, most" in found.agreement


def test_too_few_events_to_tell_is_said():
    found = compare(300, 0, scale=0.81)
    assert found.passed()
    assert "more events are needed" in found.verdict


def test_discrete_energies_have_a_bin_each():
    true = np.repeat(2.0 ** np.arange(8, 15), 50)
    random = np.random.default_rng(0)
    found = response_and_resolution(true, *(true * random.normal(1, 0.1, (2, len(true)))))
    assert found.count.tolist() == [50] * 7
    torch.testing.assert_close(found.energy, torch.as_tensor(2.0 ** np.arange(8, 15)))


def test_edges_given():
    true = np.linspace(1, 4, 301)
    found = response_and_resolution(true, true, 2 * true, bins=[1.0, 2.0, 3.0])
    assert found.count.tolist() == [100, 101]
    assert found.response_ratio.tolist() == pytest.approx([2.0, 2.0])


def test_bad_input_is_refused():
    true, seen = events(100, 0)
    with pytest.raises(ShapeError, match="true energy for each"):
        response_and_resolution(true, seen, seen[:50])
    with pytest.raises(SupportError, match="above zero"):
        response_and_resolution(0 * true, seen, seen)
    with pytest.raises(SupportError, match="mean response"):
        response_and_resolution(true, seen, 0 * seen)
    with pytest.raises(ShapeError, match="at least 10 real"):
        response_and_resolution(true, seen, seen, bins=50)
    with pytest.raises(ShapeError, match="rising"):
        response_and_resolution(true, seen, seen, bins=[3.0, 2.0])
    with pytest.raises(NonFiniteError, match="energy_seen_generated"):
        response_and_resolution(true, seen, seen * np.nan)
    with pytest.raises(UsageError, match="tolerances"):
        response_and_resolution(true, seen, seen).passed(mean_tolerance=-1)
