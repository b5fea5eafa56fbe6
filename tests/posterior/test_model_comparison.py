"""Two Gaussian models whose Bayes factor is known, and twins that are too sure."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.distributions as td

import sbi_physics as sp
from sbi_physics.store.models import read_model, write_model
from sbi_physics.store.simulations import Simulations
from sbi_physics.train.config import TrainConfig

DIMS = 3
COMMON = torch.eye(DIMS, dtype=torch.float64) + 1.0
ALONE = 1.6 * torch.eye(DIMS, dtype=torch.float64)


def common(n, seed):
    """A shift mu ~ N(0, 1) of all three numbers, with unit noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, generator=generator) + torch.randn(n, DIMS, generator=generator)


def alone(n, seed):
    """Noise of variance 1.6, no shift."""
    return 1.6**0.5 * torch.randn(n, DIMS, generator=torch.Generator().manual_seed(seed))


def exact(x):
    """Ln B of the first over the second."""
    zero = torch.zeros(DIMS, dtype=torch.float64)
    first, second = (td.MultivariateNormal(zero, covariance).log_prob(x.double()) for covariance in (COMMON, ALONE))
    return first - second


def comparison(epochs=12, **options):
    return sp.ModelComparison(members=3, hidden_features=32, config=TrainConfig(epochs=epochs), **options)


@pytest.fixture(scope="module")
def learned():
    """Twice as many simulations of the first model."""
    data = {"common": common(8000, 1), "alone": alone(4000, 2)}
    return comparison(prior={"alone": 3, "common": 1}).fit(data, seed=3, progress=False)


@pytest.fixture(scope="module")
def new():
    return torch.cat([common(500, 11), alone(500, 12)])


def test_the_bayes_factor(learned, new):
    value, spread = learned.log_bayes_factor(new, "common", "alone")
    off = (value - exact(new)).abs()
    assert off.median() < 0.1
    assert off.quantile(0.95) < 0.35
    # The spread of the classifiers is the size of the error, but for what all of them share.
    assert (off < 3 * spread + 0.15).double().mean() > 0.95
    back, same = learned.log_bayes_factor(new, "alone", "common")
    torch.testing.assert_close(back, -value)
    torch.testing.assert_close(same, spread)
    # Leaving out that there were twice as many simulations of one model would be off by ln 2.
    assert (value + math.log(2) - exact(new)).abs().median() > 0.5


def test_probabilities(learned, new):
    value, _ = learned.log_bayes_factor(new, "common", "alone")
    probability = learned.probability(new)
    torch.testing.assert_close(probability[:, 0], torch.sigmoid(value - math.log(3)))
    torch.testing.assert_close(probability.sum(1), torch.ones(1000, dtype=torch.float64))
    assert learned.probability(new[0]).shape == (2,)
    torch.testing.assert_close(learned.probability(new[0]), probability[0])
    assert learned.probability(new[:1]).shape == (2,)


def test_words(learned):
    x_obs = torch.tensor([3.0, 3.2, 2.9])
    value, spread = (float(number) for number in learned.log_bayes_factor(x_obs, "common", "alone"))
    sure = learned.verdict(x_obs)
    assert f"common is favoured, ln B = {value:.1f} +- {spread:.1f} nats against alone" in sure
    assert f"probability {float(learned.probability(x_obs)[0]):.3g} with the given prior" in sure
    assert repr(learned) == "ModelPosterior(common, alone: 3 classifiers of x (3,))"
    # Where the exact ln B is zero the classifiers disagree about its sign.
    direction = torch.tensor([1.0, 0.0, -1.0])
    scales = torch.linspace(0, 4, 4001).unsqueeze(1) * direction
    values, _ = learned.log_bayes_factor(scales, "common", "alone")
    assert learned.verdict(scales[int(values.abs().argmin())]).startswith("not resolved: the classifiers disagree")
    with pytest.raises(sp.ShapeError, match="expected one observation"):
        learned.verdict(scales)


