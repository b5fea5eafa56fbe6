import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.torch import save_file

import sbi_physics as sp
from sbi_physics.posterior.direct import DirectPosterior
from sbi_physics.store.models import read_model

MODELS = Path(__file__).with_name("user_models.py")


def outside_the_prior(path):
    with h5py.File(path, "r+") as file:
        file["theta"][7, 0] = 3.5


def of_version_99(path):
    header, tensors = read_model(path)
    save_file(tensors, path, metadata={"header": json.dumps({**header, "schema": 99})})


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def place(folder, tmp_path, monkeypatch):
    """A copy of the files, in the current folder, some of them spoiled."""
    for name in ("moons.h5", "moons.st", "x.npy"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for name, spoil in (("outside.h5", outside_the_prior), ("cut.h5", cut)):
        (tmp_path / name).write_bytes((folder / "moons.h5").read_bytes())
        spoil(tmp_path / name)
    for name, spoil in (("v99.st", of_version_99), ("cut.st", cut)):
        (tmp_path / name).write_bytes((folder / "moons.st").read_bytes())
        spoil(tmp_path / name)
    for name in ("empty.h5", "empty.st", "empty.npy", "empty.csv"):
        (tmp_path / name).touch()
    np.save(tmp_path / "nan.npy", np.array([0.1, np.nan]))
    np.save(tmp_path / "three.npy", np.zeros(3))
    np.save(tmp_path / "two.npy", np.zeros((2, 2)))
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    (tmp_path / "nan.csv").write_text("a,b\n0.1,nan\n")
    (tmp_path / "words.csv").write_text("a,b\nc,d\n")
    (tmp_path / "ragged.csv").write_text("1,2\n3\n")
    (tmp_path / "header.csv").write_text("a,b\n")
    sp.simulate("gaussian_linear", 8, out=tmp_path / "few.h5", workers=1, progress=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SAMPLE = "posterior sample moons.st -o d.h5 -n 5"

WRONG = {
    "NaN in the observation": (f"{SAMPLE} -x nan.npy", "x_obs: expected finite numbers, got 1 NaN"),
    "NaN in a table": (f"{SAMPLE} -x nan.csv", "x_obs: expected finite numbers, got 1 NaN"),
    "observation too long": (
        f"{SAMPLE} -x three.npy",
        "x_obs: expected shape (2,) as in training, or (m, 2) for m observations, got (3,)",
    ),
    "several observations": (f"{SAMPLE} -x two.npy", "observation: expected one of shape (2,), got 2"),
    "observation missing": (f"{SAMPLE} -x none.npy", "none.npy: no such file"),
    "observation empty": (f"{SAMPLE} -x empty.npy", "empty.npy: the file is empty"),
    "table empty": (f"{SAMPLE} -x empty.csv", "empty.csv: the file is empty"),
    "header alone": (f"{SAMPLE} -x header.csv", "header.csv: expected an array of numbers, found none"),
    "words": (f"{SAMPLE} -x words.csv", "words.csv: expected an array of numbers"),
    "words in npy": (f"{SAMPLE} -x words.npy", "x_obs: expected an array of numbers"),
    "ragged table": (f"{SAMPLE} -x ragged.csv", "ragged.csv: expected an array of numbers"),
    "pickled observation": (f"{SAMPLE} -x object.npy", "object.npy: expected an array of numbers"),
    "unknown observation": (f"{SAMPLE} -x moon", "simulator: expected a name ("),
    "no draws": (f"{SAMPLE} -x x.npy -n 0", "n: expected an integer of at least 1, got 0"),
    "bad plot": (f"{SAMPLE} -x x.npy --plot c.foo", "c.foo: expected a figure that ends in .png"),
    "no folder for the plot": (f"{SAMPLE} -x x.npy --plot no/c.png", "no/c.png: cannot be written"),
    "no folder for draws": (
        "posterior sample moons.st -x x.npy -o no/d.h5",
        "no/d.h5: cannot be written, the folder no",
    ),
    "theta outside the prior": (
        "posterior fit outside.h5 -o p.st",
        "outside.h5: theta: expected theta_0 in [-1, 1], got 3.5 in row 7",
    ),
    "check outside the prior": (
        "posterior check moons.st outside.h5",
        "outside.h5: theta: expected theta_0 in [-1, 1]",
    ),
    "simulations empty": ("posterior fit empty.h5 -o p.st", "empty.h5: the file is empty"),
    "simulations truncated": ("posterior fit cut.h5 -o p.st", "cut.h5: the file is damaged"),
    "simulations missing": ("posterior fit none.h5 -o p.st", "none.h5: no such file"),
    "simulations of another kind": ("posterior fit x.npy -o p.st", "x.npy: not an HDF5 file"),
    "too few simulations": ("posterior fit few.h5 -o p.st", "few.h5: theta: expected at least 10 simulations, got 8"),
    "other parameters": ("posterior check moons.st few.h5", "few.h5: the simulations are of the parameters"),
    "unknown model": ("posterior fit moons.h5 -o p.st --model nfs", "model: expected one of nsf, maf, maf-spline"),
    "no epochs": ("posterior fit moons.h5 -o p.st --epochs 0", "epochs: expected an integer of at least 1, got 0"),
    "no folder for the model": ("posterior fit moons.h5 -o no/p.st", "no/p.st: cannot be written, the folder no"),
    "model to a folder": ("posterior fit moons.h5 -o .", "cannot be written, it is a folder"),
    "model of another version": ("posterior sample v99.st -x x.npy -o d.h5", "v99.st: has schema 99"),
    "model truncated": ("posterior sample cut.st -x x.npy -o d.h5", "cut.st: damaged, or not a safetensors file"),
    "model empty": ("posterior sample empty.st -x x.npy -o d.h5", "empty.st: the file is empty"),
    "model missing": ("posterior sample none.st -x x.npy -o d.h5", "none.st: no such file"),
    "model of another kind": ("posterior check moons.h5 moons.h5", "moons.h5: expected a posterior, got simulations"),
    "unknown device": (f"{SAMPLE} -x x.npy --device tpu", "device: expected 'auto', 'cpu'"),
    "unknown simulator": ("simulate moon -n 5 -o s.h5", "simulator: expected a name (bernoulli_glm, "),
    "file without simulator": (f"simulate {MODELS}:Moon -n 5 -o s.h5", "has no 'Moon'; it defines: Chatty, Line"),
    "no number": ("simulate two_moons -n 1e5x -o s.h5", "'-n': expected a valid integer, got '1e5x'. See 'sbi-physics"),
    "no choice": ("posterior fit moons.h5 -o p.st --method nqe", "'--method': 'nqe' is not one of 'npe'"),
    "no simulations": ("simulate two_moons -n 0 -o s.h5", "n: expected an integer of at least 1, got 0"),
    "draws as CSV": (
        f"{SAMPLE} -x x.npy -o draws.csv",
        "draws.csv: HDF5 is written here; expected a name",
    ),
    "simulations as text": ("simulate two_moons -n 5 -o s.txt", "s.txt: HDF5 is written here"),
    "no workers": ("simulate two_moons -n 5 -o s.h5 --workers 0", "workers: expected an integer"),
    "no folder": ("simulate two_moons -n 5 -o no/s.h5", "no"),
    "file of another run": ("simulate two_moons -n 5 -o moons.h5", "moons.h5"),
    "compare without likelihood": (
        "posterior compare moons.st --simulator moon -x x.npy -o c",
        "simulator: expected a",
    ),
    "compare without data": ("posterior compare moons.st --simulator two_moons -o c", "'two_moons' carries no data"),
    "compare to a file": (
        "posterior compare moons.st --simulator two_moons -x x.npy -o x.npy",
        "x.npy: the folder cannot",
    ),
    "other simulator": (
        "posterior compare moons.st --simulator slcp -x x.npy -o c",
        "simulator: expected the parameters",
    ),
    "unknown data": ("data fetch moons", "data set: expected one of "),
    "unknown option": ("simulate two_moons -n 5 -o s.h5 --nope", "No such option: --nope"),
    "unknown verb": ("simulat", "No such command 'simulat'"),
    "unknown second verb": ("posterior fitt", "No such command 'fitt'"),
    "argument missing": ("simulate -n 5 -o s.h5", "Missing argument '"),
    "option missing": ("simulate two_moons -n 5", "Missing option '-o'"),
    "argument too many": ("data list more", "unexpected extra argument"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_clear_line_and_exit_2(case, place, program):
    command, message = WRONG[case]
    status, out, err = program(*command.split())
    assert status == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert message in err
    assert not (place / "p.st").exists()


def test_quiet_and_json_do_not_hide_errors(place, program):
    status, out, err = program("posterior", "fit", "empty.h5", "-o", "p.st", "--json", "--quiet")
    assert (status, out) == (2, "")
    assert err.startswith("error: empty.h5: the file is empty")


def test_failures_while_running_exit_1(place, program):
    np.save("far.npy", np.array([50.0, 50.0]))
    options = ["--simulator", "two_moons", "-x", "far.npy", "-o", "c", "-n", 50, "--steps", 10]
    status, out, err = program("posterior", "compare", "moons.st", *options)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((error, 2) for error in (sp.UsageError, sp.ShapeError, sp.NonFiniteError, sp.SupportError, sp.StoreError)),
        *((error, 1) for error in (sp.BudgetError, sp.ConvergenceError, sp.SimulationError, sp.TrainingError)),
    ],
)
def test_every_error_has_its_status(error, expected, place, program, monkeypatch):
    def fail(*_, **__):
        raise error("the loss became nan\n  in epoch 3")

    monkeypatch.setattr(DirectPosterior, "sample", fail)
    status, out, err = program(*SAMPLE.split(), "-x", "x.npy")
    assert (status, out, err) == (expected, "", "error: the loss became nan in epoch 3\n")


def test_no_simulation_succeeds(place, program, caplog):
    status, out, _ = program("simulate", f"{MODELS}:NeverWorks", "-n", 6, "-o", "s.h5", "--workers", 1, "--json")
    assert status == 1
    assert json.loads(out)["status"]["failed"] == 6
    assert "none of 6 simulations succeeded; row 0: RuntimeError: no licence" in caplog.text


def test_a_full_disk_is_one_line(place, program, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DirectPosterior, "sample", full)
    status, _, err = program(*SAMPLE.split(), "-x", "x.npy")
    assert status == 1
    assert err == "error: [Errno 28] No space left on device\n"


def test_programming_errors_keep_their_traceback(place, monkeypatch):
    from sbi_physics.cli.app import main

    monkeypatch.setattr(DirectPosterior, "sample", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*SAMPLE.split(), "-x", "x.npy"])


def test_an_interrupt(place, program, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(DirectPosterior, "sample", interrupt)
    status, _, err = program(*SAMPLE.split(), "-x", "x.npy")
    assert status == 130
    assert "Traceback" not in err
