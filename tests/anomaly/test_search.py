"""Searches find what was put in, by every method, and say what is wrong with their input."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import sbi_physics as sp
from sbi_physics.anomaly.scan import inject, scan_regions
from sbi_physics.anomaly.search import ResonantSearch
from sbi_physics.anomaly.template import METHODS
from simulators.dijet import DijetResonance

REGION = (3.3, 3.7)
QUICK = {"members": 1, "folds": 3, "config": {"epochs": 4, "batch_size": 256}, "transforms": 3, "hidden_features": 32}
BACKGROUND, SIGNAL = 8000, 250
BOUNDS = [(0.0, 3.0), (0.0, 3.0), (0.0, 1.0), (0.0, 1.0)]


def events(background=BACKGROUND, signal=SIGNAL, seed=1, **more):
    return DijetResonance(**more).events(background=background, signal=signal, seed=seed)


def searched(method="interpolation", data=None, **more):
    data = events() if data is None else data
    simulation = None
    if method == "reweighting":
        other = events(signal=0, seed=9)
        simulation = (other.features, other.mass)
    search = ResonantSearch(REGION, method=method, **{**QUICK, **more})
    return search.fit(data.features, data.mass, weights=data.weights, simulation=simulation, seed=2, progress=False)


@pytest.fixture(scope="module")
def found():
    return searched(bounds=BOUNDS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ranks_signal_above_background(method, found):
    search = found if method == "interpolation" else searched(method)
    other = DijetResonance()
    signal, background = (draw(2000, window=REGION, seed=5) for draw in (other.sample_signal, other.sample_background))
    scores = [search.score(*pair) for pair in (background, signal)]
    above = float((scores[1][:, None] > scores[0][None, :]).double().mean())
    assert above > (0.75 if method == "densities" else 0.85)
    made = search.sample_background(500, seed=3)
    assert made.features.shape[1] == 4
    assert bool(((made.mass > REGION[0]) & (made.mass <= REGION[1])).all())
    again = search.sample_background(500, seed=3)
    assert all(torch.equal(one, two) for one, two in zip(made, again, strict=True))
    result = search.search(toys=500)
    assert result.global_p_value < 0.01
    assert result.best.fit.significance > 4


def test_without_signal_nothing_is_found():
    result = searched(data=events(signal=0, seed=3)).search(toys=2000)
    assert result.global_p_value > 0.01
    for point in result.points:
        assert abs(point.fit.background - point.template.background) < 4 * (
            point.fit.uncertainty + point.template.uncertainty
        )


def test_the_latent_form_does_not_sculpt_where_features_follow_the_mass():
    shifted = events(signal=0, seed=4, shift=0.1)
    latent, plain = (searched(method, shifted).search(toys=100) for method in ("latent", "sidebands"))
    assert max(point.sculpting.reduced for point in latent.points) < 2.5
    assert max(point.sculpting.reduced for point in plain.points) > 2.5


def test_the_background_has_the_density_that_it_says(found):
    x, m = DijetResonance().sample_background(4000, window=REGION, seed=7)
    log_q, log_p = found.log_background(x, m), DijetResonance().log_background(x, m)
    # The divergence of the learned density from the true one, in nats: above zero, and small.
    divergence = float((log_p - log_q).mean())
    assert 0 < divergence < 0.25
    assert float(found.log_background(x.flip(0), m).mean()) == pytest.approx(float(log_q.mean()), abs=0.1)
    with pytest.raises(sp.UsageError, match="learns no density"):
        searched("sidebands").log_background(x, m)


def test_a_result_is_plain_numbers_and_words(found):
    result = found.search(efficiencies=(0.1, 0.01), toys=500)
    assert json.loads(json.dumps(result.to_dict()))["points"][0]["efficiency"] == 0.1
    assert "standard deviations" in str(result)
    limits = result.upper_limits()
    assert limits.observed.shape == (2,)
    assert (limits.observed > 0).all()
    n, before = result.before
    assert n == pytest.approx(before.background, abs=6 * (before.uncertainty + n**0.5))
    assert repr(found).startswith("ResonantSearch(3.3 to 3.7, interpolation")


def test_weights_of_both_signs_count_as_the_events_that_they_stand_for():
    data = DijetResonance().events(background=12_000, signal=0, negative_weights=0.4, seed=6)
    assert bool((data.weights < 0).any())
    search = searched(data=data, bounds=BOUNDS)
    result = search.search(toys=300)
    total = float(data.weights[search.region.holds(data.mass)].sum())
    assert result.before[0] == pytest.approx(total)
    assert abs(total - result.before[1].background) < 5 * result.before[1].uncertainty + 5 * total**0.5 / result.scale
    x, m = DijetResonance().sample_background(3000, window=REGION, seed=7)
    assert float((DijetResonance().log_background(x, m) - search.log_background(x, m)).mean()) < 0.25


def test_preprocessing_by_quantiles_gives_a_density_too():
    search = searched(preprocessing="quantile", data=events(signal=0))
    x, m = DijetResonance().sample_background(3000, window=REGION, seed=7)
    assert float((DijetResonance().log_background(x, m) - search.log_background(x, m)).mean()) < 0.25


def test_the_template_closes_and_one_of_other_events_does_not(found):
    closure = found.closure(seed=1, progress=False)
    assert abs(closure.floor.auc - 0.5) < 4 * closure.floor.expected_error
    assert closure.test.auc < 0.56
    assert "AUC" in closure.verdict
    shifted = searched("sidebands", events(signal=0, shift=0.1))
    template, signal = shifted.sample_background(2000), shifted.signal_events
    told = sp.diagnostics.classifier_auc(signal.features, template.features, kind="trees")
    assert told.auc > 0.6


def test_features_that_many_events_share(monkeypatch):
    """A multiplicity beside real features: cuts keep what they say, and where they do not, it is told."""
    data = events(signal=0)
    counts = torch.poisson(torch.full((BACKGROUND, 1), 2.0), generator=torch.Generator().manual_seed(1))
    data = dataclasses.replace(data, features=torch.cat([data.features[:, :2], counts], 1))
    result = searched(data=data).search(toys=500)
    assert not result.loose
    assert result.points[-1].fit.background < 0.03 * result.before[1].background
    monkeypatch.setattr("sbi_physics.anomaly.dequantise._SHARE", 2.0)
    smeared = searched(data=data).search(toys=500)
    assert smeared.loose
    assert "many events have equal scores" in str(smeared)


def test_scan_and_injection_rank_windows_and_numbers():
    data = events(background=5000, signal=200)
    scan = scan_regions(data.features, data.mass, [(2.8, 3.1), REGION], toys=300, progress=False, **QUICK)
    assert scan.best.region.low == REGION[0]
    assert scan.global_p_value == pytest.approx(1 - (1 - scan.p_values.min()) ** 2)
    plain, (x, m) = events(background=5000, signal=0), DijetResonance().sample_signal(300, seed=2)
    search = ResonantSearch(REGION, **QUICK)
    injection = inject(search, plain.features, plain.mass, x, m, [0, 250], draws=1, progress=False)
    assert injection.local[1, 0] > injection.local[0, 0] + 2
    assert injection.bands().shape == (2, 3)
    with pytest.raises(sp.UsageError, match="numbers: expected numbers from 0 to 300"):
        inject(search, plain.features, plain.mass, x, m, [301])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mass": np.full(400, 9.0)}, sp.SupportError, r"signal_region: \(3\.3, 3\.7\] holds 0 events"),
        ({"mass": np.linspace(3.35, 3.65, 400)}, sp.SupportError, "control region: expected at least 50 events below"),
        (
            {"features": np.ones((400, 2))},
            sp.SupportError,
            "column 0 is 1 throughout the control region, from",
        ),
        ({"features": np.full((400, 2), np.nan)}, sp.NonFiniteError, "features: expected finite numbers"),
        ({"features": np.ones((399, 2))}, sp.ShapeError, "mass: expected 399"),
        ({"weights": np.zeros(400)}, sp.UsageError, "weights: expected a positive sum, got 0"),
        ({"weights": np.ones(5)}, sp.ShapeError, r"weights: expected shape \(400,\), got \(5,\)"),
    ],
)
def test_one_clear_line_for_wrong_events(change, error, words):
    random = np.random.default_rng(1)
    good = {"features": random.random((400, 2)), "mass": np.linspace(2.5, 5.0, 400), "weights": None, **change}
    with pytest.raises(error, match=words):
        ResonantSearch(REGION).fit(good["features"], good["mass"], weights=good["weights"], progress=False)


def test_one_clear_line_for_wrong_settings():
    for arguments, words in (
        ({"signal_region": (3.7, 3.3)}, "signal_region: expected low < high"),
        ({"signal_region": 3.3}, "signal_region: expected two masses"),
        ({"method": "guess"}, "method: expected one of"),
        ({"model": "guess"}, "model: expected one of"),
        ({"preprocessing": "guess"}, "preprocessing: expected one of"),
        ({"classifier": "guess"}, "classifier: expected one of"),
        ({"mass_model": "guess"}, "mass_model: expected one of"),
        ({"oversampling": 0}, "oversampling: expected a number above 0"),
        ({"model": "mixture", "ensemble": 2}, "ensemble: only flows have members"),
    ):
        with pytest.raises(sp.UsageError, match=words):
            ResonantSearch(**{"signal_region": REGION, **arguments})
    assert ResonantSearch(np.array(REGION)).region.high == REGION[1]
    with pytest.raises(sp.UsageError, match="nothing is fitted"):
        ResonantSearch(REGION).search()
    data = events(background=1000, signal=0)
    narrow = [*BOUNDS[:3], (0.0, 0.1)]
    with pytest.raises(sp.SupportError, match="features: expected all inside the bounds"):
        ResonantSearch(REGION, bounds=narrow).fit(data.features, data.mass, progress=False)
    with pytest.raises(sp.ShapeError, match=r"bounds: expected shape \(4, 2\), got \(3, 2\)"):
        ResonantSearch(REGION, bounds=narrow[:3]).fit(data.features, data.mass, progress=False)
    with pytest.raises(sp.UsageError, match="needs simulated background"):
        ResonantSearch(REGION, method="reweighting").fit(data.features, data.mass, progress=False)
