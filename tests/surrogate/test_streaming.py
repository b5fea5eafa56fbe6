"""Many events go to a file in little memory, whoever kills the program, and with whatever number of processes."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch

import sbi_physics as sp
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.core.voxels import VoxelGeometry, VoxelLayer
from sbi_physics.simulation import showers as streaming
from sbi_physics.simulation.blocks import default_block_size
from sbi_physics.simulation.showers import simulate_showers
from sbi_physics.store.calochallenge import holds_showers, read_showers, write_showers
from sbi_physics.surrogate.showers import Showers

GEOMETRY = VoxelGeometry((VoxelLayer(0, (0, 5, 10)), VoxelLayer(1, (0, 2, 5, 10), 4)))
PRIOR = sp.Parameters([sp.Parameter("energy", LogUniform(10.0, 100.0), "MeV")])
# The program, killed as it calls a function for the n-th time.
PROGRAM = """
import importlib, os, signal, sys
from sbi_physics.cli.app import main

place, name, calls = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
if calls:
    module = importlib.import_module(place)
    function = getattr(module, name)

    def counted(*arguments, **more):
        global calls
        calls -= 1
        if not calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **more)

    setattr(module, name, counted)
main()
"""
RUN, PARTS, CONVERSION = "sbi_physics.simulation.run", "sbi_physics.simulation.parts", "sbi_physics.store.calochallenge"
# Peak memory in MB above that of two blocks: of runs into files of both formats, and of one in memory.
MEMORY = """
import sys
import sbi_physics as sp
from sbi_physics.simulation.showers import simulate_showers

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) / 1024

