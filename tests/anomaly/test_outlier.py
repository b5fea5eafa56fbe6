"""Scores of unusual events: planted outliers are found, events alike are not told apart, and p-values are uniform."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

import sbi_physics as sp
from sbi_physics.anomaly.outlier import OutlierDetector
from sbi_physics.core.errors import NonFiniteError, ShapeError, SupportError, UsageError
from sbi_physics.store.models import read_model, write_model

SHORT, LONGER = {"epochs": 8, "batch_size": 128}, {"epochs": 30, "batch_size": 128}
DETECTORS = {
    "nsf": lambda: OutlierDetector("nsf", config=SHORT),
    "maf": lambda: OutlierDetector("maf", config=SHORT),
    "mixture": lambda: OutlierDetector("mixture", config={"epochs": 12}),
    "kernel": lambda: OutlierDetector("kernel"),
    "autoencoder": lambda: OutlierDetector("autoencoder", config=LONGER),
    "denoising": lambda: OutlierDetector("autoencoder", noise=0.1, config=LONGER),
    "sparse": lambda: OutlierDetector("autoencoder", code=4, penalty="l1", strength=0.02, config=LONGER),
    "contractive": lambda: OutlierDetector("autoencoder", penalty="contractive", config=LONGER),
    "vae": lambda: OutlierDetector("vae", config=LONGER),
}


def usual(n, seed):
    """Four numbers that follow from two, but for a little noise."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn((2, n), generator=generator, dtype=torch.float64)
    sheet = torch.stack([a, b, a + 0.5 * b**2, a - b], -1)
    return sheet + 0.1 * torch.randn((n, 4), generator=generator, dtype=torch.float64)


