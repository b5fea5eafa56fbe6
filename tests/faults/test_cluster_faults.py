"""A real scheduler and real workers that are killed, hang, run out of memory or of disk.

Whatever happens, each simulation is in the file once, with the bytes of a run that nothing disturbed.
"""

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

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc"),
]
SCRIPT = """
import sys
from sbi_physics.simulation.run import simulate
simulator, n, out, cluster = sys.argv[1:]
if __name__ == "__main__":
    simulate(simulator, int(n), out=out, cluster=cluster, block_size=10, seed=4, progress=False)
"""
N = 300


@pytest.fixture
def driver(tmp_path, user_file):
    """Start the driver of a run in a process of its own."""
    started = []

    def begin(out, cluster, simulator="Slow", n=N):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        command = [sys.executable, str(script), f"{user_file}:{simulator}", str(n), str(out), cluster]
        environment = {**os.environ, "SBI_TEST_FLAG": str(tmp_path / "hanging")}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def undisturbed(user, run, tmp_path, digest):
    """The digest of a run on this machine that nothing disturbs."""

    def make(simulator="Slow", n=N):
        run(user(simulator), n, out=tmp_path / "undisturbed.h5", workers=1, block_size=10, seed=4)
        return digest(tmp_path / "undisturbed.h5")

    return make


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def blocks(out):
    return len(list(out.with_name(out.name + ".parts").glob("block-*.h5")))


def descendants(pid):
    """Process ids of all that a process started."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found - {pid}


def test_the_driver_is_killed(dask, driver, user, run, digest, undisturbed, tmp_path):
    out = tmp_path / "x.h5"
    for instant in (2, 15):
        process = driver(out, dask.address)
        wait_for(lambda at=instant: blocks(out) >= at)
        process.kill()
        process.wait()
    assert not out.exists()
    run(user("Slow"), N, out=out, cluster=dask.address, block_size=10, seed=4)
    assert digest(out) == undisturbed()
    assert not out.with_name("x.h5.parts").exists()


def test_what_hangs_goes_with_its_driver(new_dask, driver, user, run, tmp_path):
    small = new_dask(SBI_TEST_FLAG=str(tmp_path / "hanging"))
    worker = small.start_worker()
    process = driver(tmp_path / "x.h5", small.address, "HangsAlways", 20)
    wait_for((tmp_path / "hanging").exists)
    process.kill()
    process.wait()
    assert run(user("Good"), 20, cluster=small.address).counts()["ok"] == 20
    assert worker.poll() is None


def test_workers_are_killed_and_others_come(new_dask, driver, digest, undisturbed, tmp_path):
    farm, out = new_dask(), tmp_path / "x.h5"
    first = farm.start_worker()
    process = driver(out, farm.address)
    wait_for(lambda: blocks(out) >= 2)
    children = descendants(first.pid)
    assert children
    first.kill()
    first.wait()
    second = farm.start_worker()
    wait_for(lambda: blocks(out) >= 12)
    farm.start_worker()
    second.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert digest(out) == undisturbed()
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_the_scheduler_is_killed(new_dask, driver, user, run, digest, undisturbed, tmp_path):
    farm, out = new_dask(), tmp_path / "x.h5"
    worker = farm.start_worker()
    process = driver(out, farm.address)
    wait_for(lambda: blocks(out) >= 5)
    farm.scheduler.kill()
    farm.scheduler.wait()
    assert process.wait(60) == 1
    last = process.stderr.read().strip().splitlines()[-1]
    assert (
        f"SimulationError: cluster: the scheduler at {farm.address} is gone; blocks that are written are kept" in last
    )
    worker.terminate()
    assert blocks(out) >= 5
    farm.start_scheduler()
    farm.start_worker()
    run(user("Slow"), N, out=out, cluster=farm.address, block_size=10, seed=4)
    assert digest(out) == undisturbed()


def four(last):
    """Parameters of four rows, of which the last is trouble."""
    return torch.tensor([[0.2, 0.0], [0.3, 0.0], [0.4, 0.0], [last, 0.0]])


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("Hangs", "timeout", "TimeoutError: the call took longer than 1 seconds"),
        ("Dies", "crashed", "the simulator ended its process (signal SIGKILL)"),
    ],
)
def test_a_row_that_hangs_or_ends_its_process(name, status, text, dask, user, run, digest, tmp_path):
    options = {"theta": four(0.95), "timeout": 1.0, "block_size": 4}
    simulations = run(user(name), 4, out=tmp_path / "there.h5", cluster=dask.address, **options)
    assert simulations.ok.tolist() == [True, True, True, False]
    assert simulations.counts()[status] == 1
    assert simulations.errors == {3: text}
    run(user(name), 4, out=tmp_path / "here.h5", workers=1, **options)
    assert digest(tmp_path / "there.h5") == digest(tmp_path / "here.h5")


def test_rows_that_end_their_dask_worker(new_dask, user, run, tmp_path):
    farm = new_dask(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0", PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    farm.start_worker("--nanny")
    options = {"block_size": 2, "theta": four(0.95)}
    simulations = run(user("KillsItsWorker"), 4, out=tmp_path / "x.h5", cluster=farm.address, **options)
    assert simulations.ok.tolist() == [True, True, True, False]
    assert simulations.errors == {3: "the simulator ended the Dask workers that it was given to"}
    expected = run(user("Dies"), 4, workers=1, timeout=60.0, **options)
    assert torch.equal(expected.x[:3], simulations.x[:3])
    assert expected.seeds == simulations.seeds


@pytest.mark.parametrize("refused", [True, False])
def test_rows_that_take_too_much_memory(refused, new_dask, user, run):
    """The system refuses the memory to one, and the other goes beyond the limit of the Dask worker."""
    farm = new_dask()
    farm.start_worker("--no-nanny", "--memory-limit", "0" if refused else "1500MB")
    greedy = user("Greedy", 2**29 if refused else None)
    simulations = run(greedy, 4, theta=four(0.95), block_size=4, cluster=farm.address)
    assert simulations.ok.tolist() == [True, True, True, False]
    text = simulations.errors[3]
    if refused:
        assert "MemoryError" in text
    else:
        assert text == "the call took more than 1500 MB, the share of a thread in the memory limit of its worker"


def test_the_same_run_twice_at_once(dask, driver, user, run, digest, undisturbed, tmp_path):
    out = tmp_path / "x.h5"
    process = driver(out, dask.address)
    wait_for(lambda: blocks(out) > 0)
    for more in ({"cluster": dask.address}, {"workers": 1}):
        with pytest.raises(StoreError, match="another process is working on this run"):
            run(user("Slow"), N, out=out, block_size=10, seed=4, **more)
    assert process.wait(60) == 0
    assert digest(out) == undisturbed()
    assert len(Simulations.open(out)) == N


@pytest.fixture
def cut_short(run, monkeypatch):
    """A run that ends when its blocks are made, before they become one file."""

    def make(*arguments, **more):
        def end(self, advance):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Parts, "merge", end)
            with pytest.raises(KeyboardInterrupt):
                run(*arguments, **more)

    return make


def test_blocks_that_are_spoiled_before_resuming(dask, user, run, cut_short, digest, undisturbed, tmp_path, caplog):
    out = tmp_path / "x.h5"
    cut_short(user("Raises"), N, out=out, cluster=dask.address, block_size=10, seed=4)
    files = sorted(out.with_name("x.h5.parts").glob("block-*.h5"))
    assert len(files) == N / 10
    files[3].write_bytes(files[3].read_bytes()[:-50])
    files[4].write_bytes(b"")
    files[5].unlink()
    whole = files[6].read_bytes()
    theta = Simulations.open(files[6]).theta.numpy().tobytes()
    place = whole.index(theta)
    files[6].write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    files[7].write_bytes(files[8].read_bytes())
    run(user("Raises"), N, out=out, cluster=dask.address, block_size=10, seed=4)
    assert digest(out) == undisturbed("Raises")
    assert sum("simulating block" in record.message for record in caplog.records) == 3


def test_a_disk_that_is_full(dask, user, run, digest, undisturbed, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        out = folder / "x.h5"
        with pytest.raises(StoreError, match=r"x\.h5\.parts.*cannot be written.*No space left on device.*Dask worker"):
            run(user("Slow"), N, out=out, cluster=dask.address, block_size=10, seed=4)
        made = blocks(out)
        assert 0 < made < N / 10
        subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)
        run(user("Slow"), N, out=out, cluster=dask.address, block_size=10, seed=4)
        assert digest(out) == undisturbed()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
from sbi_physics.simulation.run import simulate
if __name__ == "__main__":
    simulate(sys.argv[1], 300, out=sys.argv[3], workers=int(sys.argv[4]), block_size=10, seed=4, progress=False)
"""


