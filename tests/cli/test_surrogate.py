"""Surrogates on the command line: fit, sample, files of showers."""

import h5py
import numpy as np
import pytest
import torch

import sbi_physics as sp
from sbi_physics.store.calochallenge import read_showers, write_showers

FIT = ["--model", "mixture", "--epochs", 1]


def test_from_simulations_to_more_of_them(folder, result, tmp_path):
    model, out = tmp_path / "s.st", tmp_path / "more.h5"
    fitted = result("surrogate", "fit", folder / "moons.h5", "-o", model, *FIT)
    assert set(fitted) == {"path", "model", "simulations", "seconds", "epochs"}
    assert (fitted["model"], fitted["simulations"], fitted["epochs"]) == ("mixture", 400, [1])
    assert result("surrogate", "sample", model, "-o", out, "-n", 300) == {"path": str(out), "events": 300}
    made = sp.Simulations.open(out)
    assert made.counts()["ok"] == 300
    assert made.parameters.names == sp.Simulations.open(folder / "moons.h5").parameters.names
    result("surrogate", "sample", model, "-o", tmp_path / "same.h5", "-n", 50, "--like", folder / "moons.h5")
    theta = sp.Simulations.open(tmp_path / "same.h5").theta
    assert torch.equal(theta, sp.Simulations.open(folder / "moons.h5").theta[:50])


def test_a_student(folder, result, program, tmp_path):
    teacher, student = tmp_path / "t.st", tmp_path / "s.st"
    result("surrogate", "fit", folder / "moons.h5", "-o", teacher, *FIT)
    distill = ["surrogate", "distill", teacher, "-o", student, "--events", 200, "--epochs", 2]
    found = result(*distill, "--model", "vae", "--seed", 3)
    assert set(found) == {"path", "model", "teacher", "events", "seconds", "epochs"}
    assert (found["model"], found["teacher"], found["events"], found["epochs"]) == ("vae", "mixture", 200, [2])
    assert isinstance(sp.load(student, device="cpu"), sp.Surrogate)
    status, _, err = program(*distill, "--model", "vae", "--steps", 2)
    assert (status, "option of the generator 'vae'" in err) == (2, True)


def test_from_showers_to_showers(result, tmp_path):
    generator = torch.Generator().manual_seed(0)
    energies = 1000 * torch.exp(3 * torch.rand(300, 1, generator=generator))
    voxels = energies / 368 * torch.rand(300, 368, generator=generator)
    write_showers(tmp_path / "s.hdf5", energies, torch.where(voxels < 1, 0.0, voxels))
    fit = ["surrogate", "fit", tmp_path / "s.hdf5", "-o", tmp_path / "s.st", "--calorimeter", "photons"]
    epochs = result(*fit, "--model", "vae", "--epochs", 1, "--max-seconds", 5)["epochs"]
    # The number is that of the voxels; layers are trained as suits them.
    assert (len(epochs), epochs[1]) == (2, 1)
    out = tmp_path / "made.hdf5"
    made = ["surrogate", "sample", tmp_path / "s.st", "-o", out, "-n", 40, "--like", tmp_path / "s.hdf5"]
    result(*made, "--format", "calochallenge")
    again, showers = read_showers(out, voxels=368)
    assert torch.equal(again, energies[:40])
    assert bool(((showers == 0) | (showers >= 1)).all())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.hdf5", "s.hdf5", "s.st"]


def test_check(folder, result, tmp_path):
    model, fresh = tmp_path / "s.st", tmp_path / "fresh.h5"
    result("surrogate", "fit", folder / "moons.h5", "-o", model, *FIT)
    result("simulate", "two_moons", "-n", 900, "-o", fresh, "--seed", 3, "--workers", 1)
    beside = ["--plot", tmp_path / "page.png", "--simulator", "two_moons"]
    found = result("surrogate", "check", model, fresh, "--epochs", 2, *beside)
    assert found["speed_up"] > 0
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert found["events"] == 450
    assert found["passed"] is False
    assert "generated events differ from real ones" in found["verdict"]
    assert 0.5 < found["low_level"]["auc"] <= 1


