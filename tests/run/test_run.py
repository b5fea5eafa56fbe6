"""A whole analysis: made once, and again only where something changed."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import sbi_physics as sp
from sbi_physics.core.errors import SBIPhysicsError, SimulationError, StoreError, UsageError
from sbi_physics.run.run import run_analysis

STAGES = ["observe", "simulate", "fresh", "fit", "calibrate", "sample", "correct", "predict", "report"]


def made(path, *overrides):
    return [step.name for step in run_analysis(path, overrides=overrides).todo]


def planned(path, *overrides):
    return {step.name: step.reason for step in run_analysis(path, overrides=overrides, dry_run=True).todo}


def checksums(folder):
    """Of all that the stages made, but for the report and the records, which hold times."""
    files = [p for p in folder.glob("*/**/*") if p.is_file() and p.name != "stage.json" and "report" not in p.parts]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_second_run_does_nothing(copied):
    run = copied.parent / "analysis-run"
    times = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    assert [step.status for step in run_analysis(copied, run).steps] == ["done"] * len(STAGES)
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_the_directory_holds_what_is_needed_to_repeat_the_run(copied, posterior_text):
    run = copied.parent / "analysis-run"
    assert (run / "analysis.toml").read_text() == posterior_text
    about = json.loads((run / "run.json").read_text())
    assert about["seed"] == 1
    assert {"sbi-physics", "torch", "python"} <= set(about["versions"])
    assert list(about["stages"]) == sorted(STAGES)
    code = about["stages"]["simulate"]["identity"]["files"]
    assert code == {n: hashlib.sha256((run.parent / n).read_bytes()).hexdigest() for n in ("line.py", "offset.py")}
    for name, record in about["stages"].items():
        for file, digest in record["files"].items():
            assert hashlib.sha256((run / name / file).read_bytes()).hexdigest() == digest
    results = json.loads((run / "report" / "results.json").read_text())
    assert set(results["provenance"]["seeds"]) >= {"simulate", "fit", "sample"}
    assert set(results["provenance"]["seeds"].values()) == {1}
    page = (run / "report.html").read_text()
    assert "A line" in page
    assert "Corrected towards the exact posterior" in page
    assert page.count("<img ") == 5  # training, calibration, two corner plots, predictive
    assert not re.search(r'(src|href)="(?!data:|#)', page)


@pytest.mark.parametrize(
    ("overrides", "redone"),
    [
        (["seeds.sample=5"], ["sample", "correct", "predict", "report"]),
        (["seeds.fresh=5"], ["fresh", "calibrate", "report"]),
        (["seeds.correct=5"], ["correct", "predict", "report"]),
        (["diagnostics.calibration_draws=40"], ["calibrate", "report"]),
        (["title=Another"], ["report"]),
        (["correct.method=none"], ["predict", "report"]),
        (["budget.simulations=310"], ["simulate", "fit", "calibrate", "sample", "correct", "predict", "report"]),
    ],
)
def test_a_change_redoes_what_depends_on_it_and_nothing_before(copied, overrides, redone):
    before = checksums(copied.parent / "analysis-run")
    assert list(planned(copied, *overrides)) == redone
    if len(redone) < 4:
        assert made(copied, *overrides) == redone
        after = checksums(copied.parent / "analysis-run")
        kept = {name for name in before if name.split("/")[0] not in redone}
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        assert made(copied, *overrides) == []


def test_a_comment_in_the_file_redoes_the_report_alone(copied):
    copied.write_text(copied.read_text() + "# a note\n")
    assert planned(copied) == {"report": "file analysis.toml changed"}
    assert made(copied) == ["report"]
    assert (copied.parent / "analysis-run" / "analysis.toml").read_text().endswith("# a note\n")


def test_a_plan_says_why_and_does_nothing(copied):
    assert planned(copied, "seeds.sample=5") == {
        "sample": "seed 1 -> 5",
        "correct": "sample changed",
        "predict": "correct changed, sample changed",
        "report": 'overrides [] -> ["seeds.sample=5"], correct changed, predict changed and 1 more',
    }
    assert made(copied) == []


def test_a_changed_file_of_the_simulator_redoes_what_it_made(copied, tmp_path):
    program = (
        "import sys; from sbi_physics.run.run import run_analysis\n"
        "print(*(s.name + ':' + s.reason for s in run_analysis(sys.argv[1], dry_run=True).todo), sep='|')"
    )
    (copied.parent / "offset.py").write_text("OFFSET = 1.0\n")
    done = subprocess.run([sys.executable, "-c", program, copied], capture_output=True, text=True, check=True)
    reasons = dict(line.split(":") for line in done.stdout.strip().split("|"))
    assert reasons["simulate"] == "file offset.py changed"
    assert reasons["fit"] == "simulate changed"


@pytest.mark.parametrize("file", ["fit/posterior.safetensors", "sample/samples.h5", "report.html"])
def test_a_damaged_output_is_made_again_and_is_what_it_was(copied, file):
    run = copied.parent / "analysis-run"
    before = checksums(run)
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: len(content) // 2])
    assert made(copied) == [file.split("/")[0]] * ("/" in file)
    assert checksums(run) == before
    if "/" not in file:
        assert (run / file).read_bytes() == content


@pytest.mark.parametrize("until", [".partial/simulate-*/simulations.h5.parts/block-*", ".partial/fit-*/checkpoint*"])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(line_files, finished, tmp_path, posterior_text, until):
    path = line_files(tmp_path)
    program = "import sys; from sbi_physics.run.run import run_analysis; run_analysis(sys.argv[1])"
    child = subprocess.Popen([sys.executable, "-c", program, path])
    run, deadline = tmp_path / "analysis-run", time.monotonic() + 60
    while not list(run.glob(until)) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    stage = until.split("/")[1].split("-")[0]
    assert not (run / stage).exists()
    assert planned(path)[stage] == "it was interrupted"
    redone = made(path)
    assert redone[0] == stage
    assert checksums(run) == checksums(finished / "analysis-run")
    assert not (run / ".partial").exists()


def test_two_runs_at_once_are_refused(copied):
    program = (
        "import sys, time; from pathlib import Path; from sbi_physics.run.stages import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    run = copied.parent / "analysis-run"
    other = subprocess.Popen([sys.executable, "-c", program, run], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match="another process is working on this run"):
            run_analysis(copied)
        assert planned(copied) == {}
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_methods_that_need_a_likelihood_say_so(line_files, tmp_path, posterior_text):
    path = line_files(tmp_path)
    (tmp_path / "line.py").write_text((tmp_path / "line.py").read_text().replace("def log_likelihood", "def _unknown"))
    assert "correct" not in planned(path)
    for override, key in (("correct.method=mcmc", "correct.method"), ("reference.steps=10", "reference")):
        with pytest.raises(UsageError, match=f"{key}: expected a simulator with log_likelihood"):
            planned(path, override)


@pytest.mark.parametrize("method", ["nle", "nre", "vi"])
def test_other_methods(line_files, tmp_path, posterior_text, method):
    small = {"nle": "transforms = 1, hidden_features = 8, blocks = 1", "nre": "hidden_features = 8, blocks = 1"}
    head, tail = posterior_text.split("[method]\n")[0], posterior_text[posterior_text.index("[budget]") :]
    how = {
        "vi": "steps = 40\ndraws = 20",
        "nle": f"options = {{ {small['nle']} }}\ntraining.epochs = 1",
        "nre": f"embedding = 'flat'\noptions = {{ {small['nre']} }}\ntraining.epochs = 1",
    }
    text = f'{head}[method]\nname = "{method}"\n{how[method]}\n{tail}'
    text = text.replace("calibration = 50", "calibration = 20")
    path = line_files(tmp_path, text)
    summary = run_analysis(path, overrides=["correct.method=mcmc", "diagnostics.predictive=false"])
    assert ("simulate" in summary.numbers) == (method != "vi")
    assert summary.numbers["fit"]["method"] == method
    assert (summary.path / "report.html").exists()
    assert made(path, "correct.method=mcmc", "diagnostics.predictive=false") == []


def test_a_file_of_simulations_and_a_table(finished, tmp_path, posterior_text):
    source = finished / "analysis-run" / "simulate" / "simulations.h5"
    np.save(tmp_path / "x.npy", np.array([0.1, 0.9, 2.2, 2.8]))
    text = posterior_text.replace('simulator = "line.py:Line"', f'simulations = "{source}"\nobservation.file = "x.npy"')
    path = tmp_path / "analysis.toml"
    path.write_text(text)
    summary = run_analysis(path)
    assert [step.name for step in summary.steps] == ["observe", "fit", "calibrate", "sample", "report"]
    assert summary.numbers["calibrate"]["simulations"] == 50
    theta, x = sp.Simulations.open(source).training_set()
    rows = np.concatenate([theta.numpy(), x.numpy()], 1)
    np.savetxt(tmp_path / "t.csv", rows, delimiter=",", header="slope,start,a,b,c,d", comments="")
    table = 'table = { file = "t.csv", outputs = ["a", "b", "c", "d"] }'
    prior = (
        '[prior.slope]\ndistribution = "uniform"\nlow = -1.0\nhigh = 3.0\nunit = "m / s"\n'
        '[prior.start]\ndistribution = "normal"\nmean = 0.0\nsigma = 1.0\n'
    )
    path.write_text(text.replace(f'simulations = "{source}"', table) + prior)
    again = run_analysis(path, tmp_path / "table-run")
    assert again.numbers["sample"]["draws"] == 200
    assert list(again.numbers["sample"]["intervals"]) == ["slope", "start"]


def test_a_posterior_that_cannot_be_corrected_is_a_verdict_and_no_failure(copied):
    overrides = ["correct.max_pareto_k=1e-9", "correct.method=importance"]
    summary = run_analysis(copied, overrides=overrides)
    verdicts = dict((text.split(":")[0], kind) for kind, text in summary.verdicts)
    if "Correction by importance failed" in verdicts:
        assert verdicts["Correction by importance failed"] == "bad"
        assert not (summary.path / "correct" / "samples.h5").exists()
    assert made(copied, *overrides) == []


def test_what_a_stage_raises_ends_the_run_and_leaves_what_is_done(line_files, tmp_path):
    path = line_files(tmp_path)
    impossible = ["method.name=vi", "method.augment=false"]
    with pytest.raises(UsageError):
        run_analysis(path, overrides=impossible)
    (tmp_path / "line.py").write_text((tmp_path / "line.py").read_text().replace("self._mean(theta) +", "1 / 0 +"))
    with pytest.raises(SimulationError, match=r"none of 300 simulations succeeded: .*division by zero"):
        run_analysis(path)
    assert (tmp_path / "analysis-run" / "observe" / "stage.json").exists()
    assert not (tmp_path / "analysis-run" / "simulate").exists()


@pytest.mark.parametrize(
    ("observation", "independent", "message"),
    [
        (
            [0.1, 0.9, 2.2],
            "false",
            r"line \d+: observation.file: x_obs: expected shape \(4,\) as in training, .* got \(3,\)",
        ),
        ([[0.1, 0.9, 2.2, 2.8]] * 2, "false", "got 2; say observation.independent = true"),
        ([[0.1, 0.9, 2.2, 2.8]] * 2, "true", "cannot be joined by a posterior network"),
        ([0.1, 0.9, 2.2, float("nan")], "false", "observation.file: x_obs: .*NaN"),
    ],
)
def test_an_observation_that_does_not_fit_is_found_before_anything_is_trained(
    finished, tmp_path, posterior_text, observation, independent, message
):
    source = finished / "analysis-run" / "simulate" / "simulations.h5"
    np.save(tmp_path / "x.npy", np.array(observation))
    given = f'simulations = "{source}"\nobservation.file = "x.npy"\nobservation.independent = {independent}'
    path = tmp_path / "analysis.toml"
    path.write_text(posterior_text.replace('simulator = "line.py:Line"', given))
    for dry in (True, False):
        with pytest.raises(SBIPhysicsError, match=message):
            run_analysis(path, dry_run=dry)
    assert not list((tmp_path / "analysis-run").glob("*/stage.json"))
    np.save(tmp_path / "x.npy", np.array([0.1, 0.9, 2.2, 2.8]))
    steps = run_analysis(path, overrides=["observation.independent=false"]).steps
    assert next(step.reason for step in steps if step.name == "fit") == "not made yet"


def test_an_observation_that_does_not_fit_the_simulator_is_found_before_simulating(
    line_files, tmp_path, posterior_text
):
    simulator = 'simulator = "line.py:Line"'
    path = line_files(tmp_path, posterior_text.replace(simulator, f'{simulator}\nobservation.file = "x.txt"'))
    for text, message in (("0.1 0.9 2.2", r"expected shape \(4,\) .* got \(3,\)"), ("0.1 0.9 2.2 nan", "NaN")):
        (tmp_path / "x.txt").write_text(f"{text}\n")
        with pytest.raises(SBIPhysicsError, match=rf"line \d+: observation.file: x_obs: .*{message}"):
            run_analysis(path)
        assert not list((tmp_path / "analysis-run").glob("*/stage.json"))


def test_a_new_observation_that_does_not_fit_is_found_where_the_network_is_there_already(copied):
    (copied.parent / "x.txt").write_text("0.1 0.9 2.2\n")
    simulator = 'simulator = "line.py:Line"'
    copied.write_text(copied.read_text().replace(simulator, f'{simulator}\nobservation.file = "x.txt"'))
    message = r"line \d+: observation.file: x_obs: expected shape \(4,\) .* got \(3,\)"
    for dry in (True, False):
        with pytest.raises(SBIPhysicsError, match=message):
            run_analysis(copied, dry_run=dry)
    (copied.parent / "x.txt").write_text("0.1 0.9 2.2 2.8\n")
    made = [step.name for step in run_analysis(copied).steps if step.status == "made"]
    assert made == ["observe", "sample", "correct", "predict", "report"]


def test_too_few_rows_to_check_with_are_told_before_anything_is_trained(finished, tmp_path, posterior_text):
    rows = sp.load(finished / "analysis-run" / "simulate" / "simulations.h5")
    sp.Simulations.from_arrays(rows.theta[:40], rows.x[:40], rows.parameters).save(tmp_path / "few.h5")
    np.save(tmp_path / "x.npy", np.array([0.1, 0.9, 2.2, 2.8]))
    path = tmp_path / "analysis.toml"
    given = 'simulations = "few.h5"\nobservation.file = "x.npy"'
    path.write_text(posterior_text.replace('simulator = "line.py:Line"', given))
    with pytest.raises(UsageError, match=r"diagnostics.calibration: expected at least 10 .* got 8 .*fifth of 40"):
        run_analysis(path)
    assert "fit" in planned(path, "diagnostics.calibration=false")


def test_the_report_says_what_was_assumed(copied):
    results = json.loads((copied.parent / "analysis-run" / "report" / "results.json").read_text())
    (section,) = (section for section in results["sections"] if section["title"] == "Prior")
    rows = {row[0]: row[1:] for row in section["items"][0]["rows"]}
    assert rows["slope"][:2] == ["m / s", "Uniform(low -1, high 3)"]
    assert rows["start"][1] == "Normal(loc 0, scale 1)"
    median, low, high = map(float, rows["slope"][2:])
    assert abs(median - 1) < 0.05
    assert abs(high - low - 4 * 0.68) < 0.1


@pytest.fixture
def table(finished, tmp_path, posterior_text):
    """An analysis of a table of what the simulator made."""
    theta, x = sp.Simulations.open(finished / "analysis-run" / "simulate" / "simulations.h5").training_set()
    rows = np.concatenate([theta.numpy(), x.numpy()], 1)
    np.savetxt(tmp_path / "t.csv", rows, delimiter=",", header="slope,start,a,b,c,d", comments="")
    np.save(tmp_path / "x.npy", np.array([0.1, 0.9, 2.2, 2.8]))
    source = 'table = { file = "t.csv", outputs = ["a", "b", "c", "d"] }\nobservation.file = "x.npy"'
    prior = (
        '[prior.slope]\ndistribution = "uniform"\nlow = -1.0\nhigh = 3.0\n'
        '[prior.start]\ndistribution = "normal"\nmean = 0.0\nsigma = 1.0\n'
    )
    path = tmp_path / "analysis.toml"
    path.write_text(posterior_text.replace('simulator = "line.py:Line"', source) + prior)
    return path


def test_a_table_that_its_prior_did_not_draw(table):
    def told(*overrides):
        verdicts = run_analysis(table, overrides=overrides).verdicts
        return [text for _, text in verdicts if "was not drawn from the prior" in text]

    assert not told()
    (text,) = told("prior.slope.high=5.0")
    assert text.startswith("slope of the table")


def test_rows_of_a_table_that_were_written_twice(table):
    def told():
        return [text for _, text in run_analysis(table).verdicts if "repeat another" in text]

    assert not told()
    lines = (table.parent / "t.csv").read_text().splitlines(keepends=True)
    (table.parent / "t.csv").write_text("".join([lines[0], *(2 * line for line in lines[1:])]))
    (text,) = told()
    again, all_rows = (int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)[:2])
    assert all_rows in (2 * again, 2 * again + 1)


def test_held_out_rows_that_were_learned_are_left_out_of_the_check(table):
    def checked():
        done = run_analysis(table)
        (told,) = [text for _, text in done.verdicts if "held out to check with" in text] or [""]
        found = json.loads((table.parent / "analysis-run" / "calibrate" / "findings.json").read_text())
        return told, found["numbers"]["simulations"]

    lines = (table.parent / "t.csv").read_text().splitlines(keepends=True)
    told, last = checked()
    assert told == ""
    # The first rows once more at the end, where those to check with are.
    (table.parent / "t.csv").write_text("".join([*lines, *lines[1:21]]))
    told, rows = checked()
    assert told.startswith("20 of the last")
    assert rows in range(last - 20, last - 14)
    (table.parent / "t.csv").write_text("".join([*lines, *lines[1 : last + 20]]))
    with pytest.raises(UsageError, match="expected at least 10 rows to check with that are not among those"):
        checked()


def test_a_plan_names_the_prior_that_changed(table):
    run_analysis(table)
    reason = planned(table, "prior.slope.high=5.0")["fit"]
    assert reason.startswith("parameters.bounds [[-1.0, 3.0], ")
    assert reason.endswith("parameters.prior.components changed")
    # As it was written, not as single precision has it.
    assert "-> [[-1.0, 3.6]," in planned(table, "prior.slope.high=3.6")["fit"]


def test_the_columns_of_data_of_a_table(table):
    run_analysis(table)
    text = table.read_text()
    table.write_text(text.replace(', outputs = ["a", "b", "c", "d"]', ""))
    assert "fit" not in planned(table)  # all that are no parameters: the same
    table.write_text(text.replace('"a", "b", "c", "d"', '"a", "b", "d", "c"'))
    assert planned(table)["fit"].startswith("outputs ")


def test_an_observation_that_does_not_fit_a_table_names_its_columns(table):
    table.write_text(table.read_text().replace('outputs = ["a", "b", "c", "d"]', 'outputs = ["a", "b", "c"]'))
    with pytest.raises(SBIPhysicsError, match=r"expected shape \(3,\) .* its columns a, b, c$"):
        run_analysis(table)


def test_outputs_that_tell_a_parameter(table):
    with pytest.raises(UsageError, match=r"table.outputs: slope is a parameter"):
        planned(table, 'table.outputs=["a", "slope"]')


def test_simulators_in_files_are_found_beside_the_analysis(finished, tmp_path, posterior_text, monkeypatch):
    """Whatever folder the program is called from."""
    rows = sp.load(finished / "analysis-run" / "simulate" / "simulations.h5")
    surrogate = sp.Surrogate("mixture", config={"epochs": 1}).fit(rows, progress=False)
    surrogate.save(tmp_path / "line.safetensors")
    np.save(tmp_path / "x.npy", np.array([0.1, 0.9, 2.2, 2.8]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = tmp_path / "analysis.toml"
    given = 'simulator = "line.safetensors"\nobservation.file = "x.npy"'
    path.write_text(posterior_text.replace('simulator = "line.py:Line"', given))
    assert run_analysis(path).steps[-1].status == "made"
