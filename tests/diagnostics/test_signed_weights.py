"""One law for all comparisons: events with signed weights agree with draws of the density that they stand for.

The density is 3/2 N(0, 1) - 1/2 N(0, 1/2).  Three of four events come from the first with weight 1, the others from the
second with weight -1; draws come by rejection.  The twins leave the weights out.
"""

import math

import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, SupportError
from sbi_physics.diagnostics import (
    classifier_auc,
    correlation_difference,
    frechet_physics_distance,
    jensen_shannon,
    kernel_physics_distance,
    response_and_resolution,
    separation_power,
)

N = 4000


def random(seed):
    return torch.Generator().manual_seed(seed)


def signed(n, seed):
    """Weighted ``(n,)``."""
    generator = random(seed)
    minus = torch.rand(n, generator=generator) < 0.25
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    return torch.where(minus, 0.5 * x, x), torch.where(minus, -1.0, 1.0)


def drawn(n, seed):
    """Unweighted ``(n,)``: what N(0, 1) proposes is kept with the probability of the density over 3/2 N(0, 1)."""
    generator = random(seed)
    x = torch.randn(3 * n, generator=generator, dtype=torch.float64)
    keep = 1 - (2 / 3) * torch.exp(-1.5 * x.square())
    return x[torch.rand(len(x), generator=generator) < keep][:n]


def pair(seed, n=N):
    """Two observables that depend on each other through the first, real (weighted) and drawn, and the weights."""
    (first, weights), second = signed(n, 3 * seed), drawn(n, 3 * seed + 1)
    noise = torch.randn(2, n, generator=random(3 * seed + 2), dtype=torch.float64)
    return [torch.stack([x, x + e], 1) for x, e in zip((first, second), noise, strict=True)], weights


def response(real, generated, *, weights=None, **options):
    true = torch.linspace(1, 2, len(real))
    return response_and_resolution(
        true, true * (5 + real[:, 0]), true * (5 + generated[:, 0]), 4, weights=weights, **options
    )


MEASURES = {
    "classifier": lambda *a, **k: classifier_auc(*a, **k, hidden_features=32, epochs=10),
    "separation power": separation_power,
    "divergence": jensen_shannon,
    "correlations": correlation_difference,
    "Fréchet": frechet_physics_distance,
    "kernel": lambda *a, **k: kernel_physics_distance(*a, **k, exchanges=99),
    "response": response,
}


def passed(found):
    return found.agrees if hasattr(found, "agrees") else found.passed


def test_the_two_ways_to_the_density_agree():
    """Second and fourth moment: 3/2 - 1/8, and 3 (3/2 - 1/32)."""
    (x, weights), y = signed(200_000, 0), drawn(200_000, 1)
    for power, expected in ((2, 1.375), (4, 3 * (1.5 - 1 / 32))):
        spread = float((weights * x**power).std()) / 0.5 / 200_000**0.5
        assert float((weights * x**power).sum() / weights.sum()) == pytest.approx(expected, abs=4 * spread)
        assert float((y**power).mean()) == pytest.approx(expected, abs=4 * float((y**power).std()) / 200_000**0.5)


@pytest.mark.parametrize("name", MEASURES)
def test_signed_events_agree_with_their_density_and_without_weights_they_do_not(name):
    found, twins = [], []
    for seed in range(2):
        (real, generated), weights = pair(seed)
        found.append(MEASURES[name](real, generated, weights=weights))
        twins.append(MEASURES[name](real, generated))
    assert all(passed(one) for one in found), [one.verdict for one in found]
    assert not any(passed(one) for one in twins), [one.verdict for one in twins]


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "classifier"])
def test_a_common_weight_changes_nothing_much(name):
    (real, generated), _ = pair(0)
    equal, weighted = MEASURES[name](real, generated), MEASURES[name](real, generated, weights=torch.full((N,), 3.0))
    key = "response_ratio" if name == "response" else "difference" if name == "correlations" else "value"
    torch.testing.assert_close(
        torch.as_tensor(getattr(weighted, key)), torch.as_tensor(getattr(equal, key)), rtol=0.01, atol=1e-6
    )


def test_errors_with_signed_weights_are_those_of_many_repeats():
    """Of a correlation and of a resolution, over 200 pairs."""
    r, ratio = [], []
    for seed in range(200):
        (real, generated), weights = pair(seed, n=1000)
        found = correlation_difference(real, generated, weights=weights)
        r.append((float(found.difference[0, 1]), float(found.error[0, 1])))
        found = response(real, generated, weights=weights)
        ratio.append(found.overall_resolution)
    for values, centre in ((r, 0.0), (ratio, 1.0)):
        value, error = torch.tensor(values).unbind(1)
        assert float(value.mean()) == pytest.approx(centre, abs=5 * float(value.std()) / 200**0.5)
        assert float(error.mean() / value.std()) == pytest.approx(1.0, abs=4 / 400**0.5)


@pytest.mark.parametrize("name", MEASURES)
def test_weights_that_do_not_fit_are_refused(name):
    (real, generated), _ = pair(0, n=400)
    with pytest.raises(ShapeError, match="weights: expected one for each of 400 events, got 3"):
        MEASURES[name](real, generated, weights=torch.ones(3))
    with pytest.raises(SupportError, match="weights: expected a sum above zero, got -400"):
        MEASURES[name](real, generated, weights=-torch.ones(400))
    with pytest.raises(NonFiniteError, match="weights"):
        MEASURES[name](real, generated, weights=torch.full((400,), math.nan))
