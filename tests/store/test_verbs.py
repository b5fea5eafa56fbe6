"""Files of simulations joined, cut, looked at and checked, in Python and on the command line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import sbi_physics as sp
from sbi_physics.cli.app import main
from sbi_physics.simulation.parts import Parts, parts_folder, progress_of
from sbi_physics.store.combine import merge, split, verify


class Noisy:
    name = "noisy"
    parameters = sp.Parameters([sp.Parameter("a", torch.distributions.Uniform(0.0, 1.0))])

    def __call__(self, theta, *, seed):
        if bool((theta > 0.97).any()):
            raise ValueError("too large")
        return theta + torch.randn(len(theta), 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def made(tmp_path):
    """Files of 100 and 50 simulations of other seeds."""
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for seed, (path, n) in enumerate(zip(paths, (100, 50), strict=True)):
        sp.simulate(Noisy(), n, out=path, seed=seed, block_size=7, workers=1, progress=False)
    return paths


def verb(*words):
    with pytest.raises(SystemExit) as ended:
        main(["store", *map(str, words)])
    return ended.value.code


def test_merged_rows_are_those_of_the_files(made, tmp_path):
    assert merge(made, tmp_path / "all.h5") == 150
    whole, parts = sp.load(tmp_path / "all.h5"), [sp.load(path) for path in made]
    many = sp.load(made)
    for one in (whole, many):
        assert len(one) == 150
        assert torch.equal(one.theta, torch.cat([part.theta for part in parts]))
        assert torch.equal(one.x.nan_to_num(), torch.cat([part.x for part in parts]).nan_to_num())
        assert one.seeds == parts[0].seeds + parts[1].seeds
        assert one.errors == {**parts[0].errors, **{100 + row: text for row, text in parts[1].errors.items()}}
        assert one.counts()["failed"] == sum(part.counts()["failed"] for part in parts) > 0
    many.save(tmp_path / "again.h5")
    assert len(sp.load(tmp_path / "again.h5")) == 150
    assert "2 files" in repr(many)


@pytest.mark.parametrize("size", [16, 100, 1000])
def test_several_files_stream_as_one(size, made):
    many = sp.load(made)
    theta, x = many.training_set()
    batches = list(many.batches(size))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), theta)
    assert torch.equal(torch.cat([batch[1] for batch in batches]), x)
    assert torch.equal(many.unkept().theta, many.theta)
    with pytest.raises(sp.UsageError, match="is the file these simulations are read from"):
        many.save(made[1])


@pytest.mark.parametrize("rows", [1, 7, 30, 99, 100, 1000])
def test_all_pieces_give_the_file_again(rows, made, tmp_path):
    folder = tmp_path / "pieces"
    folder.mkdir()
    pieces = split(made[0], rows, folder)
    assert sum(len(sp.load(piece)) for piece in pieces) == 100
    merge(pieces, tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == made[0].read_bytes()
    with pytest.raises(sp.StoreError, match="is there already"):
        split(made[0], rows, folder)
    if len(pieces) > 2:
        merge(pieces[1:], tmp_path / "rest.h5")
        assert sp.load(tmp_path / "rest.h5").header.theta == "joined"


def test_what_does_not_fit_is_not_joined(made, tmp_path):
    with pytest.raises(sp.UsageError, match=r"a\.h5: the same simulations as in .*a\.h5"):
        sp.load([made[0], made[1], made[0]])
    with pytest.raises(sp.UsageError, match="at least one"):
        sp.load([])
    with pytest.raises(sp.StoreError, match="is there already"):
        merge(made, made[0])
    theta = torch.rand(5, 1)
    sp.Simulations.from_arrays(theta, torch.ones(5, 2), Noisy.parameters).save(tmp_path / "wide.h5")
    other = sp.Parameters([sp.Parameter("b", torch.distributions.Uniform(0.0, 1.0))])
    sp.Simulations.from_arrays(theta, torch.ones(5, 3), other).save(tmp_path / "other.h5")
    for name, what in (("wide", "outputs"), ("other", "parameters")):
        with pytest.raises(sp.StoreError, match=rf"{name}\.h5: has other {what} than"):
            merge([made[0], tmp_path / f"{name}.h5"], tmp_path / "all.h5")
    assert not (tmp_path / "all.h5").exists()


def test_a_flipped_bit_is_found_and_named(tmp_path):
    x = np.random.default_rng(0).normal(size=(20_000, 20)).astype("f4")
    path = tmp_path / "x.h5"
    sp.Simulations.from_arrays(np.full((20_000, 1), 0.5), x, Noisy.parameters).save(path)
    assert verify(path).damaged == ()
    whole = bytearray(path.read_bytes())
    row = 12_345
    place = bytes(whole).index(x[row].tobytes())
    whole[place] ^= 4
    path.write_bytes(whole)
    (found,) = verify(path).damaged
    name, _, rows = found.partition(": ")
    first, last = (int(word) for word in rows.split() if word.isdigit())
    assert name == "/x/x"
    assert first <= row <= last < first + 5_000
    assert verb("verify", path) == 1


def test_the_verbs(made, tmp_path, capsys):
    assert verb("merge", *made, "-o", tmp_path / "all.h5") == 0
    assert "150 simulations of 2 files" in capsys.readouterr().out
    assert verb("inspect", tmp_path / "all.h5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["simulations"], found["simulator"], found["theta"]) == (150, "noisy", "joined")
    assert found["outputs"] == {"x": [3]}
    assert verb("inspect", made[0]) == 0
    assert "100 simulations" in capsys.readouterr().out
    assert verb("split", made[0], "--rows", "40", "-o", tmp_path / "pieces") == 0
    assert len(capsys.readouterr().out.split()) == 3
    assert verb("verify", *made) == 0
    assert "whole, 50 simulations" in capsys.readouterr().out
    made[1].write_bytes(made[1].read_bytes()[:-100])
    assert verb("verify", *made, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["whole"]
    assert not found["files"][str(made[0])]["damaged"]
    assert "damaged" in found["files"][str(made[1])]["damaged"][0]
    assert verb("inspect", tmp_path / "nothing.h5") == 2
    assert verb("split", made[0], "--rows", "0", "-o", tmp_path / "none") == 2


def test_a_run_in_progress_is_looked_at(tmp_path, monkeypatch, capsys):
    out = tmp_path / "x.h5"
    seen = []

    def look(self, advance):
        seen.append(progress_of(out))
        seen.append(verb("inspect", out))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "merge", look)
        with pytest.raises(KeyboardInterrupt):
            sp.simulate(Noisy(), 60, out=out, block_size=10, workers=1, progress=False)
    now, code = seen
    assert (now.rows, now.done, now.running, code) == (60, 60, True, 0)
    assert "60 of 60 simulations" in capsys.readouterr().out
    # The blocks are files of simulations: what is done can be opened as one.
    assert len(sp.load(now.blocks)) == 60
    (parts_folder(out) / "block-000003.h5").unlink()
    later = progress_of(out)
    assert (later.done, later.running) == (50, False)
    sp.simulate(Noisy(), 60, out=out, block_size=10, workers=1, progress=False)
    with pytest.raises(sp.StoreError, match="no run that makes it"):
        progress_of(out)


def test_many_files_are_read_by_several_processes_at_once(made):
    code = f"import sbi_physics as sp; print(float(sp.load({[str(p) for p in made]!r}).theta.sum()))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ) for _ in "ab"]
    sums = {process.communicate()[0] for process in processes}
    assert len(sums) == 1
    assert float(sums.pop()) == pytest.approx(float(sp.load(made).theta.sum()))
