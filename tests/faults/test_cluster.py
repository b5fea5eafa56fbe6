"""Runs on a Dask cluster that behaves: the bytes of a local run, and errors that say what is wrong."""

import json
import logging
import os
import shutil

import h5py
import pytest
import torch

from sbi_physics.cli.app import main
from sbi_physics.core.errors import SimulationError, StoreError, UsageError
from sbi_physics.simulation import cluster
from sbi_physics.simulation.resolve import resolve_simulator

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("name", ["Good", "Named", "Global", "Raises"])
def test_same_bytes_as_here(name, dask, user, run, digest, tmp_path):
    run(user(name), 300, out=tmp_path / "here.h5", workers=1, seed=3)
    run(user(name), 300, out=tmp_path / "there.h5", cluster=dask.address, seed=3)
    assert digest(tmp_path / "there.h5") == digest(tmp_path / "here.h5")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != "") == ["here.h5", "there.h5"]


def test_in_memory_at_given_theta_by_a_client(dask, user, run):
    from distributed import Client

    theta = torch.rand(100, 2, generator=torch.Generator().manual_seed(0))
    with Client(dask.address, set_as_default=False) as client:
        there = run(user("Raises"), 100, theta=theta, cluster=client, block_size=10)
        assert client.status == "running"
    here = run(user("Raises"), 100, theta=theta, workers=1, block_size=10)
    assert torch.equal(there.theta, theta)
    assert torch.equal(there.x.nan_to_num(-1), here.x.nan_to_num(-1))
    assert (there.counts(), there.errors, there.seeds) == (here.counts(), here.errors, here.seeds)


def test_many_short_blocks_go_in_few_tasks(dask, user, run, digest, tmp_path):
    from distributed import Client

    with Client(dask.address, set_as_default=False) as client:
        run(user("Good"), 250, out=tmp_path / "there.h5", cluster=client, block_size=1)
        tasks = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.task_prefixes["simulate"].state_counts)
    assert 0 < tasks["memory"] < 100
    run(user("Good"), 250, out=tmp_path / "here.h5", workers=1, block_size=1)
    assert digest(tmp_path / "there.h5") == digest(tmp_path / "here.h5")


def test_a_file_that_workers_do_not_have_is_sent(dask, user_file, run, tmp_path):
    shutil.copy(user_file, tmp_path / "mine.py")
    simulator = resolve_simulator(f"{tmp_path / 'mine.py'}:Good")
    (tmp_path / "mine.py").write_text("raise ImportError('another version stands here now')")
    with pytest.raises(UsageError, match=r"another version stands here now.*Dask worker tcp://"):
        run(simulator, 20, cluster=dask.address)
    shutil.copy(user_file, tmp_path / "mine.py")
    assert run(simulator, 20, cluster=dask.address).counts()["ok"] == 20


def test_a_simulator_of_the_script_itself(dask, user, run):
    base = type(user("Good"))

    class Doubled(base):
        def __call__(self, theta, *, seed):
            return 2 * theta

    simulations = run(Doubled(), 20, cluster=dask.address)
    assert torch.equal(simulations.x, 2 * simulations.theta)


def test_a_folder_that_workers_do_not_see(dask, user, run, tmp_path, monkeypatch):
    """A worker that looks for another run finds that the folder is not that of the run."""
    from sbi_physics.simulation import parts
    from sbi_physics.simulation import run as module

    class Elsewhere(parts.Parts):
        def resume(self):
            done = super().resume()
            (self.folder / "run.json").rename(self.folder / "run.hidden")
            return done

    monkeypatch.setattr(module, "Parts", Elsewhere)
    with pytest.raises(StoreError, match=r"cannot be seen or written by 2 of 2 Dask workers \(tcp://"):
        run(user("Good"), 20, out=tmp_path / "x.h5", cluster=dask.address)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ("slurm", "expected an address such as 'tcp://host:8786'.*got 'slurm'"),
        (3, "expected an address.*got 3"),
        ("tcp://127.0.0.1:9", "no scheduler answers at tcp://127.0.0.1:9"),
        ("carrier-pigeon://loft:1", "no scheduler answers at carrier-pigeon"),
    ],
)
def test_wrong_clusters(cluster, message, user, run):
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pytest.raises(UsageError, match=message):
        run(user("Good"), 10, cluster=cluster)


