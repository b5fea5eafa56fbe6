"""Observations in plain files of numbers."""

import numpy as np
import pytest

from sbi_physics.core.errors import StoreError
from sbi_physics.store.observation import read_array, read_data


@pytest.mark.parametrize("between", [",", ";", " ", "\t", ", ", "; ", "\n"])
@pytest.mark.parametrize("above", ["", "# counts\n", "# a; b, c\n\n"])
def test_numbers_between_anything(tmp_path, between, above):
    path = tmp_path / "x.csv"
    path.write_text(above + between.join(["1.5", "-2e3", "4"]) + "\n")
    assert read_array(path).tolist() == [1.5, -2000.0, 4.0]


def test_a_line_of_names_is_left_out(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("time;rate\n1;2\n3;4\n")
    assert read_array(path).tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,5;2,5\n", "decimals are written with a point, got '1,5;2,5'"),
        ("1 2\n3\n", "expected an array of numbers"),
        ("1 2\n3 x\n", "could not convert string to float: 'x'"),
        ("counts\n", "found none; between them are white space, commas or semicolons"),
        ("", "the file is empty"),
    ],
)
def test_what_is_no_array_of_numbers(tmp_path, content, message):
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(StoreError, match=message):
        read_array(path)


def test_named_observations(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, spectrum=np.ones((5, 2)), counts=np.arange(3))
    found = read_data(path)
    assert sorted(found) == ["counts", "spectrum"]
    assert found["counts"].tolist() == [0, 1, 2]
    for content in (path.read_bytes()[:100], b"nonsense"):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"expected arrays of numbers in \.npz"):
            read_data(path)
    with pytest.raises(StoreError, match="no such file"):
        read_data(tmp_path / "y.npz")