def unusual(n, seed):
    """Each number is as before, but they do not follow from each other."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([column[torch.randperm(n, generator=generator)] for column in usual(n, seed).T], -1)


def area(detector, others, same):
    """The area under the curve of others against as many that are usual."""
    scores = torch.cat([detector.score(others), detector.score(same)])
    return roc_auc_score(np.repeat([1, 0], [len(others), len(same)]), scores)


@pytest.fixture(scope="module", params=DETECTORS)
def detector(request):
    return DETECTORS[request.param]().fit(usual(2_000, 0), seed=1, progress=False)


def test_planted_outliers_are_found(detector):
    assert area(detector, unusual(500, 2), usual(500, 3)) > 0.85


def test_where_there_are_none_nothing_is_found(detector):
    n = 1_000
    assert abs(area(detector, usual(n, 4), usual(n, 5)) - 0.5) < 4 / math.sqrt(6 * n)


def test_p_values_are_those_of_the_background_and_small_for_outliers(detector):
    background = detector.p_values(usual(1_000, 6))
    # 400 events are held out: their own scatter is larger than that of the 1,000.
    assert kstest(background, "uniform").statistic < 1.95 * math.sqrt(1 / 1_000 + 1 / 400)
    assert float(background.min()) >= 1 / 401
    outliers = detector.p_values(unusual(500, 7))
    assert float((outliers < 0.1).double().mean()) > 0.4


def test_p_values_fall_with_the_score_and_are_never_zero(detector):
    far = usual(50, 8) + torch.linspace(0, 1e3, 50, dtype=torch.float64).unsqueeze(1) * torch.tensor([1.0, -1, 1, 1])
    score, p = detector.score(far), detector.p_values(far)
    order = score.argsort()
    assert bool((p[order].diff() <= 0).all())
    assert float(p.min()) == pytest.approx(1 / 401)
    assert score.dtype == torch.float64


def test_rank_among_the_events_held_out():
    detector = OutlierDetector("kernel").fit(usual(100, 0), seed=3)
    reference = detector._reference
    score = detector.score(usual(30, 1))
    expected = [(int((reference >= s).sum()) + 1) / 21 for s in score]
    torch.testing.assert_close(detector.p_values(usual(30, 1)), torch.tensor(expected, dtype=torch.float64))


def test_same_seed_same_scores_and_the_global_stream_untouched():
    state = torch.random.get_rng_state()
    x = usual(200, 0)
    scores = [
        OutlierDetector("autoencoder", noise=0.1, config={"epochs": 2}).fit(x, seed=s, progress=False).score(x)
        for s in (1, 1, 2)
    ]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    assert torch.equal(state, torch.random.get_rng_state())


def test_negative_weights_take_away_what_is_too_much():
    """Events of a second kind, each with a twin of weight minus one, are as if they were not there."""
    kept, cancelled = usual(2_000, 0), usual(1_000, 1) + 6
    x = torch.cat([kept, cancelled, cancelled + 0.01])
    weights = torch.cat([torch.ones(3_000), -torch.ones(1_000)]).double()
    weighted, ignored = (
        OutlierDetector("mixture", config=SHORT).fit(x, weights=w, seed=1, progress=False) for w in (weights, None)
    )
    at = usual(500, 2) + 6
    assert float(weighted.p_values(at).median()) < 0.05
    assert float(ignored.p_values(at).median()) > 0.2


def test_the_density_of_bounded_features_ends_at_their_bounds():
    x = torch.rand((1_000, 2), generator=torch.Generator().manual_seed(0))
    detector = OutlierDetector("mixture", bounds=[[0, 1], [0, 1]], config=SHORT).fit(x, progress=False)
    score = detector.score([[0.5, 0.5], [1.5, 0.5]])
    assert abs(float(score[0])) < 0.4
    assert float(score[1]) == math.inf
    assert float(detector.p_values([[1.5, 0.5]])) == pytest.approx(1 / 201)
    with pytest.raises(SupportError, match=r"features: expected all inside the bounds, got .* in row 3"):
        OutlierDetector("mixture", bounds=[[0, 1], [0, 1]]).fit(torch.cat([x[:3], x + 1]))


def test_scores_of_no_events(detector):
    assert detector.score(torch.zeros(0, 4)).shape == (0,)
    assert detector.p_values(torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "nonsense"}, "model: expected one of .*autoencoder.*; got 'nonsense'"),
        ({"config": {"epoch": 3}}, "setting of the training: expected one of"),
        ({"model": "autoencoder", "bounds": [[0, 1]]}, "bounds: an autoencoder knows no support"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        OutlierDetector(**arguments)


def test_wrong_features_are_named():
    x = usual(50, 0)
    with pytest.raises(UsageError, match=r"option of an autoencoder: expected one of .*; got 'codes'"):
        OutlierDetector("autoencoder", codes=2).fit(x)
    detector = OutlierDetector("kernel")
    with pytest.raises(UsageError, match="learned nothing yet"):
        detector.score(x)
    with pytest.raises(ShapeError, match=r"features: expected shape \(N, D\), got \(50,\)"):
        detector.fit(x[:, 0])
    with pytest.raises(ShapeError, match="features: expected at least 20 rows, got 5"):
        detector.fit(x[:5])
    with pytest.raises(UsageError, match="features: column 2 is 0 in all events"):
        detector.fit(x * torch.tensor([1.0, 1, 0, 1]))
    with pytest.raises(NonFiniteError, match="features: expected finite numbers"):
        detector.fit(torch.where(x > x[7, 1], torch.nan, x))
    with pytest.raises(UsageError, match="weights: expected a positive sum, got 0"):
        detector.fit(x, weights=torch.zeros(50))
    with pytest.raises(ShapeError, match=r"weights: expected shape \(50,\), got \(49,\)"):
        detector.fit(x, weights=torch.ones(49))
    with pytest.raises(ShapeError, match=r"bounds: expected shape \(4, 2\), got \(1, 2\)"):
        OutlierDetector("nsf", bounds=[[0, 1]]).fit(x)
    detector.fit(x)
    with pytest.raises(ShapeError, match=r"features: expected shape \(n, 4\), got \(50, 3\)"):
        detector.score(x[:, :3])


def test_it_comes_back_from_its_file(detector, tmp_path):
    path = tmp_path / "usual.safetensors"
    sp.save(detector, path)
    again = sp.load(path, device="cpu")
    others = unusual(50, 3)
    assert torch.equal(again.score(others), detector.score(others))
    assert torch.equal(again.p_values(others), detector.p_values(others))
    assert again.record == detector.record


def test_files_of_detectors(tmp_path):
    bounds = torch.tensor([[-10.0, 10.0]] * 4)
    detector = OutlierDetector("nsf", bounds=bounds, config=SHORT, transforms=2, hidden_features=8)
    with pytest.raises(UsageError, match="learned nothing yet"):
        detector.save(tmp_path / "usual.safetensors")
    path = tmp_path / "usual.safetensors"
    detector.fit(usual(100, 0), weights=torch.ones(100), progress=False).save(path)
    again = sp.load(path)
    assert torch.equal(again.bounds, bounds.double())
    assert torch.isinf(again.score(torch.full((1, 4), 11.0))).all()
    with pytest.raises(UsageError, match="flow: a file of kind 'outliers' is built without one of your own"):
        sp.load(path, flow=torch.nn.Flatten())
    header, tensors = read_model(path)
    for changes in ({"features": 3}, {"model": "nsf-2"}, {"options": {"knots": 3}}, {"record": {"loss": 1}}):
        write_model(path, tensors, {**header, **changes})
        with pytest.raises(sp.StoreError, match=r"usual\.safetensors: the header "):
            sp.load(path)
