import json

import pytest
from matplotlib.figure import Figure
from pydantic import ValidationError

import sbi_physics as sp
from sbi_physics.report.results import (
    FigureItem,
    ResultSection,
    RunResults,
    TableItem,
    TextItem,
    read_results,
    report_from_directory,
    store_figure,
    write_results,
)


@pytest.fixture
def run(tmp_path):
    """The directory of a run."""
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([1, 2])
    results = RunResults(
        title="Two planets",
        verdicts=[("good", "NPE and MCMC agree."), ("bad", "Pareto k is 0.83.")],
        sections=[
            ResultSection(
                title="Posterior",
                items=[
                    TextItem(text="Words."),
                    TableItem(columns=["name", "median"], rows=[["b", 1.5], ["c", float("nan")]], units=["", "d"]),
                    FigureItem(file=store_figure(figure, tmp_path, "corner"), alt="Corner plot", caption="Contours."),
                ],
            )
        ],
        provenance={"seed": 3, "versions": {"torch": "2.13"}, "analysis": "[a]\nb = 1\n"},
    )
    write_results(results, tmp_path)
    return tmp_path


def change(run, edit):
    path = run / "results.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_the_page_of_a_run(run, result, program):
    values = result("report", run)
    assert values == {
        "report": str(run / "report.html"),
        "verdicts": [["good", "NPE and MCMC agree."], ["bad", "Pareto k is 0.83."]],
    }
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page == report_from_directory(run).html()
    for words in (
        "<h1>Two planets</h1>",
        "Pareto k is 0.83.",
        ">1.5</td>",
        ">–</td>",
        'alt="Corner plot"',
        "[a]\nb = 1",
    ):
        assert words in page
    status, out, err = program("report", run, "-o", run / "other.html")
    assert (status, out) == (0, f"{run / 'other.html'}\n")
    assert err.splitlines() == ["good: NPE and MCMC agree.", "bad: Pareto k is 0.83."]
    assert (run / "other.html").read_text(encoding="utf-8") == page


def test_results_come_back_as_they_went(run):
    results = read_results(run)
    assert results.sections[0].items[1].rows == [["b", 1.5], ["c", None]]
    before = (run / "results.json").read_bytes()
    assert write_results(results, run).read_bytes() == before
    kept = TableItem(columns=["x"], rows=[[1], [1.0], [True], ["1"], [None]])
    again = TableItem.model_validate_json(kept.model_dump_json())
    assert [type(row[0]) for row in again.rows] == [int, float, bool, str, type(None)]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda v: v.update(version=2), "version"),
        (lambda v: v.update(title=""), "title"),
        (lambda v: v.update(colour="red"), "colour"),
        (lambda v: v["verdicts"].append(["fine", "x"]), "verdicts.2.0"),
        (lambda v: v["sections"][0]["items"].append({"type": "film"}), "sections.0.items.3"),
        (lambda v: v["sections"][0]["items"][1]["rows"].append([1]), "sections.0.items.1: rows: expected 2 cells"),
        (lambda v: v["sections"][0]["items"][2].update(alt=" "), "sections.0.items.2: alt"),
        (lambda v: v["sections"][0]["items"][2].update(file="figures/none.svg"), "none.svg: cannot be read"),
        (lambda v: v["sections"][0]["items"][2].update(file="../secret.svg"), "inside the run directory"),
        (lambda v: v["sections"][0]["items"][2].update(file="/etc/hostname"), "inside the run directory"),
        (lambda v: v["sections"][0]["items"][2].update(file="results.json"), "expected a PNG or SVG file"),
    ],
)
def test_wrong_results_are_named_in_one_line(run, program, edit, words):
    change(run, edit)
    status, out, err = program("report", run, "--quiet")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (run / "report.html").exists()


def test_no_run_there(tmp_path, program):
    for folder in (tmp_path, tmp_path / "absent"):
        status, _, err = program("report", folder)
        assert (status, err.count("\n")) == (2, 1)
        assert f"{folder / 'results.json'}: expected the results of a run" in err
    (tmp_path / "results.json").write_bytes(b"\xff\xfe")
    assert program("report", tmp_path)[0] == 2
    (tmp_path / "results.json").write_text("{")
    assert "Invalid JSON" in program("report", tmp_path)[2]


def test_nowhere_to_write(run, program):
    status, _, err = program("report", run, "-o", run / "absent" / "x.html")
    assert status == 2
    assert "the folder" in err


def test_names_of_figures(tmp_path):
    for name in ("", "a/b", ".."):
        with pytest.raises(sp.UsageError, match="file name"):
            store_figure(Figure(), tmp_path, name)
    with pytest.raises(ValidationError):
        RunResults(title="t", verdicts=[("so-so", "x")])
