"""Searches on the command line: results, pictures, and one line for what is wrong."""

import numpy as np
import pytest

from simulators.dijet import DijetResonance

QUICK = ["--epochs", 2, "--members", 1, "--folds", 2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("anomaly")
    data = DijetResonance().events(background=4000, signal=200, seed=1)
    table = np.column_stack([data.mass, data.features, data.labels])
    header = "m_jj,m_j1,delta_m,tau1,tau2,label"
    np.savetxt(path / "events.csv", table, delimiter=",", header=header, comments="")
    x, m = DijetResonance().sample_signal(300, seed=2)
    np.savetxt(path / "signal.csv", np.column_stack([m, x]), delimiter=",", header=header[:-6], comments="")
    np.save(path / "events.npy", table)
    return path


def test_a_search_with_labels(files, result, tmp_path):
    out = tmp_path / "found"
    found = result(
        "anomaly", "search", files / "events.csv", "--mass", "m_jj", "--label", "label", "--signal-region", 3.3, 3.7,
        "-o", out, *QUICK, "--closure",
    )  # fmt: skip
    assert {file.name for file in out.iterdir()} == {
        "result.json",
        "search.png",
        "spectrum.png",
        "scores.npy",
        "selection.npy",
    }
    assert found["signal_region"] == [3.3, 3.7]
    assert len(found["points"]) == 4
    assert found["largest_significance_improvement"] > 1.5
    assert 0.4 < found["closure_auc"] < 0.7
    assert np.load(out / "scores.npy").shape == (4200,)
    # What is counted is what passes the thresholds of the result.
    selection, mass = np.load(out / "selection.npy"), np.loadtxt(files / "events.csv", delimiter=",", skiprows=1)[:, 0]
    inside = selection[(mass > 3.3) & (mass < 3.7)]
    assert [(inside >= point["threshold"]).sum() for point in found["points"]] == [
        p["observed"] for p in found["points"]
    ]


def test_labels_without_a_signal(files, program, tmp_path):
    """As of a test for closure: nothing to score, and no error; a label is 0 or 1."""
    data = np.load(files / "events.npy")
    search = ["anomaly", "search", tmp_path / "e.csv", "--mass", "m", "--label", "truth", "--signal-region", 3.3, 3.7]
    for labels, status, words in (
        (0.0, 0, "features: a, b, c, d\n"),
        (0.5, 2, "expected 0 and 1 in the column 'truth'"),
    ):
        data[:, -1] = labels
        np.savetxt(tmp_path / "e.csv", data, delimiter=",", header="m,a,b,c,d,truth", comments="")
        found, out, err = program(*search, "-o", tmp_path / "found", *QUICK)
        assert (found, words in out + err) == (status, True)
        assert "by the labels" not in out


def test_columns_by_name(files, program, tmp_path):
    names = [word for name in ("m", "a", "b", "c", "d", "truth") for word in ("--name", name)]
    search = ["anomaly", "search", files / "events.npy", "--mass", "m", "--signal-region", 3.3, 3.7, "-o", tmp_path]
    status, out, _ = program(*search, *names, "--feature", "a", "--feature", "b", "--method", "sidebands", *QUICK)
    assert status == 0
    assert "standard deviations" in out


def test_a_scan_and_an_injection(files, result, tmp_path):
    columns = [word for name in ("m_j1", "delta_m", "tau1") for word in ("--feature", name)]
    common = ["--mass", "m_jj", *columns, *QUICK]
    scan = ["anomaly", "scan", files / "events.csv", "--window", "2.8:3.1", "--window", "3.3:3.7"]
    found = result(*scan, *common, "-o", tmp_path / "scan.png")
    assert [one["signal_region"] for one in found["windows"]] == [[2.8, 3.1], [3.3, 3.7]]
    inject = ["anomaly", "inject", files / "events.csv", files / "signal.csv", "--signal-region", 3.3, 3.7]
    numbers = ["--number", 0, "--number", 200, "--draws", 1]
    found = result(*inject, *numbers, *common, "-o", tmp_path / "injection.png")
    assert found["numbers"] == [0, 200]
    assert found["local"][1][0] > found["local"][0][0]
    assert {file.name for file in tmp_path.iterdir()} == {"scan.png", "injection.png"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mass", "mjj", "--signal-region", 3.3, 3.7], "expected a column 'mjj', got m_jj, m_j1"),
        (["--mass", "m_jj", "--feature", "x", "--signal-region", 3.3, 3.7], "there is no column 'x'"),
        (["--mass", "m_jj", "--signal-region", 7, 8], "signal_region: (7, 8] holds 0 events"),
        (["--mass", "m_jj", "--signal-region", 2.4, 3.0], "control region: expected at least 50 events below"),
        (["--mass", "m_jj", "--signal-region", 3.7, 3.3], "signal_region: expected low < high"),
    ],
)
def test_one_line_for_what_is_wrong(arguments, words, files, program, tmp_path):
    folder = tmp_path / "found"
    status, out, err = program("anomaly", "search", files / "events.csv", *arguments, "-o", folder)
    assert (status, out, folder.exists()) == (2, "", False)
    assert words in err
    assert err.count("\n") == 1


def test_a_constant_feature_has_its_name(files, program, tmp_path):
    """As a column of labels that nobody said to be one."""
    data = np.load(files / "events.npy")
    outside = (data[:, 0] <= 3.3) | (data[:, 0] > 3.7)
    data[outside, -1] = 0.0
    np.savetxt(tmp_path / "e.csv", data, delimiter=",", header="m_jj,a,b,c,d,is_signal", comments="")
    search = ["anomaly", "search", tmp_path / "e.csv", "--mass", "m_jj", "--signal-region", 3.3, 3.7]
    status, _, err = program(*search, "-o", tmp_path / "found", *QUICK)
    assert (status, "features: is_signal is 0 throughout the control region" in err) == (2, True)


def test_a_window_is_two_masses(files, program, tmp_path):
    scan = ["anomaly", "scan", files / "events.csv", "--mass", "m_jj", "--window", "3.3", "-o", tmp_path / "x.png"]
    status, _, err = program(*scan)
    assert (status, "window: expected two masses as 3.3:3.7" in err) == (2, True)
