import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import sbi_physics as sp
from sbi_physics.store.samples import read_samples

MODELS = Path(__file__).with_name("user_models.py")
INTERVAL = {"median", "lower_68", "upper_68"}


def test_from_simulations_to_a_comparison(result, tmp_path):
    simulations, model, x = tmp_path / "s.h5", tmp_path / "p.st", tmp_path / "x.csv"
    made = result("simulate", "gaussian_linear", "-n", 600, "-o", simulations, "--workers", 1)
    counts = {"ok": 600, "failed": 0, "nonfinite": 0, "timeout": 0, "crashed": 0}
    assert made == {"path": str(simulations), "simulations": 600, "status": counts}

    fitted = result("posterior", "fit", simulations, "-o", model, "--model", "maf", "--epochs", 2)
    assert set(fitted) == {"path", "method", "simulations", "failed", "seconds", "epochs", "validation_log_prob"}
    assert fitted["simulations"] == 600
    # A fit to synthetic simulations as well, where that is the better one, has more events and fewer epochs.
    assert fitted["epochs"] in (1, 2)

    x.write_text("x\n" + "0.1\n" * 10)
    drawn = result(
        "posterior", "sample", model, "-x", x, "-o", tmp_path / "d.h5", "-n", 50, "--plot", tmp_path / "c.png"
    )
    assert (drawn["path"], drawn["draws"]) == (str(tmp_path / "d.h5"), 50)
    assert set(drawn["intervals"]) == {f"theta_{i}" for i in range(10)}
    assert set(drawn["intervals"]["theta_0"]) == INTERVAL
    assert read_samples(tmp_path / "d.h5")["posterior"].values.shape == (50, 10)
    assert (tmp_path / "c.png").stat().st_size > 1000

    fresh = tmp_path / "fresh.h5"
    result("simulate", "gaussian_linear", "-n", 40, "-o", fresh, "--seed", 1, "--workers", 1)
    checked = result("posterior", "check", model, fresh, "--draws", 32, "--plot", tmp_path / "cal.pdf")
    assert set(checked) == {
        *("passed", "verdict", "verdicts", "coverage_verdict", "tarp_verdict", "p_values", "coverage_68"),
        *("simulations", "failed"),
    }
    assert checked["simulations"] == 40
    assert len(checked["verdicts"]) == 10
    assert (tmp_path / "cal.pdf").read_bytes().startswith(b"%PDF")


def test_compare(folder, result, tmp_path):
    out = tmp_path / "new" / "folder"
    options = ["--simulator", "two_moons", "-x", folder / "x.npy", "-o", out, "-n", 60, "--steps", 30]
    compared = result("posterior", "compare", folder / "moons.st", *options)
    assert compared.pop("path") == str(out)
    assert set(compared) == {
        *("c2st_npe", "c2st_corrected", "importance_efficiency", "pareto_k", "log_evidence", "log_evidence_error"),
        *("mcmc", "seconds", "likelihood_calls", "intervals"),
    }
    assert set(compared["intervals"]) == set(compared["likelihood_calls"]) == {"npe", "corrected", "mcmc"}
    assert json.loads((out / "result.json").read_text()) == compared
    with h5py.File(out / "samples.h5") as file:
        for name in ("npe", "corrected", "mcmc"):
            assert file[name]["values"].shape == (60, 2)
            assert list(file[name].attrs["names"].astype(str)) == ["theta_0", "theta_1"]
            assert list(file[name].attrs["units"].astype(str)) == ["", ""]
    assert (out / "corner.png").is_file()


def test_the_simulator_of_the_user(result, tmp_path):
    """A file of the user's own, with its own observation, all the way."""
    result("simulate", f"{MODELS}:Line", "-n", 300, "-o", tmp_path / "s.h5", "--workers", 1)
    assert sp.Simulations.open(tmp_path / "s.h5").parameters.units == ("m / s",)
    result("posterior", "fit", tmp_path / "s.h5", "-o", tmp_path / "p.st", "--epochs", 2, "--max-seconds", 20)
    (tmp_path / "x.txt").write_text("0.3\n")
    drawn = result("posterior", "sample", tmp_path / "p.st", "-x", tmp_path / "x.txt", "-o", tmp_path / "d.h5", "-n", 9)
    assert set(drawn["intervals"]) == {"slope"}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_simulator_prints_does_not_spoil_the_result(workers, program, tmp_path):
    options = ["-n", 8, "-o", tmp_path / "s.h5", "--workers", workers, "--block-size", 4]
    status, out, err = program("simulate", f"{MODELS}:Chatty", *options, "--json")
    assert status == 0
    assert json.loads(out)["simulations"] == 8
    assert all(f"step {i} of 7" in err for i in (1, 2, 3))


