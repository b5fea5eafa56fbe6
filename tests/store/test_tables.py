"""Tables in every format: the same columns come back, and what is wrong is one line that says where."""

import sys
from importlib.util import find_spec

import h5py
import numpy as np
import pytest
import torch

from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.store.tables import read_table

COLUMNS = {
    "m_JJ": np.linspace(3.3, 3.7, 20),
    "m_J1": np.linspace(0.1, 0.3, 20, dtype=np.float32),
    "label": np.arange(20) % 2,
}
NAMES = list(COLUMNS)
FORMATS = ["plain.h5", "array.hdf5", "records.h5", "pandas.h5", "records.npy", "array.npy", "columns.npz", "array.npz"]
FORMATS += ["plain.csv", "events.parquet", "events.root"]


def write(path, columns):
    """Write columns in the format that the name of the file says."""
    kind, suffix = path.stem, path.suffix
    together = np.stack([np.asarray(c, dtype=np.float64) for c in columns.values()], 1) if kind == "array" else None
    records = None
    if kind == "records":
        records = np.empty(len(next(iter(columns.values()))), [(n, c.dtype) for n, c in columns.items()])
        for name, values in columns.items():
            records[name] = values
    if suffix in (".h5", ".hdf5"):
        with h5py.File(path, "w") as file:
            if kind == "plain":
                for name, values in columns.items():
                    file[name] = values
            elif kind == "pandas":
                pandas_fixed(file.create_group("df"), columns)
            else:
                file["events"] = together if kind == "array" else records
    elif suffix == ".npy":
        np.save(path, together if kind == "array" else records)
    elif suffix == ".npz":
        np.savez(path, **({"events": together} if kind == "array" else columns))
    elif suffix == ".csv":
        lines = ["# made by a test", ",".join(columns)]
        lines += [",".join(str(value) for value in row) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(lines) + "\n")
    elif suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table(dict(columns)), path)
    else:
        uproot = pytest.importorskip("uproot")
        with uproot.recreate(path) as file:
            file["events"] = dict(columns)


def pandas_fixed(group, columns):
    group["axis0"] = np.array([name.encode() for name in columns])
    kinds = sorted({values.dtype.str for values in columns.values()})
    for i, kind in enumerate(kinds):
        inside = {name: values for name, values in columns.items() if values.dtype.str == kind}
        group[f"block{i}_items"] = np.array([name.encode() for name in inside])
        group[f"block{i}_values"] = np.stack(list(inside.values()), 1)


def needs_names(path):
    return {"names": NAMES} if path.stem == "array" else {}


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    write(tmp_path / request.param, COLUMNS)
    return tmp_path / request.param


def test_columns_come_back(path):
    table = read_table(path, **needs_names(path))
    assert sorted(table.names) == sorted(NAMES)
    assert len(table) == 20
    for name, values in COLUMNS.items():
        assert table[name].dtype == torch.float64
        torch.testing.assert_close(table[name], torch.tensor(np.asarray(values, dtype=np.float64)), rtol=1e-7, atol=0)


def test_those_asked_for_come_in_order(path):
    table = read_table(path, ["label", "m_JJ"], **needs_names(path))
    assert table.names == ("label", "m_JJ")
    assert table.stack().shape == (20, 2)
    assert torch.equal(table.stack(["m_JJ"])[:, 0], table["m_JJ"])
    with pytest.raises(UsageError, match="column: expected one of label, m_JJ; got 'm_J1'"):
        table["m_J1"]


def test_a_missing_column_is_named_with_those_there(path):
    with pytest.raises(StoreError, match="there is no column 'mjj'; there are: ") as caught:
        read_table(path, ["m_JJ", "mjj"], **needs_names(path))
    assert "\n" not in str(caught.value)
    assert all(name in str(caught.value) for name in (str(path), *NAMES))


def test_nan_is_named(path):
    write(path, COLUMNS | {"m_J1": np.where(np.arange(20) == 7, np.nan, COLUMNS["m_J1"])})
    with pytest.raises(StoreError, match=r"column 'm_J1': expected finite numbers, got 1 NaN .* first in row 7"):
        read_table(path, **needs_names(path))
    assert len(read_table(path, ["m_JJ", "label"], **needs_names(path))) == 20


def test_no_rows_is_an_error(path):
    write(path, {name: values[:0] for name, values in COLUMNS.items()})
    with pytest.raises(StoreError, match="there are no rows in it"):
        read_table(path, **needs_names(path))


def test_an_empty_file_is_named(path):
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="the file is empty"):
        read_table(path)