def test_export(folder, result, program, tmp_path):
    model, out = tmp_path / "s.st", tmp_path / "s.onnx"
    result("surrogate", "fit", folder / "moons.h5", "-o", model, "--model", "vae", "--epochs", 1)
    found = result("surrogate", "export", model, "-o", out, "--rows", 20)
    assert set(found) == {"path", "model", "parameters", "noise_features", "x_shape", "agreement"}
    assert (found["model"], found["noise_features"], found["x_shape"]) == ("vae", 8 + 2, [2])
    assert found["parameters"] == list(sp.Simulations.open(folder / "moons.h5").parameters.names)
    assert found["agreement"]["numbers"] == 40
    assert found["agreement"]["differing"] == 0
    assert out.stat().st_size > 10_000
    status, _, err = program("surrogate", "export", model, "-o", tmp_path / "nowhere" / "s.onnx")
    assert status == 2
    assert "does not exist" in err


def spoiled(folder, name, change):
    path = folder / name
    with h5py.File(path, "w") as file:
        file["incident_energies"] = np.full((20, 1), 1000.0)
        file["showers"] = np.ones((20, 368))
        change(file)
    return path


def remove(file):
    del file["showers"]


def negative(file):
    file["showers"][7, 3] = -1.0


def narrow(file):
    del file["showers"]
    file["showers"] = np.ones((20, 300))


@pytest.mark.parametrize(
    ("change", "words"), [(remove, "showers"), (negative, "row 7"), (narrow, "368")], ids=["key", "negative", "voxels"]
)
def test_damaged_showers_give_one_clear_line(change, words, program, tmp_path):
    path = spoiled(tmp_path, "bad.hdf5", change)
    status, _, err = program("surrogate", "fit", path, "-o", tmp_path / "s.st", "--calorimeter", "photons")
    assert status == 2
    (line,) = err.strip().splitlines()
    assert "bad.hdf5" in line
    assert words in line


def test_a_posterior_is_no_surrogate_nor_the_other_way_round(folder, program, result, tmp_path):
    result("surrogate", "fit", folder / "moons.h5", "-o", tmp_path / "s.st", *FIT)
    status, _, err = program("surrogate", "sample", folder / "moons.st", "-o", tmp_path / "d.h5")
    assert (status, "expected a surrogate, got a posterior" in err) == (2, True)
    status, _, err = program("posterior", "sample", tmp_path / "s.st", "-x", folder / "x.npy", "-o", tmp_path / "d.h5")
    assert (status, "expected a posterior, got a surrogate" in err) == (2, True)


def test_it_is_a_simulator_wherever_one_is_named(folder, result, program, tmp_path):
    model, out = tmp_path / "s.safetensors", tmp_path / "more.h5"
    result("surrogate", "fit", folder / "moons.h5", "-o", model, *FIT)
    assert result("simulate", model, "-n", 200, "-o", out, "--workers", 1)["status"]["ok"] == 200
    again = sp.simulate(str(model), 200, workers=1, progress=False)
    assert torch.equal(sp.Simulations.open(out).x, again.x)
    status, _, err = program("simulate", folder / "moons.h5", "-n", 200, "-o", tmp_path / "no.h5")
    assert (status, "path/program.toml or path/surrogate.safetensors, got" in err) == (2, True)
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    status, _, err = program("simulate", tmp_path / "broken.safetensors", "-n", 2, "-o", tmp_path / "no.h5")
    assert (status, "not a safetensors file" in err) == (2, True)


def test_events_at_one_place(folder, result, program, tmp_path):
    model, out = tmp_path / "s.st", tmp_path / "one.h5"
    result("surrogate", "fit", folder / "moons.h5", "-o", model, *FIT)
    sample = ["surrogate", "sample", model, "-o", out, "-n", 30]
    result(*sample, "--at", "theta_1=-0.25", "--at", "theta_0=0.5")
    assert torch.equal(sp.Simulations.open(out).theta, torch.tensor([[0.5, -0.25]]).expand(30, 2))
    for at, message in {
        ("theta_0=0.5",): "expected a value of each parameter, got none of theta_1",
        ("theta_0=0.5", "theta_0=0.5"): "NAME=VALUE once for each of theta_0, theta_1; got 'theta_0=0.5'",
        ("theta_2=0.5",): "NAME=VALUE once for each of theta_0, theta_1; got 'theta_2=0.5'",
        ("theta_0=x",): "expected a number for theta_0, got 'x'",
        ("theta_0=50", "theta_1=0"): "theta",
    }.items():
        status, _, err = program(*sample[:3], "-o", tmp_path / "no.h5", *(p for one in at for p in ("--at", one)))
        assert (status, message in err) == (2, True), err
    status, _, err = program(*sample, "--like", folder / "moons.h5", "--at", "theta_0=0.5")
    assert (status, "expected --like or --at, got both" in err) == (2, True)
