import logging
import pickle
import sys

import numpy as np
import pytest
import torch

from sbi_physics.core.errors import ShapeError, StoreError, SupportError, UsageError
from sbi_physics.core.random import derive
from sbi_physics.simulation.blocks import default_block_size
from sbi_physics.store.simulations import Simulations


@pytest.mark.parametrize("name", ["Good", "Named", "Global", "Raises"])
def test_same_bytes_whatever_the_workers_and_the_way(name, user, run, digest, tmp_path):
    n = 150
    run(user(name), n, out=tmp_path / "one.h5", workers=1, seed=3)
    run(user(name), n, out=tmp_path / "two.h5", workers=2, seed=3)
    run(user(name), n, seed=3).save(tmp_path / "auto.h5")
    assert len({digest(path) for path in tmp_path.glob("*.h5")}) == 1
    assert not list(tmp_path.glob("*.parts"))


def test_in_memory_with_workers(user, run, digest, tmp_path):
    run(user("Raises"), 40, workers=2, block_size=20).save(tmp_path / "two.h5")
    run(user("Raises"), 40, workers=1, block_size=20).save(tmp_path / "one.h5")
    assert digest(tmp_path / "two.h5") == digest(tmp_path / "one.h5")


def test_another_seed_gives_other_rows(user, run):
    first, second = run(user("Good"), 50, seed=1), run(user("Good"), 50, seed=2)
    assert not torch.equal(first.theta, second.theta)
    assert not torch.equal(first.x, second.x)


