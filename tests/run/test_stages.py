"""The stage engine: what is made, what is not, and why."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from sbi_physics.core.errors import StoreError
from sbi_physics.run.stages import Engine, Stage, locked


def writer(text=""):
    """Work that writes the name of its inputs' contents, its seed and a text."""

    def make(work):
        before = "".join((folder / "out.txt").read_text() for folder in work.inputs.values())
        (work.folder / "out.txt").write_text(f"{before}{text}{work.seed};")

    return make


def chain(**changes):
    """Three stages a -> b -> c, and d beside them; fields of stages are changed by name."""
    stages = [
        Stage("a", writer("a"), {"size": 1}),
        Stage("b", writer("b"), inputs=("a",)),
        Stage("d", writer("d")),
        Stage("c", writer("c"), inputs=("b", "d")),
    ]
    return [replace(stage, **changes.get(stage.name, {})) for stage in stages]


def made(folder, stages):
    return [step.name for step in Engine(folder, stages).run() if step.status == "made"]


def reasons(folder, stages):
    return {step.name: step.reason for step in Engine(folder, stages).plan() if step.reason}


def test_a_second_run_does_nothing(tmp_path):
    assert made(tmp_path, chain()) == ["a", "b", "d", "c"]
    assert (tmp_path / "c" / "out.txt").read_text() == "a0;b0;d0;c0;"
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert made(tmp_path, chain()) == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


@pytest.mark.parametrize(
    ("changed", "redone", "why"),
    [
        ({"b": {"seed": 7}}, ["b", "c"], {"b": "seed 0 -> 7", "c": "b changed"}),
        ({"a": {"settings": {"size": 2}}}, ["a", "b", "c"], {"a": "size 1 -> 2", "b": "a changed", "c": "b changed"}),
        ({"d": {"format": 2}}, ["d", "c"], {"d": "made by another version of sbi-physics", "c": "d changed"}),
        ({"c": {"inputs": ("b",)}}, ["c"], {"c": "without d"}),
    ],
)
def test_a_change_redoes_the_stage_and_what_depends_on_it(tmp_path, changed, redone, why):
    made(tmp_path, chain())
    assert reasons(tmp_path, chain(**changed)) == why
    assert made(tmp_path, chain(**changed)) == redone
    assert made(tmp_path, chain(**changed)) == []


def test_user_files_are_part_of_the_key(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("1")
    stages = chain(b={"files": {"table.csv": file}})
    made(tmp_path / "run", stages)
    file.write_text("2")
    assert reasons(tmp_path / "run", stages)["b"] == "file table.csv changed"
    assert made(tmp_path / "run", stages) == ["b", "c"]
    file.unlink()
    with pytest.raises(StoreError, match=r"table\.csv: cannot be read"):
        Engine(tmp_path / "run", stages)


@pytest.mark.parametrize("how", ["changed", "removed", "record", "folder"])
def test_a_damaged_stage_is_made_again_and_what_depends_on_it_is_not(tmp_path, how):
    made(tmp_path, chain())
    file, record = tmp_path / "b" / "out.txt", tmp_path / "b" / "stage.json"
    if how == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    elif how == "removed":
        file.unlink()
    elif how == "record":
        record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
    else:
        file.unlink()
        record.unlink()
        (tmp_path / "b").rmdir()
    assert list(reasons(tmp_path, chain())) == ["b"]
    assert made(tmp_path, chain()) == ["b"]
    assert made(tmp_path, chain()) == []


def test_what_comes_out_differently_when_made_again_is_handed_on(tmp_path):
    made(tmp_path, chain())
    (tmp_path / "b" / "out.txt").unlink()
    stages = chain(b={"make": writer("other")})
    assert made(tmp_path, stages) == ["b", "c"]


def test_a_failure_leaves_what_is_done_and_goes_on_from_what_is_left(tmp_path):
    def fails(work):
        count = len(list(work.folder.glob("part*")))
        (work.folder / f"part{count}").write_text("x")
        if count < 2:
            raise ValueError("not yet")

    stages = chain(b={"make": lambda work: (fails(work), writer("b")(work)), "scratch": ("part*",)})
    for _ in range(2):
        with pytest.raises(ValueError, match="not yet"):
            Engine(tmp_path, stages).run()
        assert reasons(tmp_path, stages)["b"] == "it was interrupted"
        assert not (tmp_path / "b").exists()
    assert made(tmp_path, stages) == ["b", "d", "c"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["out.txt", "stage.json"]
    assert not (tmp_path / ".partial").exists()


def test_leftovers_that_are_of_no_use_are_thrown_away(tmp_path):
    def damaged(work):
        leftover = work.folder / "leftover"
        if leftover.exists():
            raise StoreError(f"{leftover}: damaged")
        leftover.write_text("x")
        if not done:
            raise ValueError("killed")
        writer("b")(work)

    done, stages = [], chain(b={"make": damaged, "scratch": ("leftover",)})
    with pytest.raises(ValueError, match="killed"):
        Engine(tmp_path, stages).run()
    done.append(True)
    assert made(tmp_path, stages) == ["b", "d", "c"]


def test_a_folder_is_held_by_one_process_and_let_go_when_it_is_killed(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from sbi_physics.run.stages import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match="another process is working on this run"), locked(tmp_path):
            pass
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        other.stdout.close()
    deadline = time.monotonic() + 5
    while True:
        try:
            with locked(tmp_path):
                return
        except StoreError:
            assert time.monotonic() < deadline