@pytest.mark.parametrize(("stops", "workers"), [("a block", 1), ("a block", 2), ("the whole", 1)])
def test_files_that_may_not_grow(stops, workers, user, user_file, run, digest, undisturbed, tmp_path):
    """The limit stops the first block, or the file of all blocks by its last byte."""
    script, out = tmp_path / "limited.py", tmp_path / "x.h5"
    script.write_text(LIMITED)
    whole = undisturbed("Good")
    limit = 3_000 if stops == "a block" else (tmp_path / "undisturbed.h5").stat().st_size - 1
    result = subprocess.run(
        [sys.executable, str(script), f"{user_file}:Good", str(limit), str(out), str(workers)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "StoreError" in last
    assert "cannot be written" in last
    assert not out.exists()
    assert blocks(out) == (0 if stops == "a block" else N / 10)
    run(user("Good"), N, out=out, workers=1, block_size=10, seed=4)
    assert digest(out) == whole


BACKWARDS = """
import sys, time
start = time.time()
time.time = lambda: 2 * start - 3600 - time.monotonic()
from sbi_physics.simulation.run import simulate
if __name__ == "__main__":
    simulate(sys.argv[1], 60, out=sys.argv[2], workers=2, timeout=20, block_size=10, seed=4, progress=False)
"""


def test_a_clock_that_goes_backwards(user, user_file, run, cut_short, digest, undisturbed, tmp_path):
    """In the driver, and in blocks whose files are from tomorrow."""
    script, out = tmp_path / "backwards.py", tmp_path / "x.h5"
    script.write_text(BACKWARDS)
    subprocess.run([sys.executable, str(script), f"{user_file}:Good", str(out)], check=True, timeout=100)
    assert digest(out) == undisturbed("Good", 60)
    out.unlink()
    cut_short(user("Good"), 60, out=out, workers=1, block_size=10, seed=4)
    tomorrow = time.time() + 86400
    for i, path in enumerate(out.with_name("x.h5.parts").iterdir()):
        os.utime(path, (tomorrow, 0.0 if i % 2 else tomorrow))
    run(user("Good"), 60, out=out, workers=1, block_size=10, seed=4)
    assert digest(out) == undisturbed("Good", 60)
