"""Analysis files: what is wrong with one is said with the file, the line and the key."""

import pytest
import torch

from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.run.analysis import read_analysis
from sbi_physics.run.run import run_analysis, stages_of

GOOD = """job = "posterior"  # line 1
seed = 3

simulator = "radial_velocity"
[prior.K_b]
distribution = "uniform"
low = 0.0
high = 0.01
unit = "km / s"

[method]
name = "npe"
training.epochs = 2

[budget]
simulations = 100
"""


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "analysis.toml"
        path.write_text(text)
        return path

    return make


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "words"),
    [
        ("seed = 3", 'seed = "3"', 2, "seed", "expected a valid integer, got '3'"),
        ("seed = 3", "seed = -1", 2, "seed", "greater than or equal to 0"),
        ("seed = 3", "sede = 3", 2, "sede", "there is no such key; did you mean seed?"),
        ("simulations = 100", "simulatoins = 100", 16, "budget.simulatoins", "did you mean simulations?"),
        ("simulations = 100", "simulations = 1e5", 16, "budget.simulations", "expected a valid integer, got 100000.0"),
        ("simulations = 100", "simulations = true", 16, "budget.simulations", "got True"),
        ('name = "npe"', 'name = "abc"', 12, "method.name", "expected one of 'npe', 'nle', 'nre', 'vi'; got 'abc'"),
        ('name = "npe"', 'name = "npe"\nmodel = "nfs"', 13, "method.model", "expected one of nsf, maf"),
        ('name = "npe"', 'name = "nle"\nembedding = "gru"', 13, "method.embedding", "there is no such key"),
        ("training.epochs = 2", "training.epochs = 0", 13, "method.training.epochs", "an integer of at least 1"),
        ("training.epochs = 2", "training = {\n epochs = 2, ema = 2 }", 0, "", "expected TOML"),
        ("training.epochs = 2", "training = { epochs = 2, ema = 2 }", 13, "method.training.ema", "a number in [0, 1)"),
        ('distribution = "uniform"', "", 5, "prior.K_b.distribution", "this key must be there"),
        ('distribution = "uniform"', 'distribution = "flat"', 6, "prior.K_b.distribution", "got 'flat'"),
        ("high = 0.01", "", 5, "prior.K_b.high", "this key must be there"),
        ("high = 0.01", "high = inf", 8, "prior.K_b.high", "expected a finite number"),
        ("[budget]", "[bugdet]", 15, "bugdet", "did you mean budget?"),
        ('job = "posterior"', 'job = "posteriors"', 1, "job", "expected one of posterior, surrogate"),
        ('job = "posterior"', "", 0, "job", "this key must be there"),
    ],
)
def test_wrong_keys_are_named_with_their_line(write, old, new, line, key, words):
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        read_analysis(path)
    place = f"{path}, line {line}: {key}: " if line else f"{path}: {key}"
    assert str(caught.value).startswith(place)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "words"),
    [
        ('unit = "km / s"', 'unit = "km"', 9, "prior.K_b.unit", "converted to 'm / s', got 'km'"),
        ('unit = "km / s"', 'unit = "furlongs"', 9, "prior.K_b.unit", "expected an astropy unit string"),
        ("low = 0.0", "low = 2.0", 5, "prior.K_b", "low < high"),
        ("[prior.K_b]", "[prior.K_d]", 5, "prior.K_d", "expected one of K_b, K_c"),
        ('"radial_velocity"', '"radial"', 4, "simulator", "expected a name"),
        ('"radial_velocity"', '"no.py:Class"', 4, "simulator", "no such file"),
        ('"radial_velocity"', '"two_moons"', 5, "prior.K_b", "expected one of theta_0, theta_1"),
        ("seed = 3", "seed = 3\nseeds = { ftt = 1 }", 3, "seeds.ftt", "expected one of the stages observe, simulate"),
        ("seed = 3", 'seed = 3\ndepends = ["x.csv"]', 3, "depends[0]", "no such file"),
        ("[budget]", '[observation]\nfile = "x.csv"\n[budget]', 16, "observation.file", "no such file"),
        ("[budget]", "[observation]\ntruth.K = 1.0\n[budget]", 16, "observation.truth.K", "expected one of K_b"),
        ("[budget]", "[observation.truth]\nK_b = 1.0\n[budget]", 15, "observation.truth", "expected a value of K_c"),
        ("[budget]", "[budget]\npredictive = 100", 16, "budget.predictive", "at least 400"),
        ('name = "npe"', 'name = "npe"\noptions.bons = 3', 13, "method.options.bons", "bins"),
        ('simulator = "radial_velocity"', 'simulations = "a.h5"', 4, "simulations", "no such file"),
    ],
)
def test_what_does_not_fit_the_simulator_is_named_with_its_line(write, old, new, line, key, words):
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        stages_of(read_analysis(path))
    assert str(caught.value).startswith(f"{path}, line {line}: {key}: ")
    assert words in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(write):
    with pytest.raises(UsageError, match=r"line 2: seed.*; .*line 16: budget\.draws"):
        read_analysis(write(GOOD.replace("seed = 3", "seed = 0.5").replace("simulations = 100", "draws = 1")))


