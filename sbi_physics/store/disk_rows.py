"""`DiskRows`: rows of numbers that stay on the disk and are read when a batch asks for them.

They lie in a scratch file without a name, row after row in single precision, so that any order of rows can be read, as
a shuffled epoch does; when the process ends, however it does, the file is gone.  Rows are read one by one with `pread`
and not through a mapping, of whose pages the operating system would decide how many are resident: what a process takes
is the batches that it holds.  Where the order is known beforehand (`expect`) a thread reads the next batches while the
present one is computed with.
"""

import os
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_physics.core.errors import ShapeError, StoreError

__all__ = ["DiskRows"]

_AHEAD = 3
_CPU = torch.device("cpu")


class _Scratch:
    """The file."""

    def __init__(self, file: Any, row: tuple[int, ...]) -> None:
        self._file, self._row = file, row
        self._row_bytes = 4 * int(np.prod(row, dtype=np.int64))

    def read(self, rows: Tensor | slice) -> Tensor:
        if isinstance(rows, slice):
            found = torch.empty((rows.stop - rows.start, *self._row))
            self._fill(_bytes(found), rows.start * self._row_bytes)
            return found
        found = torch.empty((len(rows), *self._row))
        view, size = _bytes(found) if len(rows) else memoryview(b""), self._row_bytes
        for place, row in zip(range(0, len(view), size), rows.tolist(), strict=True):
            self._fill(view[place : place + size], row * size)
        return found

    def _fill(self, view: memoryview, offset: int) -> None:
        descriptor = self._file.fileno()
        while len(view):
            got = os.preadv(descriptor, [view], offset)
            if not got:
                raise StoreError("the scratch file of a training is shorter than it was")
            view, offset = view[got:], offset + got


def _bytes(rows: Tensor) -> memoryview:
    array: Any = rows.numpy()
    return memoryview(array).cast("B")


@dataclass
class DiskRows:
    """Rows ``(n, *event_shape)`` on the disk, for what indexes a tensor by rows.

    Use `DiskRows.write`.

    Attributes:
        shape: ``(n, *event_shape)``.
        device: where what is read goes.
    """

    _scratch: _Scratch
    shape: torch.Size
    device: torch.device = _CPU
    _index: Tensor | None = None
    _waiting: deque[tuple[Tensor, Future[Tensor]]] = field(default_factory=deque, repr=False)
    dtype = torch.float32

    @classmethod
    def write(
        cls, blocks: Iterable[Tensor], event_shape: Sequence[int], *, folder: str | Path | None = None
    ) -> "DiskRows":
        """Write rows ``(m, *event_shape)``, block by block.

        Args:
            blocks: the rows in order.
            event_shape: of one row.
            folder: where the scratch file is; the place of temporary files where None.

        Raises:
            StoreError: nothing, or not so much, can be written there.
            ShapeError: there are no rows.
        """
        n = 0
        try:
            with ExitStack() as stack:
                file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
                for block in blocks:
                    file.write(np.ascontiguousarray(block.numpy(), dtype=np.float32).data)
                    n += len(block)
                file.flush()
                shape = torch.Size((n, *event_shape))
                if not shape.numel():
                    raise ShapeError(f"rows on the disk: expected numbers, got shape {tuple(shape)}")
                made = cls(_Scratch(file, tuple(event_shape)), shape)
                weakref.finalize(made._scratch, stack.pop_all().close)
                return made
        except OSError as error:
            where = folder or tempfile.gettempdir()
            raise StoreError(f"{where}: no scratch file for training can be written: {error}") from error

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, rows: Any) -> Tensor:
        """Read rows: those of an index tensor ``(m,)``, of a slice, or a single one."""
        if isinstance(rows, int):
            return self[rows : rows + 1][0]
        if isinstance(rows, Tensor) and self._waiting and torch.equal(self._waiting[0][0], rows.cpu()):
            return self._finish(self._waiting.popleft()[1].result())
        return self._finish(self._read(rows))

    def _read(self, rows: Tensor | slice) -> Tensor:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            part = slice(start, max(start, stop))
            return self._scratch.read(part if self._index is None else self._index[part])
        rows = rows.cpu()
        return self._scratch.read(rows if self._index is None else self._index[rows])

    def _finish(self, found: Tensor) -> Tensor:
        return found.to(self.device)

    def to(self, device: torch.device | str) -> "DiskRows":
        """The same rows, read to another device."""
        return replace(self, device=torch.device(device), _waiting=deque())

    def subset(self, rows: Tensor) -> "DiskRows":
        """Some of the rows, in another order."""
        rows = rows.cpu()
        index = rows if self._index is None else self._index[rows]
        return replace(self, shape=torch.Size((len(rows), *self.shape[1:])), _index=index, _waiting=deque())

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All rows in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : min(start + size, len(self))]

    @contextmanager
    def expect(self, order: Iterable[Tensor]) -> Iterator[None]:
        """Read ahead: in this block the rows are asked for by these tensors of indices, in their order."""
        coming = iter(order)
        with ThreadPoolExecutor(1, "sbi-physics-prefetch") as pool:

            def ahead() -> Iterator[tuple[Tensor, Future[Tensor]]]:
                for rows in coming:
                    rows = rows.cpu()
                    yield rows, pool.submit(self._read, rows)

            self._waiting = _Ahead(ahead())
            try:
                yield
            finally:
                self._waiting.clear()
                self._waiting = deque()


class _Ahead(deque[tuple[Tensor, Future[Tensor]]]):
    """A queue that is kept filled from an iterator."""

    def __init__(self, source: Iterator[tuple[Tensor, Future[Tensor]]]) -> None:
        super().__init__()
        self._source = source
        self._fill()

    def _fill(self) -> None:
        while len(self) < _AHEAD and (found := next(self._source, None)) is not None:
            self.append(found)

    def popleft(self) -> tuple[Tensor, Future[Tensor]]:
        """Take the first, and start another."""
        found = super().popleft()
        self._fill()
        return found
