"""Input as users write it, and what is said when it does not fit."""

import math

import numpy as np
import pytest
import torch

from sbi_physics.core.checks import (
    as_tensor,
    batch_of,
    finite,
    known_keys,
    positive_integer,
    resolve_device,
    same_length,
)
from sbi_physics.core.errors import NonFiniteError, SBIPhysicsError, ShapeError, UsageError


@pytest.mark.parametrize(
    "value", [[1, 2], (1.0, 2.0), np.array([1, 2], dtype=np.int16), np.float64([1, 2]), torch.tensor([1, 2])]
)
def test_as_tensor_takes_all_kinds_of_numbers(value):
    tensor = as_tensor(value, "x")
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [1.0, 2.0]
    assert as_tensor(value, "x", dtype=torch.float64).dtype == torch.float64


def test_as_tensor_keeps_floats_where_asked():
    assert as_tensor(torch.zeros(2, dtype=torch.float32), "x", dtype=None).dtype == torch.float32
    assert as_tensor(np.zeros(2), "x", dtype=None).dtype == torch.float64
    assert as_tensor([1, 2], "x", dtype=None).dtype == torch.float64
    assert as_tensor(3, "x").shape == ()


def test_as_tensor_cuts_the_graph():
    assert not as_tensor(torch.ones(2, requires_grad=True) * 2, "x").requires_grad


@pytest.mark.parametrize("value", ["abc", [[1, 2], [3]], [object()], None, {"a": 1}, 1j, torch.tensor([1j])])
def test_as_tensor_refuses_what_is_no_number(value):
    with pytest.raises(UsageError, match="x: expected"):
        as_tensor(value, "x")


def test_finite_names_the_first_bad_place():
    good = torch.zeros(3, 2)
    assert finite(good, "x") is good
    assert finite(torch.zeros(0, 2), "x").shape == (0, 2)
    bad = good.clone()
    bad[1, 1], bad[2, 0] = math.nan, math.inf
    with pytest.raises(NonFiniteError, match=r"x: expected finite numbers, got 2 .* of 6 \(first at index \(1, 1\)\)"):
        finite(bad, "x")
    with pytest.raises(NonFiniteError, match=r"first at index 1\); look there"):
        finite(bad[:, 1], "x", "look there")
    with pytest.raises(NonFiniteError, match="the value itself"):
        finite(torch.tensor(math.nan), "x")


def test_batch_of_names_the_shape():
    x = torch.zeros(4, 2, 3)
    assert batch_of(x, (2, 3), "x") is x
    assert batch_of(torch.zeros(4), (), "x").shape == (4,)
    for wrong in (torch.zeros(4, 3, 2), torch.zeros(2, 3), torch.zeros(1, 4, 2, 3)):
        with pytest.raises(ShapeError, match=r"x: expected shape \(n, 2, 3\), got"):
            batch_of(wrong, (2, 3), "x")
    with pytest.raises(ShapeError, match=r"expected shape \(n,\), got \(4, 1\)"):
        batch_of(torch.zeros(4, 1), (), "x")
    with pytest.raises(ShapeError, match="at least 5 rows, got 4"):
        batch_of(x, (2, 3), "x", minimum=5)
    with pytest.raises(ShapeError, match="at least 1 rows, got 0"):
        batch_of(x[:0], (2, 3), "x")


def test_same_length_names_all():
    same_length(theta=torch.zeros(3), x=torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="theta: 3, x: 4"):
        same_length(theta=torch.zeros(3), x=torch.zeros(4))


def test_positive_integer():
    assert positive_integer(3, "n") == 3
    assert type(positive_integer(np.int64(3), "n")) is int
    for wrong in (0, -1, 1.0, True, "3", None, math.nan):
        with pytest.raises(UsageError, match="n: expected an integer of at least 1"):
            positive_integer(wrong, "n")


def test_known_keys():
    known_keys([], ["a"], "option")
    known_keys(["a"], ["b", "a"], "option")
    with pytest.raises(UsageError, match="option: expected one of a, b; got 'c'"):
        known_keys(["a", "c"], ["b", "a"], "option")


def test_resolve_device():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "meta", "", 3.5):
        with pytest.raises(UsageError, match="device: expected"):
            resolve_device(wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there():
    with pytest.raises(UsageError, match="finds no CUDA device here"):
        resolve_device("cuda")


def test_every_error_is_caught_by_the_root():
    import sbi_physics.core.errors as errors

    for name in errors.__all__:
        assert issubclass(getattr(errors, name), SBIPhysicsError)
    assert issubclass(UsageError, ValueError)
    assert issubclass(errors.StoreError, OSError)