def test_a_file_that_was_there_is_said_to_be(program, tmp_path):
    command = ["simulate", "two_moons", "-n", 50, "-o", tmp_path / "s.h5", "--workers", 1, "--quiet"]
    ends = [program(*command)[1].strip() for _ in range(2)]
    assert ends[0].endswith(")")
    assert ends[1] == ends[0] + ", all there before"


def test_what_a_likelihood_prints_does_not_spoil_the_result(program, tmp_path, uniform_posterior):
    options = ["-x", tmp_path / "x.txt", "-o", tmp_path / "c", "-n", 50, "--steps", 20, "--json"]
    (tmp_path / "x.txt").write_text("0.3")
    status, out, err = program("posterior", "compare", uniform_posterior, "--simulator", f"{MODELS}:Line", *options)
    assert status == 0, err
    assert "c2st_npe" in json.loads(out)
    assert "evaluating" in err


@pytest.fixture
def uniform_posterior(tmp_path):
    from sbi_physics.simulation.resolve import resolve_simulator
    from sbi_physics.train.config import TrainConfig

    line = resolve_simulator(f"{MODELS}:Line")
    pairs = sp.simulate(line, 2000, workers=1, progress=False).training_set()
    estimator = sp.NPE(line.parameters, transforms=2, hidden_features=16, config=TrainConfig(epochs=8))
    estimator.fit(*pairs, progress=False).save(tmp_path / "line.st")
    return tmp_path / "line.st"


def test_text_for_people(folder, program, tmp_path):
    """Without --json the result is a table on standard output."""
    options = ["-x", folder / "x.npy", "-o", tmp_path / "d.h5", "-n", 20]
    status, out, err = program("posterior", "sample", folder / "moons.st", *options)
    assert (status, err) == (0, "")
    assert "theta_0" in out
    assert "median" in out
    status, out, err = program("posterior", "check", folder / "moons.st", folder / "moons.h5", "--draws", 16)
    assert status == 0
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[-4:-1]] == ["coverage", "random points", "highest density"]
    assert lines[-1].startswith(("passed: calibrated over", "not passed: "))


def test_the_observation_of_a_simulator(program, folder, tmp_path):
    """`-x radial_velocity` means the measured velocities, also where a folder has that name."""
    (tmp_path / "radial_velocity").mkdir()
    options = ["-o", tmp_path / "d.h5"]
    status, _, err = program("posterior", "sample", folder / "moons.st", "-x", "radial_velocity", *options)
    assert status == 2
    assert err == "error: x_obs: expected shape (2,) as in training, or (m, 2) for m observations, got (32,)\n"
    status, _, err = program("posterior", "sample", folder / "moons.st", "-x", "two_moons", *options)
    assert status == 2
    assert "the simulator 'two_moons' carries no data" in err


