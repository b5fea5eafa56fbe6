"""`sbi-physics run`: the examples of all four jobs with small budgets, and what the program says."""

import json
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "k2_24": [
        "budget={ simulations = 400, calibration = 30, draws = 300, predictive = 400 }",
        "method={ name = 'npe', embedding = 'flat', options = { transforms = 1, hidden_features = 8, blocks = 1 }, "
        "augment = false, training.epochs = 2 }",
        "correct={ method = 'mcmc', proposals = 400 }",
        "reference={ steps = 200, walkers = 32, c2st = false }",
        "diagnostics.calibration_draws=30",
    ],
    "calorimeter": [
        "budget={ simulations = 300, check = 800 }",
        "method={ model = 'vae', geometry = 'photons', options.hidden_features = 16, training.epochs = 1 }",
        "diagnostics={ classifier_epochs = 1, timing = false }",
    ],
    "muon_pairs": ["budget={ rel_error = 1e-2, events = 200 }", "method.neural=false"],
    "dijet": [
        "data={ simulator = 'dijet', background = 2000, signal = 60 }",
        "search={ signal_region = [3.3, 3.7], members = 1, folds = 2, toys = 100, model = 'mixture', "
        "training.epochs = 1 }",
        "diagnostics.closure=false",
    ],
}
STAGES = {
    "k2_24": ["observe", "simulate", "fresh", "fit", "calibrate", "sample", "correct", "reference", "predict"],
    "calorimeter": ["simulate", "fresh", "fit", "check"],
    "muon_pairs": ["integrate", "events"],
    "dijet": ["data", "search"],
}


def options(name, *more):
    return [part for override in (*SMALL[name], "compute.workers=1", *more) for part in ("--set", override)]


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_examples_run_to_a_report_and_are_done_then(result, program, tmp_path, name):
    arguments = ["run", EXAMPLES / f"{name}.toml", "-o", tmp_path / "run", *options(name)]
    first = result(*arguments)
    assert first["made"] == [*STAGES[name], "report"]
    page = Path(first["report"]).read_text()
    assert "<img " in page
    assert first["verdicts"]
    again = result(*arguments)
    assert again["made"] == []
    assert again["results"] == first["results"]
    status, out, err = program(*arguments)
    assert status == 0
    assert f"nothing to do, all {len(STAGES[name]) + 1} stages are done" in out
    assert all(f"{stage}: done already" in err for stage in STAGES[name])
    assert not any(EXAMPLES.glob("*-run"))


def test_a_seed_and_a_plan(result, program, tmp_path):
    shutil.copy(EXAMPLES / "muon_pairs.toml", tmp_path / "z.toml")
    arguments = ["run", tmp_path / "z.toml", *options("muon_pairs")]
    planned = result(*arguments, "--dry-run")
    assert [stage["status"] for stage in planned["stages"]] == ["to do"] * 3
    assert not (tmp_path / "z-run").exists()
    first = result(*arguments)
    assert first["path"] == str(tmp_path / "z-run")
    changed = result(*arguments, "--set", "seeds.events=3")
    assert changed["made"] == ["events", "report"]
    assert changed["results"]["integrate"] == first["results"]["integrate"]
    assert "warning" not in [kind for kind, _ in changed["verdicts"]]
    status, out, _ = program(*arguments, "--seed", 5, "--dry-run")
    assert status == 0
    assert "seed 0 -> 5" in out


def test_les_houches_events(result, tmp_path):
    lhe = ["--set", "lhe={ incoming = [11, -11], outgoing = [13, -13] }"]
    found = result("run", EXAMPLES / "muon_pairs.toml", "-o", tmp_path / "run", *options("muon_pairs"), *lhe)
    text = (tmp_path / "run" / "events" / "events.lhe").read_text()
    assert text.count("<event>") == found["results"]["events"]["events"] == 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('job = "integrate"\nintegrand = 3\n', "line 2: integrand: expected a valid string, got 3"),
        ('job = "integrate"\nintegrand = "muons"\n', "line 2: integrand: integrand: expected a name"),
        ('job = "integrate"\n\n[budget]\nevents = 1.5\n', "integrand: this key must be there"),
        ('job = "integrate"\nintegrand = "f.py:g"\n[lhe]\nincoming = []\n', "line 4: lhe.incoming: "),
        (
            'job = "anomaly"\n[data]\nsimulator = "sir"\n[search]\nsignal_region = [1, 2]\n',
            "line 3: data.simulator",
        ),
        ('job = "anomaly"\n[data]\n[search]\nsignal_region = [1]\n', "line 4: search.signal_region: "),
        ('job = "surrogate"\nsimulator = "two_moons"\nmethod.model = "x"\n', "line 3: method.model: "),
        ('job = "surrogate"\n', "simulator: expected a simulator, simulations or a table"),
    ],
)
def test_wrong_files_end_with_one_line(program, tmp_path, text, words):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    status, out, err = program("run", path)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {path}")
    assert err.count("\n") == 1
    assert words in err


def test_a_search_in_a_users_table(result, tmp_path):
    import numpy as np

    from simulators.dijet import DijetResonance

    events = DijetResonance().events(background=2000, signal=60, seed=1)
    columns = np.column_stack([events.mass, events.features, events.labels])
    np.savetxt(tmp_path / "e.csv", columns, delimiter=",", header="m,a,b,c,d,truth", comments="")
    text = (EXAMPLES / "dijet.toml").read_text()
    head, tail = text[: text.index("[data]")], text[text.index("[search]") :]
    data = '[data]\nfile = "e.csv"\nmass = "m"\nfeatures = ["a", "b"]\nlabel = "truth"\n'
    (tmp_path / "mine.toml").write_text(head + data + tail)
    found = result("run", tmp_path / "mine.toml", *options("dijet")[2:])
    assert found["results"]["data"]["events"] == 2060
    assert found["results"]["search"]["largest_significance_improvement"] > 0
    assert json.loads((tmp_path / "mine-run" / "data" / "columns.json").read_text())["features"] == ["a", "b"]
