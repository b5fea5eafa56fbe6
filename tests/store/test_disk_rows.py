"""Rows on the disk are those in memory, in whatever order they are asked for."""

import os
import threading

import pytest
import torch

from sbi_physics.core.errors import ShapeError, StoreError
from sbi_physics.store.disk_rows import DiskRows

N = 5000


@pytest.fixture(scope="module")
def values():
    return torch.randn(N, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def rows(values, tmp_path):
    return DiskRows.write(values.split(700), (3, 4), folder=tmp_path)


def test_what_is_read_is_what_was_written(rows, values, tmp_path):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert (rows.shape, rows.ndim, len(rows)) == (values.shape, 3, N)
    assert torch.equal(rows[order], values[order])
    assert torch.equal(rows[10:20], values[10:20])
    assert torch.equal(rows[7], values[7])
    assert torch.equal(torch.cat(list(rows.chunks(999))), values)
    assert rows[order[:0]].shape == (0, 3, 4)
    assert not list(tmp_path.iterdir())  # the file has no name, and goes with the process


def test_subsets(rows, values):
    index = torch.randperm(N, generator=torch.Generator().manual_seed(2))[:1000]
    part = rows.subset(index).subset(torch.arange(0, 1000, 2))
    wanted = values[index][::2]
    assert part.shape == wanted.shape
    assert torch.equal(part[:], wanted)
    assert torch.equal(part[torch.tensor([3, 1, 3])], wanted[[3, 1, 3]])


def test_reading_ahead_changes_nothing(rows, values):
    threads = threading.active_count()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3)).view(50, 100)
    with rows.expect(order):
        for step, batch in enumerate(order):
            if step == 7:
                assert torch.equal(rows[torch.arange(5)], values[:5])  # not what was expected
            assert torch.equal(rows[batch], values[batch])
    with rows.expect(order):
        rows[order[0]]  # and then no more
    assert torch.equal(rows[order[3]], values[order[3]])
    assert threading.active_count() == threads


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_memory_is_bounded(tmp_path):
    def resident():
        with open("/proc/self/status") as file:
            return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024

    n, width = 60_000, 500  # 120 MB
    rows = DiskRows.write((torch.ones(1000, width) for _ in range(n // 1000)), (width,), folder=tmp_path)
    before, most = resident(), 0.0
    for batch in torch.randperm(n).split(500):
        rows[batch]
        most = max(most, resident() - before)
    assert most < 40


def test_no_rows_and_no_place(tmp_path):
    with pytest.raises(ShapeError, match="expected numbers"):
        DiskRows.write([], (3,))
    with pytest.raises(StoreError, match="no scratch file"):
        DiskRows.write([torch.ones(1, 1)], (1,), folder=tmp_path / "missing")