def test_workers_and_a_cluster(dask, user, run):
    with pytest.raises(UsageError, match="either workers or cluster"):
        run(user("Good"), 10, cluster=dask.address, workers=2)


def test_several_threads_in_one_worker(new_dask, user, run, digest, tmp_path):
    """Blocks that fail draw their parameters again in the worker, where one generator serves all threads."""
    wide = new_dask()
    wide.start_worker("--no-nanny", "--nthreads", "3")
    run(user("Raises"), 120, out=tmp_path / "there.h5", cluster=wide.address, block_size=5)
    run(user("Raises"), 120, out=tmp_path / "here.h5", workers=1, block_size=5)
    assert digest(tmp_path / "there.h5") == digest(tmp_path / "here.h5")


def test_no_workers_yet(new_dask, user, run, caplog):
    import threading

    lonely = new_dask()
    timer = threading.Timer(3.0, lonely.start_worker)
    timer.start()
    with caplog.at_level(logging.WARNING):
        assert run(user("Good"), 20, cluster=lonely.address).counts()["ok"] == 20
    assert "has no workers; waiting for some" in caplog.text


def test_no_workers_at_all(new_dask, user, run, monkeypatch):
    monkeypatch.setattr(cluster, "_WAIT_SECONDS", 3.0)
    with pytest.raises(SimulationError, match=r"has had no workers for .* hours; what was made is kept"):
        run(user("Good"), 20, cluster=new_dask().address)


@pytest.fixture
def program(capsys):
    """Run the program; return its exit status, output and errors."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return end.value.code, *capsys.readouterr()

    return call


def test_simulate_on_the_command_line(dask, user_file, program, run, user, digest, tmp_path):
    status, _, err = program(
        *("simulate", f"{user_file}:Good", "-n", 50, "-o", tmp_path / "x.h5", "--cluster", dask.address, "--seed", 2)
    )
    assert (status, err) == (0, "")
    run(user("Good"), 50, seed=2, out=tmp_path / "y.h5", workers=1)
    assert digest(tmp_path / "x.h5") == digest(tmp_path / "y.h5")


def test_the_doctor_finds_nothing(dask, user_file, program):
    status, out, _ = program("doctor", "--cluster", dask.address, "--simulator", f"{user_file}:Good", "--json")
    values = json.loads(out)
    assert status == 0
    assert values["problems"] == []
    assert list(values["workers"].values()) == [1, 1]


def test_the_doctor_names_what_differs(new_dask, user_file, program, tmp_path, monkeypatch):
    monkeypatch.setenv("SBI_TEST_HERE", "1")
    mine = tmp_path / "mine.py"
    mine.write_text("import os\nos.environ['SBI_TEST_HERE']\n" + user_file.read_text())
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.environ.pop('SBI_TEST_HERE', 0)\nimport h5py\nh5py.__version__ = '1.0'\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    mixed = new_dask(PYTHONPATH=path)
    status, out, _ = program("doctor", "--cluster", mixed.address)
    assert (status, out) == (1, f"{mixed.address}: 0 workers, 0 threads\nthe cluster has no workers\n")
    mixed.start_worker()
    mixed.await_workers()
    status, out, _ = program("doctor", "--cluster", mixed.address, "--simulator", f"{mine}:Good")
    first, version, load = out.splitlines()
    assert status == 1
    assert first == f"{mixed.address}: 1 workers, 1 threads"
    assert version.endswith(f": h5py 1.0, here {h5py.__version__}")
    assert f": cannot load {mine}:Good: UsageError: simulator: {mine} cannot be loaded: KeyError" in load


def test_the_doctor_of_nobody(program):
    status, out, err = program("doctor", "--simulator", "two_moons")
    assert (status, out) == (2, "")
    assert "workers of a --cluster" in err