def test_global_generators_are_left_alone(user, run):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    threads = torch.get_num_threads()
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(user("Global"), 20)
    assert torch.equal(before, torch.get_rng_state())
    assert (legacy == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_a_bad_row_costs_one_row(user, run):
    simulations = run(user("Raises"), 200, block_size=50)
    a = simulations.theta[:, 0]
    assert simulations.counts() == {
        "ok": int(((a >= 0.05) & (a <= 0.95)).sum()),
        "failed": int((a > 0.95).sum()),
        "nonfinite": int((a < 0.05).sum()),
        "timeout": 0,
        "crashed": 0,
    }
    assert 0 < simulations.counts()["failed"] < 50
    assert set(simulations.errors) == set(torch.nonzero(a > 0.95)[:, 0].tolist())
    assert set(simulations.errors.values()) == {"ValueError: the orbit is not bound"}
    theta, x = simulations.training_set()
    assert len(theta) == len(x) == simulations.counts()["ok"]
    assert bool(torch.isfinite(x).all())


def test_seeds_say_which_call_made_a_row(user, run):
    simulations = run(user("Raises"), 60, block_size=20, seed=5)
    theta = simulations.theta
    for block in range(3):
        rows = range(20 * block, 20 * block + 20)
        clean = bool((theta[rows.start : rows.stop, 0] <= 0.95).all())
        wanted = [derive(5, "block", block)] * 20 if clean else [derive(5, "row", row) for row in rows]
        assert simulations.seeds[rows.start : rows.stop] == wanted


def test_named_outputs(user, run):
    simulations = run(user("Named"), 30)
    assert {name: x.shape for name, x in simulations.x.items()} == {"velocity": (30,), "image": (30, 2, 3)}
    assert all(x.dtype == torch.float32 for x in simulations.x.values())
    assert simulations.x_shape == {"velocity": torch.Size([]), "image": torch.Size([2, 3])}


def test_rows_of_another_shape_are_failures(user, run):
    simulations = run(user("Ragged"), 60, block_size=20)
    wide = simulations.theta[:, 0] > 0.9
    assert int(wide.sum()) > 0
    assert torch.equal(simulations.ok, ~wide)
    assert all("expected x of shape (2,)" in text for text in simulations.errors.values())


def test_blocks_of_another_shape_than_the_first_are_failures(user, run, monkeypatch, tmp_path):
    monkeypatch.setenv("SBI_TEST_FIRST", str(derive(0, "block", 0)))
    for out in (None, tmp_path / "x.h5"):
        simulations = run(user("WideBlocks"), 30, block_size=10, out=out)
        assert simulations.ok.tolist() == [True] * 10 + [False] * 20
        assert simulations.x.shape == (30, 2)
        assert "expected x of shape (2,)" in simulations.errors[10]


def test_no_success_at_all_still_makes_the_file(user, run, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        simulations = run(user("NeverWorks"), 10, out=tmp_path / "x.h5")
    assert "none of 10 simulations succeeded; row 0: RuntimeError: no licence" in caplog.text
    assert simulations.counts()["failed"] == 10
    theta, x = Simulations.open(tmp_path / "x.h5").training_set()
    assert theta.shape == (0, 2)
    assert x.shape == (0, 0)


def test_given_theta(user, run):
    theta = torch.rand(20, 2)
    assert torch.equal(run(user("Good"), 20, theta=theta).theta, theta)
    with pytest.raises(UsageError, match="expected n = 21 rows, got 20"):
        run(user("Good"), 21, theta=theta)
    with pytest.raises(ShapeError, match=r"expected shape \(n, 2\)"):
        run(user("Good"), 20, theta=theta[:, :1])
    with pytest.raises(SupportError, match="row 0"):
        run(user("Good"), 20, theta=theta + 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: expected an integer of at least 1"),
        ({"workers": 0}, "workers: expected an integer"),
        ({"timeout": -1}, "timeout: expected a number of seconds"),
        ({"timeout": float("nan")}, "timeout: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"block_size": 0}, "block_size: expected"),
        ({"cluster": "slurm"}, "extra 'cluster'"),
    ],
)
def test_wrong_arguments(arguments, message, user, run):
    with pytest.raises(UsageError, match=message):
        run(user("Good"), **{"n": 10, **arguments})


def test_out_in_a_missing_folder(user, run, tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        run(user("Good"), 10, out=tmp_path / "missing" / "x.h5")


def test_a_finished_run_is_opened_and_another_is_refused(user, run, digest, tmp_path):
    out = tmp_path / "x.h5"
    run(user("Good"), 40, out=out)
    before, stamp = digest(out), out.stat().st_mtime_ns
    assert len(run(user("Good"), 40, out=out)) == 40
    assert (digest(out), out.stat().st_mtime_ns) == (before, stamp)
    for change, key in (
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"n": 41}, r"\(n: 40 there, 41 now\); for 1 more, simulate .* another --seed, .* store merge"),
        ({"n": 2000}, r"\(n: 40 there, 2000 now\)"),
        ({"n": 39}, r"\(n: 40 there, 39 now\); choose another name"),
        ({"theta": torch.rand(40, 2)}, "theta"),
    ):
        with pytest.raises(StoreError, match=key):
            run(user("Good"), **{"n": 40, "out": out, **change})
    with pytest.raises(StoreError, match="simulator"):
        run(user("Named"), 40, out=out)


def test_what_simulators_print_stays_off_standard_output(user, run, capfd):
    run(user("Chatty"), 4, workers=2, block_size=2)
    assert capfd.readouterr().out == ""


def test_a_simulator_that_workers_cannot_load(user, run):
    good = user("Good")
    local = type("Local", (type(good),), {})()
    with pytest.raises(UsageError, match=r"cannot be sent to worker processes.*workers=1"):
        run(local, 10, workers=2)
    assert run(local, 10).counts()["ok"] == 10

    class Gone(type(good)):
        """Can be pickled, and found nowhere by another process."""

    module = sys.modules[__name__]
    Gone.__qualname__ = "Gone"
    Gone.__module__ = "module_of_this_process_only"
    sys.modules["module_of_this_process_only"] = module
    module.Gone = Gone
    try:
        pickle.dumps(Gone())
        with pytest.raises(UsageError, match=r"worker processes cannot load the simulator.*workers=1"):
            run(Gone(), 10, workers=2)
    finally:
        del sys.modules["module_of_this_process_only"]


@pytest.mark.parametrize("n", [1, 10, 64, 65, 10_000, 10**6, 10**9])
def test_default_blocks(n):
    blocks = -(-n // default_block_size(n))
    assert 1 <= blocks <= 16384
    assert blocks <= n
