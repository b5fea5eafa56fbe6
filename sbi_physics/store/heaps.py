"""A look at the global heaps of an HDF5 file before HDF5 does.

HDF5 keeps text of variable length in global heaps, the one part of the structure of a file that has no checksums.  The
library walks through the objects of a heap by their sizes; one damaged size of zero makes it walk on the spot for ever,
where no signal reaches it.  Files of this package have had no such text since schema 2; older ones and those of others
do.

A heap: "GCOL", version 1, three zeros, the size of the heap (8 bytes); then objects, each an index (2 bytes, 0 for the
free space at the end), a count (2), zeros (4), a size (8) and its bytes, to a multiple of 8.  The size of free space
includes its own header.
"""

import mmap
import struct
from pathlib import Path

from sbi_physics.core.errors import StoreError

__all__ = ["check_heaps"]

_SIGNATURE = b"GCOL\x01\x00\x00\x00"
_HEADER = 16
_MOST_BYTES = 1 << 26
"""How far into the file heaps are looked for: they come with attributes, which are written before the data."""


def check_heaps(path: Path) -> None:
    """Raise `StoreError` where a heap near the beginning of a file is damaged."""
    size = path.stat().st_size
    if not size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(_SIGNATURE, 0, _MOST_BYTES)
        while place >= 0:
            if not _whole(content, place, size):
                raise StoreError(f"{path}: the file is damaged: its text cannot be read")
            place = content.find(_SIGNATURE, place + 1, _MOST_BYTES)


def _whole(content: mmap.mmap, place: int, size: int) -> bool:
    if place + _HEADER > size:
        return False
    (length,) = struct.unpack_from("<Q", content, place + 8)
    end, here = place + length, place + _HEADER
    if length < _HEADER or end > size:
        return False
    while end - here >= _HEADER:
        index, taken = struct.unpack_from("<H6xQ", content, here)
        step = taken if index == 0 else _HEADER + taken + -taken % 8
        if step < _HEADER or step > end - here:
            return False
        here += step
    return True
