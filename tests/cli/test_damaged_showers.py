"""Files of showers with something wrong in them: one clear line and exit status 2, whichever verb reads them."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

import sbi_physics as sp
from sbi_physics.core.log_uniform import LogUniform

PROGRAM = "from sbi_physics.cli.app import main; main()"
ROWS, VOXELS = 1000, 368


def remove(key):
    return lambda file: file.__delitem__(key)


def put(key, row, column, value):
    def change(file):
        file[key][row, column] = value

    return change


def times(key, factor):
    def change(file):
        file[key][...] = file[key][:] * factor

    return change


def replace(key, values):
    def change(file):
        del file[key]
        file[key] = values

    return change


def both_empty(file):
    replace("incident_energies", np.ones((0, 1)))(file)
    replace("showers", np.ones((0, VOXELS)))(file)


# What is changed, and words of the line that says so.
WRONG = {
    "no showers": (remove("showers"), "/showers is missing"),
    "no energies": (remove("incident_energies"), "/incident_energies is missing"),
    "negative energy": (put("showers", 7, 3, -1.0), "got -1 in row 7, voxel 3"),
    "negative incident energy": (put("incident_energies", 8, 0, -5.0), "got -5 in row 8"),
    "NaN": (put("showers", 9, 4, np.nan), "got nan in row 9, voxel 4"),
    "infinity": (put("incident_energies", 2, 0, np.inf), "got inf in row 2"),
    "fewer voxels": (replace("showers", np.ones((ROWS, 300))), "expected shape (N, 368), got (1000, 300)"),
    "fewer showers": (replace("showers", np.ones((ROWS - 1, VOXELS))), "row 999 is in one alone"),
    "flat showers": (replace("showers", np.ones(ROWS)), "expected shape (N, 368), got (1000,)"),
    "words": (replace("showers", np.full((ROWS, VOXELS), b"x")), "/showers: expected numbers"),
    "a folder of that name": (lambda file: (remove("showers")(file), file.create_group("showers")), "is missing"),
    "none at all": (both_empty, "holds no showers"),
    "GeV": (times("incident_energies", 1e-3), "/incident_energies in MeV: expected energy in [256, 4.1943e+06]"),
    "showers in GeV": (times("showers", 1e-3), "both in MeV"),
    "incident energies in keV": (times("incident_energies", 1e3), "both in MeV"),
}
FILES = {
    "empty file": (b"", "the file is empty"),
    "text": (b"energy,voxel\n1,2\n", "not an HDF5 file"),
    "absent": (None, "no such file"),
}


def write(path, rows=ROWS):
    generator = np.random.default_rng(0)
    energies = 1000 * np.exp(generator.random((rows, 1)))
    with h5py.File(path, "w") as file:
        file["incident_energies"] = energies
        file["showers"] = 2 * energies / VOXELS * generator.random((rows, VOXELS))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "s.st"
    prior = sp.Parameters([sp.Parameter("energy", LogUniform(2.0**8, 2.0**22), "MeV")])
    energy = prior.sample(60, seed=1)
    surrogate = sp.Surrogate("mixture", prior=prior, config={"epochs": 1}, device="cpu")
    surrogate.fit(energy, (energy / VOXELS).expand(-1, VOXELS), progress=False).save(path)
    return path


@pytest.fixture(params=["fit", "check"])
def verb(request, model, tmp_path):
    """The arguments of a verb that reads a file."""
    if request.param == "check":
        return lambda path: ["surrogate", "check", model, path]
    return lambda path: ["surrogate", "fit", path, "-o", tmp_path / "f.st", "--calorimeter", "photons", "--epochs", 1]


@pytest.fixture(params=[*WRONG, *FILES])
def wrong(request, tmp_path):
    """A damaged file, and words of the line."""
    path = tmp_path / "bad.hdf5"
    if request.param in WRONG:
        write(path)
        change, words = WRONG[request.param]
        with h5py.File(path, "r+") as file:
            change(file)
        return path, words
    content, words = FILES[request.param]
    if content is not None:
        path.write_bytes(content)
    return path, words


def test_one_clear_line(wrong, verb, program):
    path, words = wrong
    status, out, err = program(*verb(path))
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert words in line


def test_incident_energies_without_their_axis_are_good(result, tmp_path):
    write(tmp_path / "flat.hdf5", 200)
    with h5py.File(tmp_path / "flat.hdf5", "r+") as file:
        replace("incident_energies", file["incident_energies"][:, 0])(file)
    fit = ["surrogate", "fit", tmp_path / "flat.hdf5", "-o", tmp_path / "f.st", "--model", "mixture", "--epochs", 1]
    assert result(*fit)["simulations"] == 200


@pytest.mark.slow
def test_in_a_process_of_its_own(model, tmp_path):
    """The whole program: nothing else on either stream, and no traceback."""
    started = []
    for name, verb in (("negative energy", "fit"), ("fewer voxels", "check"), ("no showers", "check")):
        path = tmp_path / f"{verb}-{name.replace(' ', '-')}.hdf5"
        write(path)
        change, words = WRONG[name]
        with h5py.File(path, "r+") as file:
            change(file)
        fit = [path, "-o", tmp_path / "f.st", "--calorimeter", "photons"]
        arguments = [sys.executable, "-c", PROGRAM, "surrogate", verb, *(fit if verb == "fit" else [model, path])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append((path, words, subprocess.Popen([str(argument) for argument in arguments], **pipes)))
    for path, words, process in started:
        out, err = process.communicate()
        assert (process.returncode, out) == (2, "")
        (line,) = err.splitlines()
        assert line.startswith(f"error: {path}: ")
        assert words in line
    assert not (tmp_path / "f.st").exists()
