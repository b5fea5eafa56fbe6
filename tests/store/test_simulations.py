import h5py
import numpy as np
import pytest
import torch

from sbi_physics.core.errors import ShapeError, StoreError, SupportError, UsageError
from sbi_physics.store import layout
from sbi_physics.store.simulations import Simulations


def test_save_and_open_are_inverse(simulations, tmp_path):
    simulations.save(tmp_path / "a.h5")
    again = Simulations.open(tmp_path / "a.h5")
    assert len(again) == 40
    assert again.parameters == simulations.parameters
    assert again.parameters.units == ("m / s", "")
    assert torch.equal(again.theta, simulations.theta)
    assert torch.equal(again.x.nan_to_num(), simulations.x.nan_to_num())
    assert again.counts() == {"ok": 38, "failed": 0, "nonfinite": 2, "timeout": 0, "crashed": 0}
    assert again.ok.tolist() == [i not in (3, 7) for i in range(40)]
    assert again.x_shape == (3,)
    assert "40 rows (38 ok, 2 nonfinite)" in repr(again)
    again.save(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_training_set_and_batches_hold_the_good_rows(simulations, tmp_path):
    simulations.save(tmp_path / "a.h5")
    for source in (simulations, Simulations.open(tmp_path / "a.h5")):
        batches = list(source.batches(16))
        theta, x = source.training_set()
        assert theta.shape == (38, 2)
        assert x.shape == (38, 3)
        assert torch.equal(torch.cat([b[0] for b in batches]), theta)
        assert torch.equal(torch.cat([b[1] for b in batches]), x)


def test_named_outputs(parameters, tmp_path):
    theta = np.full((5, 2), 0.5)
    Simulations.from_arrays(theta, {"u": np.ones(5), "v": np.ones((5, 2, 2))}, parameters).save(tmp_path / "a.h5")
    x = Simulations.open(tmp_path / "a.h5").x
    assert {k: tuple(v.shape) for k, v in x.items()} == {"u": (5,), "v": (5, 2, 2)}


def test_one_of_several_outputs(parameters):
    theta, x = np.full((5, 2), 0.5), {"u": np.arange(5.0), "v": np.ones((5, 2, 2))}
    x["v"][3] = np.nan
    both = Simulations.from_arrays(theta, x, parameters)
    store = both.output("u")
    assert (store.x.tolist(), store.x_shape) == ([0.0, 1.0, 2.0, 3.0, 4.0], ())
    assert store.ok.tolist() == [True, True, True, False, True]
    for wrong, expected in (
        (store, "none, as x is one array"),
        (both, "u, v"),
    ):
        with pytest.raises(UsageError, match=f"output: expected .*{expected}; got 'w'"):
            wrong.output("w")


def test_wrong_arrays(parameters):
    theta = torch.full((5, 2), 0.5)
    with pytest.raises(ShapeError, match="equally many rows"):
        Simulations.from_arrays(theta, torch.ones(4, 1), parameters)
    with pytest.raises(ShapeError, match="theta: expected shape"):
        Simulations.from_arrays(theta[0], torch.ones(5, 1), parameters)
    with pytest.raises(SupportError, match="expected a in"):
        Simulations.from_arrays(theta + 1, torch.ones(5, 1), parameters)
    with pytest.raises(UsageError, match="without slash"):
        Simulations.from_arrays(theta, {"a/b": torch.ones(5, 1)}, parameters)


def test_a_file_is_whole_or_absent(simulations, tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    path.write_text("the old file")

    def disk_full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layout, "write", disk_full)
    with pytest.raises(StoreError, match=r"a\.h5: cannot be written: .*No space left"):
        simulations.save(path)
    assert path.read_text() == "the old file"
    assert list(tmp_path.iterdir()) == [path]


def edit(change):
    def apply(path):
        with h5py.File(path, "r+", libver=("v110", "v110")) as file:
            change(file)

    return apply


def replace(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return edit(change)


def poison(file):
    file["x/x"][0, 0] = np.nan


DAMAGES = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "a folder, not a file"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text": (lambda path: path.write_text("theta,x\n1,2\n"), "not an HDF5 file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "damaged"),
    "stub": (lambda path: path.write_bytes(path.read_bytes()[:20]), "damaged"),
    "foreign": (edit(lambda file: file.attrs.__delitem__("format")), "the attribute 'format' = .* is missing"),
    "other": (
        edit(lambda file: file.attrs.__setitem__("format", "x")),
        "expected format 'sbi_physics.simulations', got 'x'",
    ),
    "newer": (
        edit(lambda file: file.attrs.__setitem__("schema", 7)),
        "has schema 7, this version reads up to 2; upgrade",
    ),
    "schema": (edit(lambda file: file.attrs.__setitem__("schema", "one")), "expected a schema number"),
    "header": (edit(lambda file: file.attrs.__setitem__("header", "{}")), "header does not match its checksum"),
    "no header": (edit(lambda file: file.attrs.__delitem__("header")), "'header' is missing"),
    "no theta": (edit(lambda file: file.__delitem__("theta")), "/theta is missing"),
    "no x": (edit(lambda file: file.__delitem__("x")), "/x/x is missing"),
    "flat theta": (replace("theta", np.zeros(40, "f4")), r"/theta: expected shape \(n, 2\), got \(40,\)"),
    "wide theta": (replace("theta", np.zeros((40, 3), "f4")), r"/theta: expected float32 of shape \(40, 2\)"),
    "double x": (replace("x/x", np.zeros((40, 3))), "/x/x: expected float32 .*, got float64"),
    "short x": (replace("x/x", np.zeros((39, 3), "f4")), r"/x/x: expected .* \(40, 3\), got"),
    "status": (replace("status", np.full(40, 9, "u1")), "/status: expected codes 0 to 4, got 9"),
    "nan": (edit(poison), "/x/x: row 0 is marked ok but is not finite"),
    "nan theta": (replace("theta", np.full((40, 2), np.nan, "f4")), "/theta: row 0 is marked ok"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_give_one_clear_line(damage, simulations, tmp_path):
    path = tmp_path / "a.h5"
    simulations.save(path)
    spoil, message = DAMAGES[damage]
    spoil(path)
    with pytest.raises(StoreError, match=message) as caught:
        Simulations.open(path).training_set()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_an_error_or_harmless(simulations, tmp_path):
    path, spoiled = tmp_path / "a.h5", tmp_path / "b.h5"
    simulations.save(path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(len(whole), size=300):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(random.integers(8))
        spoiled.write_bytes(flipped)
        try:
            again = Simulations.open(spoiled)
            theta, x, errors = again.theta, again.x, again.errors
        except StoreError:
            refused += 1
            continue
        assert again.header == simulations.header
        assert torch.equal(theta, simulations.theta)
        assert torch.equal(x.nan_to_num(), simulations.x.nan_to_num())
        assert errors == simulations.errors
    assert refused > 100


def test_long_and_strange_error_texts(simulations, tmp_path):
    rows = simulations._load()
    rows.errors.update({3: "é" * 400, 7: "плохо"})
    simulations.save(tmp_path / "a.h5")
    assert Simulations.open(tmp_path / "a.h5").errors == {3: "é" * 150, 7: "плохо"}