def test_overrides_are_checked_like_the_file_and_named_instead_of_it(write):
    path = write(GOOD)
    analysis = read_analysis(path, ["budget.simulations=500", "method.model=maf", "title=a = b", "seeds.fit=4"])
    assert analysis.config.budget.simulations == 500
    assert analysis.config.method.model == "maf"
    assert analysis.config.title == "a = b"
    assert (analysis.seed("fit"), analysis.seed("sample")) == (4, 3)
    assert read_analysis(path).config.budget.simulations == 100
    for override, words in (
        ("budget.simulations=5", "--set budget.simulations=5: budget.simulations: expected greater"),
        ("budget.sim=5", "--set budget.sim=5: budget.sim: there is no such key"),
        ("seed", "--set seed: expected KEY=VALUE"),
        ("a b=3", "--set a b=3: expected KEY=VALUE"),
        ("seed.x=3", "--set seed.x=3: seed is no table"),
    ):
        with pytest.raises(UsageError) as caught:
            read_analysis(path, [override])
        assert str(caught.value).startswith(words)


def test_priors_replace_those_of_the_simulator_in_its_own_units(write):
    from sbi_physics.run.sources import source_of

    source = source_of(read_analysis(write(GOOD)))
    bounds = dict(zip(source.parameters.names, source.parameters.bounds.tolist(), strict=True))
    assert bounds["K_b"] == pytest.approx([0.0, 10.0])
    assert bounds["K_c"] == pytest.approx([0.0, 15.0])
    assert source.parameters.units[0] == "m / s"
    theta = source.parameters.sample(5, seed=0)
    assert torch.equal(source.simulator(theta, seed=1), source.simulator.simulator(theta, seed=1))
    assert callable(source.simulator.log_likelihood)
    assert getattr(source.simulator, "no_such_attribute", None) is None


@pytest.mark.parametrize(
    ("words", "quantiles"),
    [
        ('distribution = "log-uniform"\nlow = 1.0\nhigh = 100.0', {0.5: 10.0}),
        ('distribution = "normal"\nmean = 5.0\nsigma = 2.0', {0.5: 5.0, 0.8413: 7.0}),
        ('distribution = "log-normal"\nmedian = 5.0\nsigma = 0.5', {0.5: 5.0, 0.8413: 8.2436}),
        ('distribution = "half-normal"\nsigma = 2.0', {0.6827: 2.0}),
        ('distribution = "exponential"\nmean = 3.0', {0.6321: 3.0}),
        ('distribution = "gamma"\nshape = 1.0\nscale = 3.0', {0.6321: 3.0}),
    ],
)
def test_every_distribution_has_its_quantiles(write, words, quantiles):
    from sbi_physics.run.priors import parameters_of
    from simulators.radial_velocity import k2_24

    # In km/s of a parameter in m/s: quantiles are a thousand times as large.
    text = GOOD.replace('distribution = "uniform"\nlow = 0.0\nhigh = 0.01', words)
    draws = parameters_of(read_analysis(write(text)), k2_24().parameters).sample(40_000, seed=0)[:, 0] / 1000
    for level, value in quantiles.items():
        below = float((draws < value).float().mean())
        assert below == pytest.approx(level, abs=4 * 0.5 / 200)


def test_files_that_cannot_be_read(tmp_path, write):
    with pytest.raises(StoreError, match=r"none\.toml: cannot be read"):
        read_analysis(tmp_path / "none.toml")
    with pytest.raises(UsageError, match=r"expected TOML: .*line 2.*\): \S"):
        read_analysis(write('job = "posterior"\nseed = = 3\n'))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, write):
    path = write(GOOD)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="is not empty, and no run directory"):
        run_analysis(path, tmp_path / "mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"format": "sbi-physics run", "job": "anomaly"}')
    with pytest.raises(StoreError, match="holds a run of the job 'anomaly'"):
        run_analysis(path, tmp_path / "other")
    with pytest.raises(StoreError, match="it is a file"):
        run_analysis(path, path)