def test_same_seed_same_bytes(folder, program, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        program("posterior", "fit", folder / "moons.h5", "-o", tmp_path / f"{name}.st", "--epochs", 1, "--seed", seed)
        options = ["-x", folder / "x.npy", "-o", tmp_path / f"{name}.h5", "-n", 10, "--seed", seed]
        program("posterior", "sample", tmp_path / f"{name}.st", *options)
    drawn = {name: read_samples(tmp_path / f"{name}.h5")["posterior"].to_numpy() for name in "abc"}
    assert np.array_equal(drawn["a"], drawn["b"])
    assert not np.array_equal(drawn["a"], drawn["c"])


def test_the_installed_program(folder, tmp_path):
    """As a process of its own, from another folder."""
    program = Path(sys.executable).with_name("sbi-physics")
    command = [program, "posterior", "sample", folder / "moons.st", "-x", folder / "x.npy", "-o", "d.h5", "-n", "5"]
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["draws"] == 5
    done = subprocess.run([*command, "--device", "tpu"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: device: ")
    assert done.stderr.count("\n") == 1


def test_named_observations(result, program, tmp_path):
    (tmp_path / "two.py").write_text(
        "import torch\nimport sbi_physics as sp\nfrom torch.distributions import Uniform\n"
        "class Two:\n"
        "    parameters = sp.Parameters([sp.Parameter('a', Uniform(0.0, 1.0))])\n"
        "    def __call__(self, theta, *, seed):\n"
        "        noise = torch.randn(len(theta), 7, generator=torch.Generator().manual_seed(seed))\n"
        "        return {'counts': theta + noise[:, :3], 'spectrum': theta + noise[:, 3:]}\n"
    )
    simulations, model = tmp_path / "s.h5", tmp_path / "p.st"
    result("simulate", f"{tmp_path / 'two.py'}:Two", "-n", 200, "-o", simulations, "--workers", 1)
    fit = ["posterior", "fit", simulations, "-o", model, "--epochs", 1]
    status, _, err = program(*fit)
    assert (status, "got several named ones (counts, spectrum)" in err) == (2, True)
    status, _, err = program(*fit, "--embedding", "counts=residual", "--embedding", "gru")
    assert (status, "expected one encoder, or NAME=ENCODER for each observation; got counts=residual, gru" in err) == (
        2,
        True,
    )
    result(*fit, "--embedding", "counts=residual", "--embedding", "spectrum=conv1d")
    status, _, err = program("surrogate", "fit", simulations, "-o", tmp_path / "g.st")
    assert (status, "learns one output, and there are several: --output counts or spectrum" in err) == (2, True)
    one = ["--output", "counts", "--epochs", 1]
    result("surrogate", "fit", simulations, "-o", tmp_path / "g.st", *one)
    # It remembers which one it learned.
    status, _, err = program("surrogate", "check", tmp_path / "g.st", simulations)
    assert (status, "events, got 200" in err) == (2, True)
    status, _, err = program("surrogate", "check", tmp_path / "g.st", simulations, "--output", "flux")
    assert (status, "output: expected one of counts, spectrum; got 'flux'" in err) == (2, True)
    np.savez(tmp_path / "x.npz", counts=np.zeros(3), spectrum=np.zeros(4))
    drawn = result("posterior", "sample", model, "-x", tmp_path / "x.npz", "-o", tmp_path / "d.h5", "-n", 20)
    assert drawn["draws"] == 20


def test_a_table_with_times_beside_the_counts(folder, program, tmp_path):
    (tmp_path / "x.csv").write_text("time,counts\n0,0.1\n1,-0.2\n2,0.3\n")
    status, _, err = program(
        "posterior", "sample", folder / "moons.st", "-x", tmp_path / "x.csv", "-o", tmp_path / "d.h5"
    )
    assert (status, "got 3 of them; leave out rows that are no data" in err) == (2, True)


def test_failed_simulations_name_the_option_of_the_command(program, folder, tmp_path):
    moons = sp.load(folder / "moons.h5")
    x = moons.x.clone()
    x[7] = np.nan
    sp.Simulations.from_arrays(moons.theta, x, moons.parameters).save(tmp_path / "s.h5")
    status, _, err = program("posterior", "fit", tmp_path / "s.h5", "-o", tmp_path / "p.st", "--epochs", 1)
    assert status == 1
    assert "say --failed correct to train" in err


def test_names_of_files_are_looked_at_before_the_work(program, folder, tmp_path):
    fit = ["posterior", "fit", folder / "moons.h5", "--epochs", 1]
    status, _, err = program(*fit, "-o", tmp_path / "p.h5")
    assert (status, "expected a name that ends in .safetensors, got .h5" in err) == (2, True)
    sample = ["posterior", "sample", folder / "moons.st", "-x", folder / "x.npy", "-o", tmp_path / "d.h5"]
    status, _, err = program(*sample, "--plot", tmp_path / "c.jpeg2")
    assert (status, "expected a figure that ends in" in err) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_chain_that_has_not_converged_is_no_reference(program, folder, tmp_path):
    options = ["--simulator", "two_moons", "-x", folder / "x.npy", "-o", tmp_path / "c", "-n", 60, "--steps", 30]
    _, out, _ = program("posterior", "compare", folder / "moons.st", *options)
    assert "MCMC is no reference here, nor are distances from it: " in out