def sharpened(learned, factor):
    """Classifiers whose log-odds are too large."""
    classifiers = copy.deepcopy(learned.classifiers)
    with torch.no_grad():
        for one in classifiers:
            one.network.last.weight *= factor
            one.network.last.bias *= factor
    return replace(learned, classifiers=classifiers)


def test_check(learned):
    data = [common(1500, 21), alone(1000, 22)]
    found = learned.check(data)
    assert found.passed, found.verdict
    assert found.names == ("common", "alone")
    assert learned.check({"alone": data[1], "common": data[0]}).verdict == found.verdict
    for factor, word in ((2.5, "over-confident"), (0.3, "under-confident")):
        twin = sharpened(learned, factor).check(data)
        assert not twin.passed
        assert twin.verdict.startswith(word)


def failing(x, share, seed=5):
    """The same with a share of rows that failed at random."""
    lost = torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(lost.unsqueeze(1), torch.nan, x)


def test_simulations_that_failed_count_against_their_model(new):
    """Data that were measured did not fail: a model half of whose simulations do loses ln 2."""
    data = {"common": failing(common(8000, 1), 0.5), "alone": alone(4000, 2)}
    with pytest.raises(sp.NonFiniteError, match=r"common: \d+ of 8000 simulations failed .* failed='correct'"):
        comparison().fit(data, progress=False)
    learned = comparison().fit(data, failed="correct", seed=3, progress=False)
    value, _ = learned.log_bayes_factor(new, "common", "alone")
    assert (value - exact(new)).median() == pytest.approx(-math.log(2), abs=0.15)
    assert learned.check([failing(common(1500, 21), 0.5, 6), alone(1000, 22)], failed="correct").passed
    # Half of them lost on the way instead is no fault of the model.
    assert not learned.check([common(1500, 21), alone(1000, 22)]).passed


def test_same_seed_same_bytes():
    data = [common(300, 1), alone(300, 2)]
    state = torch.random.get_rng_state()
    first, second = (comparison(1).fit(data, seed=s, progress=False).probability(data[0]) for s in (4, 4))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first, comparison(1).fit(data, seed=5, progress=False).probability(data[0]))


def test_simulations_and_their_files(tmp_path):
    parameters = sp.Parameters([sp.Parameter("mu", td.Normal(0.0, 1.0))])
    x = common(200, 1)
    x[3] = torch.nan
    stored = Simulations.from_arrays(torch.zeros(200, 1), x, parameters)
    stored.save(tmp_path / "common.h5")
    arrays = {"common": x, "alone": alone(200, 2)}
    answers = [
        comparison(1).fit({**arrays, "common": one}, failed="correct", progress=False).probability(x[0])
        for one in (x, stored, tmp_path / "common.h5")
    ]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_encoders_by_name():
    """Sets of five numbers, some of them missing, and observations with names."""
    x = torch.randn(300, 5, 1, generator=torch.Generator().manual_seed(0))
    x[::3, 2] = torch.nan
    sets = comparison(1, embedding="deep-set").fit([x[:150], x[150:]], progress=False)
    assert sets.probability(x[:4]).shape == (4, 2)
    assert torch.isfinite(sets.probability(x[:4])).all()
    named = [{"curve": x.nan_to_num(), "count": torch.ones(300, 1)}] * 2
    encoders = {"curve": "gru", "count": "mlp"}
    both = comparison(1, embedding=encoders).fit(named, progress=False)
    assert both.probability({"curve": x[0].nan_to_num(), "count": torch.ones(1)}).shape == (2,)
    with pytest.raises(sp.UsageError, match=r"model_0: x: expected one array, got several named ones \(curve, count\)"):
        comparison(1).fit(named, progress=False)
    with pytest.raises(sp.UsageError, match=r"embedding: expected one of .*, got 'cnn'"):
        comparison(embedding="cnn")


