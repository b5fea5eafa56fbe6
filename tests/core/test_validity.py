"""One mask for failed simulations: arrays and dictionaries, failures and missing entries."""

import numpy as np
import pytest
import torch

from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.validity import as_rows, count_rows, select_rows, select_valid, valid_rows

NAN, INF = torch.nan, torch.inf


def image():
    x = torch.zeros(5, 2, 3)
    x[1, 0, 2], x[2, 1, 1] = NAN, INF
    x[3] = NAN
    return x


def test_a_row_is_valid_when_all_of_it_is_finite():
    assert valid_rows(image()).tolist() == [True, False, False, False, True]
    assert valid_rows([1.0, NAN, -INF]).tolist() == [True, False, False]
    assert valid_rows(np.ones((3, 2), dtype=np.int64)).all()


def test_missing_entries_are_no_failure_unless_nothing_is_left():
    assert valid_rows(image(), missing=True).tolist() == [True, True, False, False, True]


def test_a_dictionary_is_valid_where_all_its_arrays_are():
    x = {"image": image(), "energy": torch.tensor([NAN, 0.0, 0.0, 0.0, 0.0])}
    assert valid_rows(x).tolist() == [False, False, False, False, True]
    assert valid_rows(x, missing=True).tolist() == [True, True, False, True, True]


def test_refuses_by_default_and_says_how_many_and_what_to_do():
    with pytest.raises(NonFiniteError, match=r'x: .*3 of 5 rows failed .*the first is row 1.*failed="drop" leaves'):
        select_valid(torch.zeros(5, 1), image())


def test_drop_leaves_failed_rows_out_and_counts_them():
    theta = torch.arange(5.0).unsqueeze(1)
    kept = select_valid(theta, {"image": image(), "index": torch.arange(5)}, failed="drop")
    assert kept.theta[:, 0].tolist() == [0.0, 4.0]
    assert kept.x["index"].tolist() == [0.0, 4.0]
    assert kept.x["image"].shape == (2, 2, 3)
    assert kept.failed == 3
    assert select_valid(theta, image(), failed="drop", missing=True).failed == 2


def test_pairs_without_failures_are_handed_on_as_they_are():
    theta, x = torch.zeros(4, 2), torch.zeros(4, 3)
    kept = select_valid(theta, x)
    assert (kept.theta.data_ptr(), kept.x.data_ptr(), kept.failed) == (theta.data_ptr(), x.data_ptr(), 0)


def test_rows_of_arrays_and_dictionaries():
    x = as_rows({"a": np.arange(6).reshape(3, 2), "b": [1, 2, 3]})
    assert count_rows(x) == 3
    picked = select_rows(x, torch.tensor([2, 0]))
    assert picked["a"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert select_rows(x["b"], slice(1, 3)).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("theta", "x", "options", "error", "message"),
    [
        (torch.zeros(4, 1), torch.zeros(5), {}, ShapeError, "equally many rows, got theta: 4, x: 5"),
        (torch.zeros(5, 1), {"a": torch.zeros(5), "b": torch.zeros(4)}, {}, ShapeError, r"x\['b'\]: 4"),
        (torch.full((5, 1), NAN), torch.zeros(5), {}, NonFiniteError, "theta: expected finite"),
        (torch.zeros(5, 1), torch.full((5,), NAN), {"failed": "drop"}, NonFiniteError, "no simulation is left"),
        (torch.zeros(5, 1), torch.zeros(5), {"failed": "skip"}, UsageError, "failed: expected one of drop, refuse"),
        (torch.zeros(5, 1), {}, {}, ShapeError, "empty dictionary"),
        (torch.zeros(5, 1), torch.tensor(1.0), {}, ShapeError, r"x: expected shape \(N, ...\), got a single number"),
        (torch.tensor(1.0), torch.zeros(5), {}, ShapeError, "theta: expected shape"),
    ],
)
def test_wrong_input_is_named(theta, x, options, error, message):
    with pytest.raises(error, match=message):
        select_valid(theta, x, **options)
