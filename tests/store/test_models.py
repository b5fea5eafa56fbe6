import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.store.models import read_model, write_model

HEADER = {"kind": "flow", "names": ["a", "b"], "bounds": [0.0, 1.5]}


@pytest.fixture
def path(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    write_model(tmp_path / "m.st", {"weight": weight, "view": weight.T, "empty": torch.zeros(0)}, HEADER)
    return tmp_path / "m.st"


def test_write_and_read_are_inverse(path):
    header, tensors = read_model(path)
    assert header == {**HEADER, "format": "sbi_physics.model", "schema": 2}
    assert torch.equal(tensors["weight"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(tensors["view"], tensors["weight"].T)
    assert tensors["empty"].shape == (0,)


def test_same_content_same_bytes(path, tmp_path):
    header, tensors = read_model(path)
    write_model(tmp_path / "again.st", dict(reversed(tensors.items())), dict(reversed(header.items())))
    assert (tmp_path / "again.st").read_bytes() == path.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("header", [{}, {"kind": 3}, {"kind": "a", "x": float("nan")}, {"kind": "a", "x": object()}])
def test_headers_that_json_does_not_know(header, tmp_path):
    with pytest.raises(UsageError, match="header: expected"):
        write_model(tmp_path / "m.st", {}, header)
    assert not list(tmp_path.iterdir())


def with_header(text):
    return lambda path: save_file({"w": torch.zeros(2)}, path, metadata=None if text is None else {"header": text})


def header_with(**changes):
    return with_header(json.dumps({**HEADER, "format": "sbi_physics.model", "schema": 1, **changes}))


DAMAGES = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "garbage": (lambda path: path.write_bytes(bytes(range(256)) * 40), "expected sbi_physics.model"),
    "huge length": (lambda path: path.write_bytes(b"\xff" * 64), "expected sbi_physics.model"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-3]), "expected sbi_physics.model"),
    "pickle": (lambda path: torch.save({"w": torch.zeros(2)}, path), "expected sbi_physics.model"),
    "foreign": (with_header(None), "without the header of a model"),
    "not json": (with_header("{"), "is not JSON"),
    "a list": (with_header("[]"), "expected a header of keys and values, got list"),
    "infinite": (
        with_header('{"format": "sbi_physics.model", "schema": 1, "kind": "a", "x": NaN}'),
        "NaN is no number",
    ),
    "other format": (header_with(format="x"), "expected format 'sbi_physics.model', got 'x'"),
    "newer": (header_with(schema=7), "has schema 7, this version reads up to 2; upgrade sbi-physics"),
    "no schema": (header_with(schema=None), "expected a schema number, got None"),
    "no kind": (header_with(kind=None), "expected a kind of model"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_give_one_clear_line(damage, path):
    spoil, message = DAMAGES[damage]
    spoil(path)
    with pytest.raises(StoreError, match=message) as caught:
        read_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_damage_never_escapes_as_another_error(path):
    whole = path.read_bytes()
    original = read_model(path)
    random = np.random.default_rng(0)
    found = 0
    for position in random.integers(len(whole), size=200):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
        try:
            tensors, header = read_model(path)
        except StoreError:
            found += 1
            continue
        # What is read all the same is what was written.
        assert header == original[1]
        assert tensors.keys() == original[0].keys()
        assert all(torch.equal(tensors[name], original[0][name]) for name in tensors)
    assert found > 150
