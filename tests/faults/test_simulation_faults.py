"""Simulators that hang or die, runs that are killed, folders that are held or spoiled."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sbi_physics.core.errors import StoreError
from sbi_physics.simulation.parts import Parts
from sbi_physics.store.simulations import Simulations

SCRIPT = """
from sbi_physics.simulation.run import simulate
if __name__ == "__main__":
    simulate({simulator!r}, {n}, out={out!r}, workers={workers}, block_size=10, seed=4, progress=False)
"""
N = 400


@pytest.fixture
def start(tmp_path, user_file):
    """Start a run in a process of its own."""
    started = []

    def begin(out, workers, n=N, simulator="Slow"):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(simulator=f"{user_file}:{simulator}", n=n, out=str(out), workers=workers))
        environment = {**os.environ, "SBI_TEST_FLAG": str(tmp_path / "hanging")}
        started.append(
            subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def blocks(out):
    return len(list(out.with_name(out.name + ".parts").glob("block-*.h5")))


def stat(pid):
    """State and parent of a process; None when it is gone."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else (state, int(parent))


def children(pid):
    processes = {int(name): stat(name) for name in os.listdir("/proc") if name.isdigit()}
    return [process for process, found in processes.items() if found and found[1] == pid]


def kill_at(process, out, instant):
    """Kill a run when it has made a number of blocks, and wait until its workers are gone too."""
    folder = out.with_name(out.name + ".parts")
    wait_for(lambda: process.poll() is not None or (folder.exists() and blocks(out) >= instant))
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(map(stat, workers)), 20)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize(("workers", "instants"), [(1, (0, 1, 17, 39, 40)), (2, (3, 38))])
def test_a_killed_run_resumes_to_the_same_bytes(workers, instants, start, user, run, digest, tmp_path):
    run(user("Slow"), N, out=tmp_path / "whole.h5", workers=1, block_size=10, seed=4)
    out = tmp_path / "killed.h5"
    for instant in instants:
        kill_at(start(out, workers), out, instant)
        assert out.exists() or blocks(out) >= instant
    run(user("Slow"), N, out=out, workers=1, block_size=10, seed=4)
    assert digest(out) == digest(tmp_path / "whole.h5")
    assert not out.with_name("killed.h5.parts").exists()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_hanging_workers_go_when_their_parent_is_killed(start, tmp_path):
    out = tmp_path / "x.h5"
    process = start(out, 2, n=20, simulator="HangsAlways")
    wait_for(lambda: (tmp_path / "hanging").exists())
    kill_at(process, out, 0)
    assert not blocks(out)


@pytest.mark.parametrize(
    "left", ["merged", "all", "no lock", "only run.json", "a spoiled block", "a wrong block", "empty"]
)
def test_whatever_a_kill_leaves_is_taken_up(left, user, run, digest, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.h5", tmp_path / "x.h5"
    run(user("Raises"), 60, out=whole, workers=1, block_size=10)
    folder = out.with_name("x.h5.parts")
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "remove", lambda self: None)
        run(user("Raises"), 60, out=out, workers=1, block_size=10)
    assert digest(out) == digest(whole)
    if left != "merged":
        out.unlink()
    (folder / "merged.tmp").write_bytes(b"half a file")
    (folder / ".block-000003.h5.77.tmp").write_bytes(b"half a block")
    if left == "no lock":
        (folder / "lock").unlink()
    if left in ("only run.json", "empty"):
        for path in folder.glob("block*"):
            path.unlink()
    if left == "empty":
        (folder / "run.json").unlink()
    if left == "a spoiled block":
        path = folder / "block-000002.h5"
        path.write_bytes(path.read_bytes()[:-50])
    if left == "a wrong block":
        (folder / "block-000002.h5").write_bytes((folder / "block-000003.h5").read_bytes())
    run(user("Raises"), 60, out=out, workers=1, block_size=10)
    assert digest(out) == digest(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.h5", "x.h5"]


def test_another_run_in_the_folder_is_refused(user, run, tmp_path, monkeypatch):
    def cut_short(self, advance):
        raise KeyboardInterrupt

    out = tmp_path / "x.h5"
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "merge", cut_short)
        with pytest.raises(KeyboardInterrupt):
            run(user("Good"), 20, out=out, workers=1)
    for change, words in (
        ({"seed": 9}, "seed: 0 there, 9 now"),
        ({"block_size": 7}, "block_size: 1 there, 7 now"),
    ):
        with pytest.raises(StoreError, match=words):
            run(user("Good"), 20, out=out, workers=1, **change)
    identity = out.with_name("x.h5.parts") / "run.json"
    whole = identity.read_text()
    identity.write_text(whole[:20])
    with pytest.raises(StoreError, match=r"run\.json: cannot be read"):
        run(user("Good"), 20, out=out, workers=1)
    identity.unlink()
    with pytest.raises(StoreError, match="blocks of another run"):
        run(user("Good"), 20, out=out, workers=1, seed=9)
    # What is lost is made again from the blocks.
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "merge", cut_short)
        with pytest.raises(KeyboardInterrupt):
            run(user("Good"), 20, out=out, workers=1)
    assert json.loads(identity.read_text()) == json.loads(whole)
    assert len(run(user("Good"), 20, out=out, workers=1)) == 20