@pytest.mark.parametrize(
    ("options", "data", "error", "message"),
    [
        ({"members": 1}, None, sp.UsageError, "members: expected at least 2"),
        ({"members": 0}, None, sp.UsageError, "members"),
        ({"hidden_features": 0}, None, sp.UsageError, "hidden_features"),
        ({}, [common(99, 1)], sp.UsageError, "two or more models with different names, got 1 for model_0"),
        ({}, [], sp.UsageError, "got 0 for none"),
        ({"names": ["a", "a"]}, [common(99, 1)] * 2, sp.UsageError, "different names"),
        ({"names": ["a", "b", "c"]}, [common(99, 1)] * 2, sp.UsageError, "got 2 for a, b, c"),
        ({"names": ["a", "b"]}, {"a": common(99, 1), "z": common(99, 1)}, sp.UsageError, "those of a, b, got a, z"),
        ({"prior": [1, 2, 3]}, [common(99, 1)] * 2, sp.UsageError, "prior: expected 2 numbers"),
        ({}, [common(99, 1), common(99, 1)[:, :2]], sp.ShapeError, r"model_1: expected x of shape \(n, 3\)"),
        ({}, [common(99, 1), common(49, 1)], sp.ShapeError, "model_1: expected at least 50 .*, got 49"),
    ],
)
def test_wrong_arguments(options, data, error, message):
    with pytest.raises(error, match=message):
        sp.ModelComparison(**options).fit(data, progress=False)


def test_wrong_observations(learned):
    with pytest.raises(sp.ShapeError, match="x_obs"):
        learned.probability(torch.zeros(4))
    with pytest.raises(sp.NonFiniteError, match="x_obs"):
        learned.probability(torch.full((3,), torch.nan))
    with pytest.raises(sp.UsageError, match="model: expected one of common, alone; got 'z'"):
        learned.log_bayes_factor(torch.zeros(3), "z", "alone")
    with pytest.raises(sp.ShapeError, match=r"simulations: expected x of shape \(3,\), got \(2,\)"):
        learned.check([torch.zeros(99, 2)] * 2)
    with pytest.raises(sp.UsageError, match="those of common, alone, got common"):
        learned.check({"common": torch.zeros(99, 3)})
    with pytest.raises(sp.UsageError, match="failed: expected one of correct, refuse"):
        learned.check([torch.zeros(99, 3)] * 2, failed="drop")


def test_it_comes_back_from_its_file(learned, new, tmp_path):
    path = tmp_path / "models.safetensors"
    learned.save(path)
    again = sp.load(path, device="cpu")
    assert again.names == learned.names
    assert torch.equal(again.probability(new), learned.probability(new))
    spreads = [one.log_bayes_factor(new, "common", "alone")[1] for one in (again, learned)]
    assert torch.equal(*spreads)
    with pytest.raises(sp.UsageError, match="flow: a file of kind 'models' is built without one of your own"):
        sp.load(path, flow=object())
    header, tensors = read_model(path)
    for changes in ({"members": 2}, {"names": ["a"]}, {"options": {"width": 3}}, {"x_shape": "ab"}):
        write_model(path, tensors, {**header, **changes})
        with pytest.raises(sp.StoreError, match=r"models\.safetensors: the header and the weights do not fit together"):
            sp.load(path)


@pytest.mark.parametrize("own", [False, True])
def test_a_file_with_an_encoder(own, tmp_path):
    embedding = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(DIMS, 4)) if own else "residual"
    data = {"common": common(200, 1), "alone": alone(200, 2)}
    found = comparison(1, embedding=embedding).fit(data, seed=3, progress=False)
    sp.save(found, tmp_path / "models.safetensors")
    handed = {"embedding": embedding} if own else {}
    again = sp.load(tmp_path / "models.safetensors", device="cpu", **handed)
    assert torch.equal(again.probability(data["alone"]), found.probability(data["alone"]))
    with pytest.raises(sp.UsageError, match="embedding: "):
        sp.load(tmp_path / "models.safetensors", **({} if own else {"embedding": torch.nn.Flatten()}))