def test_a_damaged_file_is_one_line(path):
    cut = path.read_bytes()[: path.stat().st_size // 3]
    # A shorter table is still a table.
    for content in (b"\x00\xff nonsense", *([] if path.suffix == ".csv" else [cut])):
        path.write_bytes(content)
        with pytest.raises(StoreError) as caught:
            read_table(path, **needs_names(path))
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_suffix(tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        read_table(tmp_path / "events.h5")
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(StoreError, match="a folder, not a file"):
        read_table(tmp_path / "folder.h5")
    with pytest.raises(StoreError, match=r"expected a file that ends in \.h5, \.hdf5"):
        read_table(tmp_path / "events.xlsx")


@pytest.mark.parametrize("arguments", [{"columns": []}, {"columns": ["a", "a"]}, {"names": "abc"}])
def test_wrong_lists_of_names(arguments):
    with pytest.raises(UsageError, match="expected a list of distinct names"):
        read_table("events.npy", **arguments)


@pytest.mark.parametrize("file", ["plain.h5", "columns.npz"])
def test_unequal_lengths_are_told(tmp_path, file):
    write(tmp_path / file, COLUMNS | {"m_J1": np.ones(19)})
    with pytest.raises(StoreError, match=r"equal length, got .*m_J1: 19"):
        read_table(tmp_path / file)


@pytest.mark.parametrize("file", ["records.npy", "columns.npz", "plain.csv", "events.parquet"])
def test_text_is_no_number(tmp_path, file):
    write(tmp_path / file, COLUMNS | {"run": np.array(["A"] * 20)})
    with pytest.raises(StoreError, match=r"column 'run': expected (one number|a number, got 'A')"):
        read_table(tmp_path / file)
    assert len(read_table(tmp_path / file, NAMES)) == 20


@pytest.mark.parametrize("file", ["array.hdf5", "array.npy", "array.npz"])
def test_an_array_needs_as_many_names_as_columns(tmp_path, file):
    write(tmp_path / file, COLUMNS)
    with pytest.raises(StoreError, match=r"needs 3 names of columns, got none"):
        read_table(tmp_path / file)
    with pytest.raises(StoreError, match=r"needs 3 names of columns, got 2: a, b"):
        read_table(tmp_path / file, names=["a", "b"])


def test_places_inside_a_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for group, count in (("data", 3), ("simulation", 5)):
            file[f"{group}/mass"] = np.ones(count)
    assert len(read_table(tmp_path / "a.h5", where="simulation")) == 5
    with pytest.raises(StoreError, match="there is no 'other'; there are: data, simulation"):
        read_table(tmp_path / "a.h5", where="other")
    with pytest.raises(StoreError, match="no columns in it"):
        read_table(tmp_path / "a.h5")
    np.savez(tmp_path / "a.npz", data=np.ones((3, 1)), simulation=np.ones((5, 1)))
    assert len(read_table(tmp_path / "a.npz", names=["mass"], where="simulation")) == 5
    with pytest.raises(StoreError, match="there is no 'other'; there are: data, simulation"):
        read_table(tmp_path / "a.npz", where="other")


def test_one_column_alone(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["mass"] = np.ones(3)
    np.savez(tmp_path / "a.npz", mass=np.ones(3))
    for file in ("a.h5", "a.npz"):
        assert read_table(tmp_path / file).names == ("mass",)


def test_trees_of_a_root_file(tmp_path):
    uproot = pytest.importorskip("uproot")
    with uproot.recreate(tmp_path / "a.root") as file:
        file["data"], file["folder/simulation"] = {"mass": np.ones(3)}, {"mass": np.ones(5)}
    assert len(read_table(tmp_path / "a.root", where="folder/simulation")) == 5
    with pytest.raises(StoreError, match="say where; the trees are: data, folder/simulation"):
        read_table(tmp_path / "a.root")
    with pytest.raises(StoreError, match="there is no tree 'other'; the trees are"):
        read_table(tmp_path / "a.root", where="other")


def test_branches_of_lists_are_refused(tmp_path):
    uproot, awkward = pytest.importorskip("uproot"), pytest.importorskip("awkward")
    with uproot.recreate(tmp_path / "a.root") as file:
        file["events"] = {"mass": np.ones(2), "jets": awkward.Array([[1.0], [2.0, 3.0]])}
    with pytest.raises(StoreError, match="column 'jets': expected one number in each row, got object"):
        read_table(tmp_path / "a.root")
    assert len(read_table(tmp_path / "a.root", ["mass"])) == 2


@pytest.mark.parametrize(("suffix", "package"), [(".parquet", "pyarrow"), (".root", "uproot")])
def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch, suffix, package):
    if find_spec(package):
        # What Python itself does to forbid an import.
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"events{suffix}"
    path.write_bytes(b"something")
    with pytest.raises(
        StoreError, match=rf"needs {package}, which is not installed: pip install 'sbi-physics\[tables\]'"
    ):
        read_table(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1.0,2.0\n3.0,4.0\n", "expected a line of distinct names first, got '1.0,2.0'; or name the columns"),
        ("# a,b,c\n1.0,2.0\n3.0,4.0\n", "expected a line of distinct names first, got '1.0,2.0'"),
        ("a,a\n3.0,4.0\n", "expected a line of distinct names first, got 'a,a'"),
        ("# only a comment\n", "there is no line of names in it"),
        ("a,b\n1,2\n3\n", "a.csv, line 3: column 'b': expected 2 cells, one for each name, got 1"),
        ("# c\n\na,b\n1,2\n3,\n", "a.csv, line 5: column 'b': expected a number, got an empty cell"),
        ("a;b\n1;2\n3;4,5\n", "line 3: column 'b': expected a number, got '4,5'; decimals are written with a point"),
        ("a b\n1 2\n3 x4\n", "expected a number, got '1 2'"),
        # Row numbers in front, as R writes them: nobody knows which cell belongs to which name.
        ("a,b\n1,10,20\n2,30,40\n", "line 2: expected 2 cells, one for each name, got 3"),
        ("a;b\n1;10\n2;30;3\n", "line 3: expected 2 cells, one for each name, got 3"),
    ],
)
def test_bad_text(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(StoreError, match=message):
        read_table(tmp_path / "a.csv")


def test_text_of_other_programs_is_read(tmp_path):
    """With a byte-order mark, quoted names, spaces, lines of Windows and comments in between."""
    content = '\ufeff"m [TeV]", b\r\n1.5, 2\r\n# note\r\n\r\n3.5,4\r\n'
    (tmp_path / "a.csv").write_text(content, encoding="utf-8", newline="")
    table = read_table(tmp_path / "a.csv")
    assert table.names == ("m [TeV]", "b")
    assert table["m [TeV]"].tolist() == [1.5, 3.5]


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".dat", ".tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", " ", "   "])
@pytest.mark.parametrize("comment", ["", "# "])
def test_whatever_parts_the_cells(tmp_path, suffix, delimiter, comment):
    lines = [["mass", "tau"], ["1.5", "-2e3"], ["3.5", "4"]]
    path = tmp_path / f"a{suffix}"
    path.write_text(comment + "\n".join(delimiter.join(line) for line in lines) + "\n")
    table = read_table(path)
    assert table.names == ("mass", "tau")
    assert table.stack().tolist() == [[1.5, -2000.0], [3.5, 4.0]]
    assert read_table(path, ["tau"])["tau"].tolist() == [-2000.0, 4.0]


