"""`RowParts`: rows of numbers, some at a time, wherever they are: in memory, on the disk, or made of such as they pass.

What is learned of data in one pass or in several is written once, for parts; the parts are the same wherever the rows
are, and so are its results.  What is made of rows (scaled, with noise, less a trend) needs no place: it is made again
in each pass, with the same noise, until `stored` keeps it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from sbi_physics.core.random import derive, seeded
from sbi_physics.store.disk_rows import DiskRows

__all__ = ["RowParts", "Rows", "row_parts"]

_NUMBERS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class RowParts:
    """Rows ``(n, *event_shape)``, iterated in parts ``(m, *event_shape)``; made by `row_parts`.

    Attributes:
        shape: ``(n, *event_shape)``.
    """

    shape: torch.Size
    _source: Tensor | DiskRows
    _size: int
    _make: Callable[[int, Tensor], Tensor]

    def __len__(self) -> int:
        """The number of rows, n."""
        return self.shape[0]

    @property
    def count(self) -> int:
        """The number of parts."""
        return -(-len(self._source) // self._size)

    def __iter__(self) -> Iterator[Tensor]:
        """All parts, in order."""
        for start in range(0, len(self._source), self._size):
            yield self._make(start, self._source[start : start + self._size])

    def map(
        self,
        function: Callable[..., Tensor],
        event_shape: Sequence[int],
        *others: Tensor,
        seed: int | None = None,
        times: int = 1,
    ) -> "RowParts":
        """Other rows, made of these.

        Args:
            function: ``function(part, *other_parts)`` gives as many rows, of the event shape.
            event_shape: of one row.
            others: tensors ``(n, ...)`` whose rows belong to these.
            seed: of the random stream on which the function draws, the same in each pass; None where it does not.
            times: how many rows the function makes of each; there are then no others.
        """
        before = self._make

        def make(start: int, source: Tensor) -> Tensor:
            part = before(start, source)
            beside = [other[start : start + len(part)] for other in others]
            if seed is None:
                return function(part, *beside)
            with seeded(derive(seed, "rows", start), part.device):
                return function(part, *beside)

        return RowParts(torch.Size((times * len(self), *event_shape)), self._source, self._size, make)

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """All rows in memory."""
        result, start = torch.empty(self.shape, device=device, dtype=self._source.dtype), 0
        for part in self:
            result[start : start + len(part)] = part
            start += len(part)
        return result

    @torch.no_grad()
    def stored(self, device: torch.device | str = "cpu") -> Tensor | DiskRows:
        """All rows where their source is: in memory, or on the disk and read to the device."""
        if not isinstance(self._source, DiskRows):
            return self.tensor(device)
        return DiskRows.write((part.cpu() for part in self), self.shape[1:]).to(device)


Rows: TypeAlias = Tensor | DiskRows | RowParts


def row_parts(data: Rows) -> RowParts:
    """Rows ``(n, *event_shape)`` in parts of about four million numbers."""
    if isinstance(data, RowParts):
        return data
    numbers = torch.Size(data.shape[1:]).numel()
    return RowParts(torch.Size(data.shape), data, max(1, _NUMBERS_AT_ONCE // max(1, numbers)), lambda _, part: part)