def test_two_runs_at_once_are_refused(start, user, run, tmp_path):
    out = tmp_path / "x.h5"
    process = start(out, 1)
    wait_for(lambda: blocks(out) > 0)
    with pytest.raises(StoreError, match="another process is working on this run"):
        run(user("Slow"), N, out=out, workers=1, block_size=10, seed=4)
    assert process.wait(60) == 0
    assert len(Simulations.open(out)) == N


def test_a_damaged_result_is_not_overwritten(user, run, tmp_path):
    out = tmp_path / "x.h5"
    out.write_text("my notes")
    with pytest.raises(StoreError, match="not an HDF5 file"):
        run(user("Good"), 10, out=out)
    assert out.read_text() == "my notes"


def test_hanging_rows_are_ended(user, run, tmp_path):
    start = time.monotonic()
    simulations = run(user("Hangs"), 12, workers=1, timeout=1.0, block_size=4, seed=2, out=tmp_path / "x.h5")
    hung = simulations.theta[:, 0] > 0.9
    assert 0 < int(hung.sum()) < 4
    assert torch.equal(simulations.ok, ~hung)
    assert simulations.counts()["timeout"] == int(hung.sum())
    assert set(simulations.errors.values()) == {"TimeoutError: the call took longer than 1 seconds"}
    assert time.monotonic() - start < 60


def test_rows_that_kill_their_process_are_recorded(user, run):
    simulations = run(user("Dies"), 12, workers=2, block_size=4, seed=2)
    dead = simulations.theta[:, 0] > 0.9
    assert int(dead.sum()) > 0
    assert torch.equal(simulations.ok, ~dead)
    assert set(simulations.errors.values()) == {"the simulator ended its process (signal SIGKILL)"}


def test_a_worker_killed_from_outside_changes_nothing(user, run, digest, tmp_path):
    flag = tmp_path / "flag"
    run(user("DiesOnce", str(flag)), 8, workers=2, block_size=4, out=tmp_path / "killed.h5")
    assert flag.exists()
    run(user("DiesOnce", str(flag)), 8, workers=1, block_size=4, out=tmp_path / "whole.h5")
    assert digest(tmp_path / "killed.h5") == digest(tmp_path / "whole.h5")


def test_a_script_without_a_main_guard(tmp_path, user_file):
    script = tmp_path / "script.py"
    script.write_text(
        f"from sbi_physics.simulation.run import simulate\nsimulate({str(user_file) + ':Good'!r}, 10, workers=2)\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)
    assert result.returncode != 0
    assert "under if __name__ == '__main__'" in result.stderr.strip().splitlines()[-1]