surrogate, folder, rows = sp.load(sys.argv[1], device="cpu"), sys.argv[2], int(sys.argv[3])
more = {"workers": 1, "progress": False}
sp.simulate(surrogate, 8192, out=folder + "/small.h5", block_size=4096, **more)
before = peak()
sp.simulate(surrogate, rows, out=folder + "/a.h5", **more)
simulate_showers(surrogate, rows, folder + "/a.hdf5", **more)
streamed = peak() - before
kept = sp.simulate(surrogate, rows, **more)
print(streamed, peak() - before)
"""


def events(n, voxels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    energy = PRIOR.sample(n, seed=seed)
    x = energy / voxels * torch.exp(0.8 * torch.randn(n, voxels, generator=generator))
    return energy, torch.where(x < 0.3 * x.mean(), 0.0, x)


@pytest.fixture(scope="module")
def surrogate():
    """A surrogate of little showers."""
    preprocessing = Showers(GEOMETRY, threshold=0.1)
    made = sp.Surrogate("vae", prior=PRIOR, preprocessing=preprocessing, config={"epochs": 1}, device="cpu")
    return made.fit(*events(500, GEOMETRY.size), progress=False)


@pytest.fixture(scope="module")
def path(surrogate, tmp_path_factory):
    path = tmp_path_factory.mktemp("streaming") / "surrogate.st"
    surrogate.save(path)
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sample(path, out, n, killed=(RUN, "write_block", 0)):
    """The exit status of the program, and its standard error."""
    arguments = [*killed, "surrogate", "sample", path, "--out", out, "-n", n, "--seed", 3, "--workers", 1]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_events(tmp_path):
    voxels, rows = 368, 150_000  # the buffers, some tens of megabytes, do not grow
    wide = sp.Surrogate("gan", prior=PRIOR, config={"epochs": 1}, hidden_features=16, device="cpu")
    wide.fit(*events(500, voxels), progress=False).save(tmp_path / "wide.st")
    arguments = [sys.executable, "-c", MEMORY, str(tmp_path / "wide.st"), str(tmp_path), str(rows)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    streamed, kept = map(float, done.stdout.split())
    size = 4 * rows * voxels / 2**20
    assert streamed < 0.5 * size
    assert kept > size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many.h5", "many.hdf5"])
def test_the_program_is_killed_and_goes_on(name, surrogate, path, tmp_path):
    n, out, whole = 20_000, tmp_path / name, tmp_path / f"whole-{name}"
    # After six of 16 blocks, which are read again; in the merge of all; and then, for showers, in the conversion.
    instants = [(RUN, "write_block", 7), (PARTS, "read_block", 18), (CONVERSION, "_complaint", 2)]
    for instant in instants[: 3 if name == "many.hdf5" else 2]:
        assert sample(path, out, n, instant) == (-signal.SIGKILL, "")
        assert not out.exists()
    assert sample(path, out, n) == (0, "")
    assert holds_showers(out) is (name == "many.hdf5")
    if holds_showers(out):
        simulate_showers(surrogate, n, whole, seed=3, workers=1, progress=False)
    else:
        sp.simulate(surrogate, n, out=whole, seed=3, workers=1, progress=False)
    assert digest(out) == digest(whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, f"whole-{name}"])


def test_cut_short_while_showers_are_converted(surrogate, tmp_path, monkeypatch):
    def cut_short(*_, **__):
        raise KeyboardInterrupt

    out, whole = tmp_path / "x.hdf5", tmp_path / "whole.hdf5"
    simulate_showers(surrogate, 3000, whole, workers=1, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "convert_simulations", cut_short)
        with pytest.raises(KeyboardInterrupt):
            simulate_showers(surrogate, 3000, out, workers=1, progress=False)
    assert not out.exists()
    simulate_showers(surrogate, 3000, out, workers=1, progress=False)
    assert digest(out) == digest(whole)
    theta, x = read_showers(out, voxels=GEOMETRY.size)
    again = sp.simulate(surrogate, 3000, workers=1, progress=False)
    assert torch.equal(theta, again.theta)
    assert torch.equal(x, again.x)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["whole.hdf5", "x.hdf5"]


def test_a_finished_run_is_left_and_another_is_refused(surrogate, tmp_path):
    out = tmp_path / "x.hdf5"
    simulate_showers(surrogate, 100, out, progress=False)
    before = out.stat()
    simulate_showers(surrogate, 100, out, progress=False)
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    other = sp.Surrogate("mixture", prior=PRIOR, config={"epochs": 1}).fit(*events(100, 14), progress=False)
    for simulator, n, seed in ((surrogate, 101, 0), (surrogate, 100, 1), (other, 100, 0)):
        with pytest.raises(sp.StoreError, match=r"x\.hdf5: holds other events"):
            simulate_showers(simulator, n, out, seed=seed, progress=False)
    write_showers(tmp_path / "real.hdf5", *events(10, 14))
    with pytest.raises(sp.StoreError, match="holds other events"):
        simulate_showers(surrogate, 100, tmp_path / "real.hdf5", progress=False)


def test_blocks_of_another_surrogate_are_not_taken_up(surrogate, tmp_path):
    again = sp.Surrogate("vae", prior=PRIOR, preprocessing=Showers(GEOMETRY, threshold=0.1), config={"epochs": 1})
    again.fit(*events(500, GEOMETRY.size), seed=1, progress=False)
    sp.simulate(surrogate, 100, out=tmp_path / "x.h5", progress=False)
    assert again.name.startswith("surrogate-vae-")
    with pytest.raises(sp.StoreError, match="simulator: 'surrogate-vae-"):
        sp.simulate(again, 100, out=tmp_path / "x.h5", progress=False)


def test_it_travels_to_other_processes(surrogate, tmp_path):
    again = pickle.loads(pickle.dumps(surrogate))
    assert again.name == surrogate.name
    theta = PRIOR.sample(50, seed=1)
    assert torch.equal(again.sample(theta, seed=2), surrogate.sample(theta, seed=2))
    for workers in (1, 2):
        sp.simulate(surrogate, 4000, out=tmp_path / f"{workers}.h5", workers=workers, progress=False)
    assert digest(tmp_path / "1.h5") == digest(tmp_path / "2.h5")


def test_blocks_are_as_large_as_memory_allows(surrogate):
    assert surrogate.rows_at_once == 1 << 14
    wide = sp.Surrogate("gan", config={"epochs": 1}, hidden_features=8).fit(*events(400, 3000), progress=False)
    assert wide.rows_at_once == 512
    assert wide.sample(PRIOR.sample(600, seed=1).clamp(20, 80), seed=1).shape == (600, 3000)
    assert [default_block_size(n, 4096) for n in (5, 2000, 20_000, 1_000_000)] == [5, 1024, 1250, 4096]
    assert default_block_size(1_000_000, 100) == 100


def test_other_events_are_no_showers(tmp_path):
    theta, x = events(100, 4)
    for pairs in ((theta, x.reshape(-1, 2, 2)), (torch.cat([theta, theta], 1), x)):
        other = sp.Surrogate("mixture", config={"epochs": 1}).fit(*pairs, progress=False)
        with pytest.raises(sp.ShapeError, match="expected an incident energy and a shower"):
            simulate_showers(other, 50, tmp_path / "x.hdf5", progress=False)
    assert not list(tmp_path.iterdir())