def test_an_empty_cell_at_the_end_and_separators_in_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('a,"b, c"\n1,2,\n"3",4,\n')
    assert read_table(tmp_path / "a.csv").stack().tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_quoted_names_between_white_space(tmp_path):
    (tmp_path / "a.txt").write_text('"mass of jet" "tau"\n1.5 2\n"3.5" 4\n')
    table = read_table(tmp_path / "a.txt")
    assert table.names == ("mass of jet", "tau")
    assert table.stack().tolist() == [[1.5, 2.0], [3.5, 4.0]]
    # As R writes them, with a number of each row, of which the line of names says nothing.
    (tmp_path / "a.txt").write_text('"mass" "tau"\n"1" 1.5 2\n"2" 3.5 4\n')
    with pytest.raises(StoreError, match="line 2: expected 2 cells, one for each name, got 3"):
        read_table(tmp_path / "a.txt")


def test_pickles_are_never_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match="cannot be read"):
        read_table(tmp_path / "a.npy")


def test_names_above_the_numbers_or_from_the_user(tmp_path):
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="written by numpy\nmass,tau")
    table = read_table(tmp_path / "a.csv")
    assert table.names == ("mass", "tau")
    assert table.stack().tolist() == rows.tolist()
    np.savetxt(tmp_path / "b.csv", rows, delimiter=",")
    assert read_table(tmp_path / "b.csv", ["y"], names=["x", "y"])["y"].tolist() == [2.0, 4.0, 6.0]
    with pytest.raises(StoreError, match="expected a line of distinct names first"):
        read_table(tmp_path / "b.csv", names=["x", "y", "z"])
